"""Files written whole or not at all, JSON in one form, and hashes.

A file gets its final name only when its bytes are on the disk: written beside it under `<name>.part`, fsynced, renamed,
and the folder fsynced. After a kill or a full disk the old file, or none, is under the final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ikirere.errors import UserError

PART = ".part"  # ending of what is not complete yet


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write a file at, which gets the name `path` when the block ends without an error.

    The folder must exist. OSError is passed on; no temporary file is left then.
    """
    temporary = path.with_name(path.name + PART)
    try:
        yield temporary
        sync_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A handle ("w": UTF-8 text, "wb": bytes) of `atomic_path`."""
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as temporary, temporary.open(mode, encoding=encoding) as handle:
        yield handle


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which gets the name `path` when the block ends without an error.

    Every file in it is fsynced first. What had the name before is removed at the end. After a kill `<path>.part` may be
    left; the next call removes it.
    """
    temporary = path.with_name(path.name + PART)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                sync_file(file)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes `path` whole or not at all; on the disk before it returns."""
    with atomic(path) as handle:
        handle.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `path` whole or not at all; on the disk before it returns."""
    with atomic(path, "wb") as handle:
        handle.write(data)


def as_json(value: Any) -> str:
    """JSON for files that people read: indented, keys sorted."""
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Writes `as_json(value)` whole or not at all."""
    write_text(path, as_json(value))


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises UserError naming the file where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines, whole or not at all."""
    with atomic(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def iterate_rows(path: Path, blank_lines: bool = False) -> Iterator[tuple[int, Any]]:
    """(line number, row) of a JSON-lines file, one line in memory at a time. blank_lines: skip them.

    Raises UserError naming file and line, for a blank line too unless `blank_lines`.
    """
    try:
        with path.open(encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if blank_lines and not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}:{number}: not JSON ({error})") from None
                yield number, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file. Raises UserError naming file and line."""
    return [row for _, row in iterate_rows(path)]


def canonical_json(value: Any) -> str:
    """The one text of a value that hashes are taken of: keys sorted, tuples as lists. Raises TypeError for what JSON
    cannot hold."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def json_sha256(value: Any) -> str:
    """Hex sha256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes. OSError is passed on."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Makes a file's bytes durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable; file systems that cannot sync folders are left alone."""
    try:
        sync_file(folder)
    except OSError:
        return


def free_bytes(path: Path) -> int:
    """Bytes free to this user on the file system of `path` or of its nearest existing parent."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
