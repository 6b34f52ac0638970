"""Mutation score of the core modules: which small faults in them do their tests notice?

Each mutant (operators.py) runs in a fork of this process, against only the tests that modules.toml names
for its module. Nothing is written into the source tree: an import hook compiles the mutant in place of
the file, so processes that a test starts afresh see the original. Modules take turns, each in an order of
its own drawn from the seed, until the minutes are over. A mutant is killed where a test fails, where the
module cannot be imported, and where the tests take five times as long as without it, 10 s at least.

    python benchmarks/mutation/run.py --minutes 10 --modules tokens/packing.py,train/schedule.py
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import os
import platform
import random
import resource
import signal
import sys
import time
import tomllib
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from itertools import islice
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from operators import Mutant, mutants

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "ikirere"
HERE = Path(__file__).parent
QUIET = ["-q", "-p", "no:cacheprovider"]
# What tests import, loaded once here and inherited by every fork. Nothing of ikirere, which would be the original.
LOADED = (
    "hypothesis", "numpy", "psutil", "pyarrow.parquet", "pydantic", "rich.console", "ruamel.yaml", "safetensors", "tokenizers",
    "torch._dynamo", "torch.distributed.checkpoint", "torch.utils.flop_counter", "transformers", "typer",
)  # fmt: skip
MEMORY = 8 << 30  # bytes of address space: a mutant may ask for any amount


@dataclass
class Module:
    """A core module, its tests, and what was found."""

    path: str
    tests: list[str]
    todo: list[tuple[int, Mutant]]
    limit: float  # seconds for its tests
    all: int
    equivalent: int
    killed: int = 0
    survived: list[Mutant] = field(default_factory=list)

    @property
    def row(self) -> tuple[int, int, int, int]:
        """Mutants, equivalent ones, tested ones, killed ones."""
        return self.all, self.equivalent, self.killed + len(self.survived), self.killed


class Mutated(SourceFileLoader):
    """Finds and loads one module from a code object instead of its file."""

    def __init__(self, path: str, code: CodeType) -> None:
        super().__init__("ikirere." + path.removesuffix(".py").replace("/", "."), str(PACKAGE / path))
        self.code = code

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        return self.code


def failing(path: str, tests: list[str], number: int | None, limit: float) -> bool:
    """Whether a test fails with mutant `number` of the module (None: as it is), or the seconds run out."""
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        tree = ast.parse((PACKAGE / path).read_text())
        turns = mutants(tree)
        if number is not None:
            next(islice(turns, number, None))
        compiled = compile(ast.fix_missing_locations(tree), path, "exec")
        sys.meta_path.insert(0, Mutated(path, compiled))  # type: ignore[arg-type]
        for test in tests:
            if code := pytest.main([*QUIET, "-x", test]):
                os._exit(int(code))
        os._exit(0)
    end, status = time.monotonic() + limit, None
    try:
        while status is None and time.monotonic() < end:
            time.sleep(0.02)
            pid, waited = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(waited) if pid else None
    finally:
        if status is None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit(f"{path}: no tests ran: pytest {' '.join(tests)}")
    return status != 0


def prepare(path: str, tests: list[str], equivalent: dict[str, str], seed: int) -> Module:
    """A module with its mutants in the order of the seed, after one run of its tests without any."""
    found = list(enumerate(mutants(ast.parse((PACKAGE / path).read_text()))))
    if unknown := set(equivalent) - {mutant.name for _, mutant in found}:
        raise SystemExit(f"equivalent.toml: {path} has no mutant {min(unknown)!r}; remove the line")
    todo = [(number, mutant) for number, mutant in found if mutant.name not in equivalent]
    random.Random(f"{seed}/{path}").shuffle(todo)
    begin = time.monotonic()
    if failing(path, tests, None, 300):
        raise SystemExit(f"{path}: its tests fail without a mutant: pytest -x {' '.join(tests)}")
    limit = max(10.0, 5 * (time.monotonic() - begin))
    return Module(path, tests, todo, limit, len(found), len(equivalent))


def table(modules: list[Module]) -> str:
    lines = ["| module | mutants | equivalent | tested | killed | score |", "|---|---|---|---|---|---|"]
    total = [sum(column) for column in zip(*(m.row for m in modules))]
    for name, row in [*((m.path, m.row) for m in modules), ("**all**", total)]:
        score = f"{row[3] / row[2]:.1%}" if row[2] else "not measured"
        lines.append(f"| {name} | {' | '.join(map(str, row))} | {score} |")
    return "\n".join(lines)


def main() -> None:
    known: dict[str, list[str]] = tomllib.loads((HERE / "modules.toml").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--modules", default="all", help="comma-separated, under src/ikirere (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="Markdown file for the table")
    asked = parser.parse_args()
    paths = list(known) if asked.modules == "all" else asked.modules.split(",")
    if unknown := set(paths) - set(known):
        raise SystemExit(f"no module {', '.join(sorted(unknown))} in modules.toml: {', '.join(known)}")
    os.chdir(ROOT)
    for name in LOADED:
        importlib.import_module(name)
    torch.set_num_threads(1)
    pytest.main([*QUIET, "-p", "no:warnings", "--collect-only", "tests/conftest.py"])  # loads the plugins
    gc.freeze()  # what is loaded by now is no work for the collector of each fork
    equivalent = tomllib.loads((HERE / "equivalent.toml").read_text())
    begin = time.monotonic()
    modules = [prepare(path, known[path], equivalent.get(path, {}), asked.seed) for path in paths]
    while any(m.todo for m in modules) and time.monotonic() - begin < 60 * asked.minutes:
        for module in [m for m in modules if m.todo]:
            number, mutant = module.todo.pop()
            if failing(module.path, module.tests, number, module.limit):
                module.killed += 1
            else:
                module.survived.append(mutant)
                print(f"survived {module.path}:{mutant.line} {mutant.name}", flush=True)
    minutes = (time.monotonic() - begin) / 60
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, pytest {pytest.__version__}"
    text = f"Seed {asked.seed}, {minutes:.1f} minutes in one process; {versions}.\n\n{table(modules)}\n"
    if survived := [f"- `{m.path}:{mutant.line}` `{mutant.name}`" for m in modules for mutant in m.survived]:
        text += "\n".join(["\nSurvived:\n", *survived, ""])
    print(text)
    if asked.write:
        asked.write.write_text(text)


if __name__ == "__main__":
    main()
