# make demo | test | lint | bench | mutation | clean. One environment, .venv, made once and used again, also offline.

MIN := 3.11
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check -qq
STAMPS := $(VENV)/.stamps
CONSTRAINTS := $(wildcard constraints.txt)
DEPS := pyproject.toml $(CONSTRAINTS)
PYTEST ?=
MINUTES ?= 10
MODULES ?= all
SEED ?= 0
# In a variable, since a comma inside $(call) would separate arguments.
LINT_EXTRAS := [test,lint]

.PHONY: demo test lint bench mutation clean help

help:
	@echo "make demo   the whole programme on real text, in under 15 minutes on two cores"
	@echo "make test   the test suite"
	@echo "make lint   format, style, types and floors"
	@echo "make bench  measurements beside other code bases"
	@echo "make mutation MINUTES=10 MODULES=tokens/packing.py,...  which small faults in core modules do their tests notice?"
	@echo "make clean  remove the environment, caches and build products (runs/ stays)"

demo: $(STAMPS)/base
	$(VENV)/bin/ikirere run recipes/demo.yaml

test: $(STAMPS)/test
	$(PY) -m pytest -n 2 --dist loadfile $(PYTEST)

lint: $(STAMPS)/lint
	$(VENV)/bin/ruff format --check src tests benchmarks
	$(VENV)/bin/ruff check src tests benchmarks
	$(VENV)/bin/mypy src
	$(VENV)/bin/lint-imports --no-logo

bench: demo
	$(PY) benchmarks/demo_stages.py runs/demo
	@echo "benchmarks/README.md says how to measure beside peers"

mutation: $(STAMPS)/test
	$(PY) benchmarks/mutation/run.py --minutes $(MINUTES) --modules $(MODULES) --seed $(SEED)

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find src -name '*.egg-info' -type d -prune -exec rm -rf {} +

# The first python that is new enough; PYTHON=/path/to/python goes first.
$(PY):
	@found=; \
	for candidate in $(PYTHON) python3 python3.11 python3.12 python3.13 python3.14 python; do \
	  if command -v $$candidate >/dev/null 2>&1 && \
	     $$candidate -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MIN)".split("."))))' 2>/dev/null; \
	  then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "error: no Python $(MIN) or newer found; install one (Debian: apt install python3 python3-venv) or give PYTHON=/path/to/python" >&2; exit 2; \
	fi; \
	$$found -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: $$found cannot make an environment; install its venv module (Debian: apt install python3-venv)" >&2; exit 2; }

# A stamp per set of extras. pip resolves against constraints.txt once; without that file's exact versions
# at hand (another Python, another platform) it takes what pyproject.toml allows.
define install
	@mkdir -p $(STAMPS)
	@echo "installing ikirere$(1) into $(VENV) (some minutes the first time, once)"
	@$(PIP) $(addprefix -c ,$(CONSTRAINTS)) -e '.$(1)' || $(PIP) -e '.$(1)' || { \
	  echo "error: packages could not be installed; the first installation needs a package index" >&2; exit 2; }
	@touch $@
endef

$(STAMPS)/base: $(DEPS) | $(PY)
	$(call install,)

$(STAMPS)/test: $(DEPS) | $(PY)
	$(call install,[test])
	@touch $(STAMPS)/base

$(STAMPS)/lint: $(DEPS) | $(PY)
	$(call install,$(LINT_EXTRAS))
	@touch $(STAMPS)/base $(STAMPS)/test
