"""The files that an artifact's name stands for, their sizes and hashes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ikirere.common.files import file_sha256, sync_file


def expand(folder: Path, names: list[str]) -> list[str]:
    """The files that artifact names stand for (a folder stands for all files below it), sorted, each once.

    Raises ValueError for a name outside `folder`, FileNotFoundError for one that is not there.
    """
    root = folder.resolve()
    found: set[str] = set()
    for name in names:
        path = (folder / name).resolve()
        if path != root and root not in path.parents:
            raise ValueError(f"artifact {name!r} lies outside the stage's folder {folder}")
        if path.is_dir():
            found.update(str(p.relative_to(root)) for p in path.rglob("*") if p.is_file())
        elif path.is_file():
            found.add(str(path.relative_to(root)))
        else:
            raise FileNotFoundError(f"artifact {name!r} was named by the stage but is not in {folder}")
    return sorted(found)


def describe(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """[{path, sha256, bytes}] of all files that `names` stand for, each made durable."""
    rows = []
    for name in expand(folder, names):
        path = folder / name
        sync_file(path)
        rows.append({"path": name, "sha256": file_sha256(path), "bytes": path.stat().st_size})
    return rows


def empty(folder: Path) -> None:
    """Remove all that is below `folder`, which stays."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
