"""The floors of the architecture: imports go down only, the command line stays light, documents keep to plain terms."""

from __future__ import annotations

import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = ("made again", "told apart", "goes on behind", "whole passes", "in company", "outside sources")
HEAVY = ("torch", "numpy", "pyarrow", "transformers", "matplotlib", "pydantic")


def test_imports_go_down_only() -> None:
    pytest.importorskip("importlinter")
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_modules_import_each_other_in_a_circle() -> None:
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("ikirere", cache_dir=None)
    imported = {module: sorted(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    try:
        graphlib.TopologicalSorter(imported).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_the_front_door_imports_nothing_heavy() -> None:
    check = f"import sys, ikirere.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_every_package_says_what_it_is_for() -> None:
    packages = sorted(path.parent for path in (ROOT / "src" / "ikirere").rglob("*/__init__.py"))
    missing = [str(package) for package in packages if not (package / "README.md").is_file()]
    assert missing == []


def test_documents_use_plain_terms() -> None:
    folders = ("src", "docs", "benchmarks", "deploy")
    pages = [*ROOT.glob("*.md"), *(page for folder in folders for page in (ROOT / folder).rglob("*.md"))]
    found = [
        f"{page.relative_to(ROOT)}: {phrase}"
        for page in pages
        if page.name != "log.md"  # history keeps its wording
        for phrase in NOT_OURS
        if phrase in " ".join(page.read_text(encoding="utf-8").lower().split())
    ]
    assert len(pages) > 20 and found == []


def test_files_can_be_read_in_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in ("src", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}
