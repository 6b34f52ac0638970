"""The machine and the versions that a run's numbers were made with: environment.json."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from ikirere import __version__

SOURCE = Path(__file__).resolve().parent


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def _commit() -> dict[str, Any] | None:
    """Commit of the foundry's source where it lies in a git work tree that has one."""
    if shutil.which("git") is None:
        return None
    commit = _run("git", "-C", str(SOURCE), "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": _run("git", "-C", str(SOURCE), "status", "--porcelain") is not None}


def _accelerators() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    names = _run("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return names.splitlines() if names else []


@cache
def _packages() -> dict[str, str]:
    facts = [distribution.metadata for distribution in metadata.distributions()]
    found = {fact["Name"]: fact["Version"] for fact in facts if fact["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def describe(seed: int) -> dict[str, Any]:
    """All that a reader of the report needs to compare machines. No host or user names."""
    packages = _packages()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "ikirere": __version__,
        "python": platform.python_version(),
        "torch": packages.get("torch"),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": usable,
        "memory_bytes": psutil.virtual_memory().total,
        "accelerators": _accelerators(),
        "packages": packages,
        "seed": seed,
        "git": _commit(),
    }


def made_in() -> dict[str, Any]:
    """The few facts of the surroundings that can change a result's bits; kept with each result."""
    packages = _packages()
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "accelerators": _accelerators(),
        **{name: packages.get(name) for name in ("torch", "numpy", "tokenizers", "sentencepiece", "pyarrow")},
    }
