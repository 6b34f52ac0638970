"""Hashes of files outside the run folder, by content.

A file is read once as long as its path, size and time of change stay: within a process for all files, over processes for
those of LARGE bytes and more, in `ikirere/sha256.jsonl` of the user's cache folder. What cannot be kept there is read
again.
"""

from __future__ import annotations

import contextlib
import json
import os
from functools import cache, lru_cache
from pathlib import Path

from ikirere.common.files import file_sha256

LARGE = 64_000_000


def content_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes. OSError is passed on."""
    stat = path.stat()
    return _hashed(os.path.realpath(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=65_536)
def _hashed(path: str, size: int, changed: int) -> str:
    if size < LARGE:
        return file_sha256(Path(path))
    store = _store()
    known = _kept(store)
    entry = path, size, changed
    if entry not in known:
        known[entry] = file_sha256(Path(path))
        with contextlib.suppress(OSError):
            store.parent.mkdir(parents=True, exist_ok=True)
            with store.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps([*entry, known[entry]]) + "\n")
    return known[entry]


def _store() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path("~/.cache").expanduser()) / "ikirere" / "sha256.jsonl"


@cache
def _kept(store: Path) -> dict[tuple[str, int, int], str]:
    """What earlier processes hashed; lines that a kill cut short are left out."""
    known: dict[tuple[str, int, int], str] = {}
    with contextlib.suppress(OSError):
        for line in store.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                path, size, changed, sha256 = json.loads(line)
                known[path, size, changed] = sha256
    return known
