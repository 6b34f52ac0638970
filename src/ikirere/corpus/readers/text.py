"""Bytes to text, and streams interleaved by bytes: what all readers share."""

from __future__ import annotations

import heapq
import io
import tokenize
from collections.abc import Callable, Iterable, Iterator
from io import BufferedIOBase
from pathlib import Path

from ikirere.corpus.document import Document
from ikirere.corpus.readers.formats.compressed import BREAKS, TRUNCATED, UNREADABLE, open_bytes, why

Skipped = Callable[[str, str], None]

BINARY, UNDECODABLE, EMPTY = "binary", "undecodable", "empty"
BAD_ROW = "bad-row"  # a line of JSONL that is no object, or has no text where others have
TOO_LONG, TOO_LONG_LINE = "too-long", "too-long-line"
LINK = "link"  # a symbolic link to what is read under its own name
DAMAGED = (
    BINARY,
    UNDECODABLE,
    UNREADABLE,
    TRUNCATED,
    BAD_ROW,
    TOO_LONG_LINE,
)  # what is reported to the user

LARGEST = 64_000_000  # bytes of a file, a line or a value above which it is left out without being held whole
_CHUNK = 1 << 14  # of a stream that breaks off, what is lost before the break

# Longer marks first: UTF-32's little-endian one begins like UTF-16's.
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def marked_encoding(raw: bytes) -> str | None:
    """The encoding that a byte-order mark names, other than UTF-8."""
    return next((name for mark, name in _MARKS if raw.startswith(mark)), None)


def decode(raw: bytes, python: bool = False) -> tuple[str, str | None]:
    """Text of a file and None, or '' and the reason why it has none.

    UTF-8 with or without byte-order mark, UTF-16 and UTF-32 with one; Python files also in the encoding that they
    declare (PEP 263). A NUL makes a file binary.
    """
    encoding = marked_encoding(raw)
    if encoding is None:
        if b"\0" in raw:
            return "", BINARY
        encoding = "utf-8-sig"
    try:
        text = raw.decode(encoding)
        return ("", BINARY) if "\0" in text else (text, None)
    except UnicodeDecodeError:
        if not python:
            return "", UNDECODABLE
    try:
        return raw.decode(tokenize.detect_encoding(io.BytesIO(raw).readline)[0]), None
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return "", UNDECODABLE


def printable(name: str) -> str:
    """A file name or a row's label as valid Unicode: what is none of it is spelt as an escape."""
    return name.encode("utf-8", "backslashreplace").decode()


def read_text(path: Path, shown: str, skipped: Skipped, largest: int = LARGEST) -> str | None:
    """A file's text, decompressed where it is compressed; None, with the reason reported, where it has none.

    Of a compressed file that breaks off the whole lines before the break are kept, and the break is reported as
    file:line.
    """
    python = path.suffix == ".py" or path.stem.endswith(".py")
    broken = None
    try:
        with open_bytes(path) as handle:
            raw, broken = _read(handle, largest)
    except OSError:
        skipped(shown, UNREADABLE)
        return None
    if len(raw) > largest:
        skipped(shown, TOO_LONG)
        return None
    if broken is not None:
        raw = raw[: raw.rfind(b"\n") + 1]
        skipped(f"{shown}:{raw.count(10) + 1}", broken)
        if not raw.strip():
            return None
    text, reason = decode(raw, python)
    if reason is None and not text.strip():
        reason = EMPTY
    if reason is not None:
        skipped(shown, reason)
        return None
    return text


def _read(handle: BufferedIOBase, largest: int) -> tuple[bytes, str | None]:
    """Bytes up to one more than `largest`, and why the stream broke off where it did."""
    raw = bytearray()
    try:
        while len(raw) <= largest and (chunk := handle.read1(min(_CHUNK, largest + 1 - len(raw)))):
            raw += chunk
    except BREAKS as error:
        return bytes(raw), why(error)
    return bytes(raw), None


def interleave(streams: Iterable[Callable[[], Iterator[Document]]], width: int = 64) -> Iterator[Document]:
    """Documents of many streams, always the one that takes its stream the least far in bytes, so that a limit cuts
    the large ones and not the last ones. At most `width` streams are open at a time, each with one document in
    memory; one that has ended is replaced by the next."""
    waiting = enumerate(streams)
    heads: list[tuple[int, int, Document, Iterator[Document]]] = []

    def refill(given: int) -> None:
        while len(heads) < width and (entry := next(waiting, None)) is not None:
            number, make = entry
            stream = make()
            if (head := next(stream, None)) is not None:
                heapq.heappush(heads, (given + head.n_bytes, number, head, stream))

    refill(0)
    while heads:
        given, number, document, stream = heads[0]
        yield document
        if (head := next(stream, None)) is not None:
            heapq.heapreplace(heads, (given + head.n_bytes, number, head, stream))
        else:
            heapq.heappop(heads)
            refill(given)
