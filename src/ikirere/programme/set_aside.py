"""Results that are outdated: moved to `RUN/set-aside/`, under a name that describes them, and never deleted unasked.

A folder comes back from there when the recipe asks again for what it was made with. `ikirere clean RUN` removes them.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ikirere.common.checkpoints import catalogue
from ikirere.common.files import PART, sync_folder
from ikirere.programme.identity import Record, read_record

FOLDER = "set-aside"


@dataclass(frozen=True)
class Aside:
    """A folder that was set aside. step, tokens: of its newest checkpoint; None where it has none."""

    path: Path
    stage: str
    step: int | None
    tokens: int | None
    bytes: int
    record: Record | None

    @property
    def finished(self) -> bool:
        return self.record is not None and self.record.finished is not None

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "stage": self.stage,
            "step": self.step,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "finished": self.finished,
        }


def name_of(folder: Path) -> str:
    """`pretrain.step-20000.tokens-3.28G.key-ab12cd34` of a stage's folder."""
    parts = [folder.name]
    if checkpoints := catalogue(folder):
        newest = checkpoints[-1]
        parts.append(f"step-{newest.step}")
        if newest.tokens:
            parts.append(f"tokens-{_short(newest.tokens)}")
    record = read_record(folder)
    parts.append(f"key-{record.base[:8]}" if record else "key-unknown")
    return ".".join(parts)


def _short(tokens: int) -> str:
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= scale:
            return f"{tokens / scale:.3g}{letter}"
    return str(tokens)


def _free_path(run_folder: Path, name: str) -> Path:
    path = run_folder / FOLDER / name
    number = 2
    while path.exists():
        path = run_folder / FOLDER / f"{name}.{number}"
        number += 1
    return path


def put_aside(folder: Path) -> Path:
    """Move a stage's folder out of the way; where it went. One rename, so a kill leaves it here or there."""
    target = _free_path(folder.parent, name_of(folder))
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)
    sync_folder(target.parent)
    sync_folder(folder.parent)
    return target


def copy_aside(folder: Path) -> Path:
    """A copy of a stage's folder, for a training that continues from it; returns where it is.

    Files are linked, not copied, where the file system can: stages replace files and never write into them, but for
    logs, which are copied.
    """
    target = _free_path(folder.parent, name_of(folder))
    part = target.with_name(target.name + PART)
    shutil.rmtree(part, ignore_errors=True)

    def copy(source: str, destination: str) -> None:
        if not source.endswith((".jsonl", ".log")):
            try:
                os.link(source, destination)
                return
            except OSError:
                pass
        shutil.copy2(source, destination)

    shutil.copytree(folder, part, copy_function=copy)
    part.rename(target)
    sync_folder(target.parent)
    return target


def entries(run_folder: Path) -> list[Aside]:
    """All that a run has set aside, oldest first."""
    top = run_folder / FOLDER
    if not top.is_dir():
        return []
    found = []
    paths = [path for path in top.iterdir() if path.is_dir() and not path.name.endswith(PART)]
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name)):
        checkpoints = catalogue(path)
        newest = checkpoints[-1] if checkpoints else None
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        record = read_record(path)
        stage = record.stage if record else path.name.split(".")[0]
        step, tokens = (newest.step, newest.tokens) if newest else (None, None)
        found.append(Aside(path, stage, step, tokens, size, record))
    return found


def find(run_folder: Path, stage: str, base: str) -> Aside | None:
    """What was set aside of a stage and was made with these settings: a finished result, else the farthest training."""
    fitting = [a for a in entries(run_folder) if a.stage == stage and a.record and a.record.base == base]
    return max(fitting, key=lambda a: (a.finished, a.step or 0), default=None)


def restore(aside: Aside, folder: Path) -> None:
    """Move a folder that was set aside back; `folder` must not exist."""
    aside.path.rename(folder)
    sync_folder(folder.parent)


def remove(asides: list[Aside]) -> None:
    """Delete what was set aside. Callers ask first."""
    for aside in asides:
        shutil.rmtree(aside.path)
