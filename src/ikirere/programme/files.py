"""Whole files or none: atomic writes, hashes, and the files behind an artifact's name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

BLOCK = 1 << 20


def write_text(path: Path, text: str) -> None:
    """Write `path` whole or not at all, and leave it on the disk before returning."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, as_json(value))


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable; file systems that cannot are left alone."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)


def sha256_of(path: Path, sync: bool = False) -> tuple[str, int]:
    """(hex digest, bytes) of a file; with `sync` its bytes are on the disk afterwards."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
            size += len(block)
        if sync:
            os.fsync(handle.fileno())
    return digest.hexdigest(), size


def expand(folder: Path, names: list[str]) -> list[str]:
    """The files behind artifact names (a folder stands for all files below it), sorted, each once.

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
    """[{path, sha256, bytes}] of all files behind `names`, each made durable."""
    rows = []
    for name in expand(folder, names):
        digest, size = sha256_of(folder / name, sync=True)
        rows.append({"path": name, "sha256": digest, "bytes": size})
    return rows


def empty(folder: Path) -> None:
    """Remove all that is below `folder`, which stays."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def free_bytes(path: Path) -> int:
    """Bytes free to this user on the file system of `path` or of its nearest existing parent."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
