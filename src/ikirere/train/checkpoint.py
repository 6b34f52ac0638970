"""Checkpoints that are either complete or absent.

A checkpoint is a folder `step-000400/`: tensors as torch.distributed.checkpoint writes them, `state-<rank>.json`
with everything else (data position, random states, counters), and `files.json`: step, tokens, loss, purpose, the key of the
settings (`config`), the sha256 of every other file and of itself. It is written under a temporary name, flushed to the
disk and then renamed. `common.checkpoints.catalogue` lists those of a folder.

Hashes find accidents (a torn write, a bad disk, an edit), not an adversary, who would hash again; and
torch.distributed.checkpoint's index is a pickle. Load only checkpoints of your own.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ikirere.common.checkpoints import LISTING, NAME, catalogue
from ikirere.common.files import PART, file_sha256, json_sha256, sync_file, sync_folder, write_text
from ikirere.errors import UserError

MILESTONE, LAST = "milestone ", "last"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def name_of(step: int) -> str:
    """Folder name of the checkpoint after `step` optimiser steps."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int:
    """Inverse of `name_of`. Raises ValueError for another name."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name} is not the name of a checkpoint")
    return int(match[1])


def save(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    key: str,
    keep: int,
    tokens: int | None = None,
    loss: float | None = None,
    purpose: str = "",
) -> Path:
    """Writes `folder/step-…`, then prunes to the newest `keep`. Every rank calls it.

    tensors: this rank's, sharded ones as DTensor. state: JSON-able, this rank's own. key: of the settings; tokens,
    loss and purpose ("milestone <name>", "last", "") are for people and for `prune`.
    Raises UserError naming the folder where the disk is full; nothing is left of the attempt then.
    """
    rank, world = _ranks()
    part = folder / (name_of(step) + PART)
    listed = {"step": step, "config": key, "tokens": tokens, "loss": loss, "purpose": purpose}
    try:
        with full_disk_is_users(folder):
            if rank == 0:
                _check_free_space(folder, tensors)
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
            _barrier()
            write_text(part / f"state-{rank}.json", json.dumps(state))
            with _dcp() as dcp:
                writer = dcp.FileSystemWriter(part)
                dcp.save(dict(tensors), storage_writer=writer, no_dist=world == 1)
            _barrier()
            if rank == 0:
                _seal(part, listed)
                _swap(part, folder / name_of(step))
    except BaseException:
        if rank == 0:
            shutil.rmtree(part, ignore_errors=True)
        raise
    if rank == 0:
        prune(folder, keep)
    _barrier()
    return folder / name_of(step)


def prune(folder: Path, keep: int) -> None:
    """Removes checkpoints. What stays: those of milestones and the newest `keep` besides them; the last one of every
    key, which is where `--go-on` changed the settings; and what was set aside."""
    found = catalogue(folder)
    ordinary = [info for info in found if not info.purpose.startswith(MILESTONE)]
    last = {info.path for info in {info.key: info for info in found if info.key}.values()}
    for info in ordinary[:-keep]:
        if info.path not in last:
            # A kill on the way leaves nothing under a checkpoint's name.
            part = info.path.rename(info.path.with_name(info.path.name + PART))
            shutil.rmtree(part)


def load(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Fills `tensors` in place from a checkpoint that `latest_valid` gave; returns this rank's state.

    A rank that the writing run did not have gets the state of rank 0 (random states then repeat).
    """
    rank, world = _ranks()
    with _dcp() as dcp:
        dcp.load(dict(tensors), storage_reader=dcp.FileSystemReader(path), no_dist=world == 1)
    own = path / f"state-{rank}.json"
    state: dict[str, Any] = json.loads((own if own.exists() else path / "state-0.json").read_bytes())
    return state


def latest_valid(
    folder: Path, say: Callable[[str], None] = lambda line: None, keys: Collection[str] | None = None
) -> Path | None:
    """The newest checkpoint whose every byte is as it was written; None where there is none.

    Torn and altered ones, and those whose key is not among `keys` (None: any key), are set aside under another name,
    each with a line that names them. Leftovers of a killed write are removed. With several ranks, rank 0 searches and
    broadcasts its result.
    """
    found: list[Path | None] = [_latest(folder, say, keys) if _ranks()[0] == 0 else None]
    if _ranks()[1] > 1:
        dist.broadcast_object_list(found)
    return found[0]


def _latest(folder: Path, say: Callable[[str], None], keys: Collection[str] | None) -> Path | None:
    for leftover in folder.glob(f"step-*{PART}"):
        shutil.rmtree(leftover)
    for info in reversed(catalogue(folder)):
        if fault := fault_of(info.path):
            aside = _set_aside(info.path, "refused")
            say(f"checkpoint {info.path.name} refused: {fault}; kept as {aside.name}, trying the one before")
        elif keys is not None and info.key not in keys:
            aside = _set_aside(info.path, f"of-{info.key[:8] or 'none'}")
            say(
                f"checkpoint {info.path.name} belongs to another configuration; kept as {aside.name}, not used"
            )
        else:
            return info.path
    return None


def _set_aside(path: Path, why: str) -> Path:
    """Renames a checkpoint to an unused name, so that later ones, which may reach its step again, can take its own."""
    aside, number = path.with_name(f"{path.name}.{why}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{why}-{number}")
    return path.rename(aside)


def fault_of(path: Path) -> str:
    """What is wrong with a checkpoint, naming the file; '' where nothing is."""
    try:
        listed = json.loads((path / LISTING).read_bytes())
        own, files, step = listed.pop("sha256"), dict(listed["files"]), listed["step"]
    except OSError as error:
        return f"{LISTING} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{LISTING} is torn or altered"
    if own != json_sha256(listed) or step != step_of(path):
        return f"{LISTING} is altered"
    for name, expected in files.items():
        try:
            if file_sha256(path / name) != expected:
                return f"{name} is torn or altered (sha256 differs)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    if extra := sorted({p.name for p in path.iterdir()} - set(files) - {LISTING}):
        return f"{extra[0]} is not a part of it"
    return ""


def key_of(path: Path) -> str:
    """The key of the settings that a valid checkpoint was made with."""
    return str(json.loads((path / LISTING).read_bytes())["config"])


@contextmanager
def full_disk_is_users(folder: Path) -> Iterator[None]:
    """Raises a UserError that names the folder for a full disk, quota or file size limit."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _is_disk_full(error):
            raise
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        raise UserError(
            f"{folder}: no space left to write ({free / 1e6:.1f} MB free); free some space and run the same command "
            "again, it continues from the last checkpoint"
        ) from error


def _is_disk_full(error: BaseException) -> bool:
    """Whether a full disk is the cause: libraries wrap OSError, or report the failed write only."""
    seen: list[BaseException] = [error]
    for one in seen:
        if isinstance(one, OSError) and one.errno in _DISK_FULL:
            return True
        if "No space left" in str(one) or "file write failed" in str(one):
            return True
        failures = getattr(one, "failures", {})
        inner = [one.__cause__, one.__context__, *(getattr(f, "exc_value", f) for f in failures.values())]
        for wrapped in inner:
            wrapped = wrapped[0] if isinstance(wrapped, tuple) else wrapped
            if isinstance(wrapped, BaseException) and wrapped not in seen:
                seen.append(wrapped)
    return False


@contextmanager
def _dcp() -> Iterator[Any]:
    """torch.distributed.checkpoint, imported only when needed (two seconds), without its warning that
    torch.distributed is off."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield dcp
        except (
            dcp.CheckpointException
        ) as error:  # a BaseException: callers that catch Exception would miss it
            raise RuntimeError(str(error)) from error


def _check_free_space(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Raises OSError (ENOSPC) where the tensors' bytes exceed the free space of the folder's file system."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _seal(part: Path, listed: dict[str, Any]) -> None:
    """Fsyncs and hashes all files and writes the listing."""
    names = sorted(p.name for p in part.iterdir())
    for name in names:
        sync_file(part / name)
    listed = {**listed, "files": {name: file_sha256(part / name) for name in names}}
    write_text(part / LISTING, json.dumps({**listed, "sha256": json_sha256(listed)}, indent=1))


def _swap(part: Path, final: Path) -> None:
    """Gives the folder its final name; what had that name is set aside."""
    if final.exists():
        _set_aside(final, "replaced")
    part.rename(final)
    sync_folder(final.parent)


def _ranks() -> tuple[int, int]:
    """(this rank, number of ranks)."""
    ready = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)


def _barrier() -> None:
    if _ranks()[1] > 1:
        dist.barrier()
