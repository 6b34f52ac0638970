"""The Makefile's first steps on a machine that lacks something."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("make", "sh", "mkdir", "rm", "touch", "env")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def poor_machine(tmp_path: Path, **programs: str) -> tuple[Path, Path]:
    """(work tree, folder of programs): the Makefile and only the programs given, beside a few of the shell."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    for name, script in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tree / name)
    return tree, tools


def make(tree: Path, tools: Path, target: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(tools / "make"), target], cwd=tree, env={"PATH": str(tools)}, capture_output=True, text=True, timeout=60
    )  # fmt: skip


@pytest.mark.parametrize("programs", [{}, {"python3": "exit 1"}])
def test_no_python_or_an_old_one_is_said(tmp_path: Path, programs: dict[str, str]) -> None:
    tree, tools = poor_machine(tmp_path, **programs)
    done = make(tree, tools, "demo")
    assert done.returncode != 0
    assert "error: no Python 3.11 or newer found" in done.stderr
    assert not (tree / ".venv").exists()


def test_a_python_without_venv_is_said(tmp_path: Path) -> None:
    tree, tools = poor_machine(tmp_path, python3='if [ "$1" = -m ]; then mkdir -p .venv/bin; exit 1; fi')
    done = make(tree, tools, "demo")
    assert done.returncode != 0
    assert "apt install python3-venv" in done.stderr
    assert not (tree / ".venv").exists(), "a half-made environment does not stay"


def test_a_second_call_installs_nothing(tmp_path: Path) -> None:
    tree, tools = poor_machine(tmp_path)
    log = tmp_path / "log"
    fake = tree / ".venv" / "bin"
    fake.mkdir(parents=True)
    for name in ("python", "ikirere"):
        (fake / name).write_text(f'#!/bin/sh\necho "{name} $@" >> {log}\n')
        (fake / name).chmod(0o755)
    for _ in range(2):
        done = make(tree, tools, "demo")
        assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    assert [line for line in lines if " pip install " in line] == lines[:1]
    assert lines[1:] == ["ikirere run recipes/demo.yaml"] * 2
