"""JSON lines: one document per row."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from ikirere.corpus.document import Document
from ikirere.corpus.readers.formats.compressed import BREAKS, TRUNCATED, UNREADABLE, open_bytes, why
from ikirere.corpus.readers.formats.rows import RowMapper
from ikirere.corpus.readers.text import (
    BAD_ROW,
    EMPTY,
    LARGEST,
    TOO_LONG_LINE,
    UNDECODABLE,
    Skipped,
    marked_encoding,
)

_UTF8_MARK = b"\xef\xbb\xbf"
_CHUNK = 1 << 16


def jsonl_documents(
    path: Path, shown: str, mapper: RowMapper, skipped: Skipped, largest: int = LARGEST
) -> Iterator[Document]:
    """Documents of a file of JSON lines, one line in memory at a time.

    Skipped and reported under file:line: a line that is no JSON object (`bad-row`) or no Unicode (`undecodable`), a line
    of more than `largest` bytes, which is never held whole (`too-long-line`), a last line that breaks off and the
    point where a compressed file does (`truncated`). A file without rows is `empty`. UTF-8, or UTF-16 and UTF-32 with
    a byte-order mark.
    """
    number = 0
    rows = False
    try:
        with open_bytes(path) as handle:
            for line in _lines(handle, largest):
                number += 1
                where = f"{shown}:{number}"
                if line is None:
                    rows = True
                    skipped(where, TOO_LONG_LINE)
                elif line.strip():
                    rows = True
                    row, reason = _row(line)
                    if reason is not None:
                        skipped(where, reason)
                    elif document := mapper.document(row, where, shown, skipped):
                        yield document
    except UnicodeDecodeError:
        skipped(f"{shown}:{number + 1}", UNDECODABLE)
    except BREAKS as error:
        reason = why(error)
        skipped(shown if reason == UNREADABLE and not number else f"{shown}:{number + 1}", reason)
    else:
        if not rows:
            skipped(shown, EMPTY)


def _row(line: bytes) -> tuple[dict[str, Any], str | None]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return {}, UNDECODABLE
    except (ValueError, RecursionError):
        # Only a file's last line has no end; what is no JSON there is what a stopped writer left.
        return {}, BAD_ROW if line.endswith(b"\n") else TRUNCATED
    return (row, None) if isinstance(row, dict) else ({}, BAD_ROW)


def _lines(handle: BufferedIOBase, largest: int) -> Iterator[bytes | None]:
    """Lines with their ends, in UTF-8; None for one of more than `largest` bytes."""
    read: Callable[[int], bytes] = handle.readline
    first = read(largest + 1)
    if encoding := marked_encoding(first[:4]):
        # A line end of these encodings is not the byte that `readline` looks for.
        whole: Any = _Rejoined(first, handle)
        text = io.TextIOWrapper(io.BufferedReader(whole), encoding, newline="\n")

        def read(size: int) -> bytes:
            return text.readline(size).encode("utf-8", "surrogatepass")

        first = read(largest + 1)
    line = first.removeprefix(_UTF8_MARK)
    while line:
        if len(line) > largest and not line.endswith(b"\n"):
            while (rest := read(_CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line
        line = read(largest + 1)


class _Rejoined(io.RawIOBase):
    """A stream of which the first bytes have been read already."""

    def __init__(self, first: bytes, rest: BufferedIOBase) -> None:
        self.first, self.rest = first, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self.first[: len(buffer)] or self.rest.read(len(buffer))
        self.first = self.first[len(chunk) :]
        buffer[: len(chunk)] = chunk
        return len(chunk)
