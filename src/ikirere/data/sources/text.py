"""Bytes to text, and iterators dealt fairly: what all readers share."""

from __future__ import annotations

import heapq
import io
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ikirere.data.document import Document

Skipped = Callable[[str, str], None]

BINARY, UNDECODABLE, UNREADABLE, EMPTY = "binary", "undecodable", "unreadable", "empty"
BAD_ROW = "bad-row"  # a line of JSONL that is no object


def decode(raw: bytes, python: bool = False) -> tuple[str, str | None]:
    """Text of a file and None, or '' and the reason why it has none.

    UTF-8 with or without byte-order mark, UTF-16 with one; Python files also in the encoding that they declare
    (PEP 263). A NUL byte makes a file binary.
    """
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in raw:
        return "", BINARY
    else:
        encoding = "utf-8-sig"
    try:
        return raw.decode(encoding), None
    except UnicodeDecodeError:
        if not python:
            return "", UNDECODABLE
    try:
        return raw.decode(tokenize.detect_encoding(io.BytesIO(raw).readline)[0]), None
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return "", UNDECODABLE


def read_text(path: Path, shown: str, skipped: Skipped) -> str | None:
    """A file's text; None, with the reason told, where it has none."""
    try:
        raw = path.read_bytes()
    except OSError:
        skipped(shown, UNREADABLE)
        return None
    text, reason = decode(raw, path.suffix == ".py")
    if reason is None and not text.strip():
        reason = EMPTY
    if reason is not None:
        skipped(shown, reason)
        return None
    return text


def interleave(streams: Iterable[Callable[[], Iterator[Document]]], width: int = 64) -> Iterator[Document]:
    """Documents of many streams, always the one that takes its stream the least far in bytes, so that a limit cuts
    the large ones and not the last ones. At most `width` streams are open at a time, each with one document in
    memory; a spent one makes room for the next."""
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
