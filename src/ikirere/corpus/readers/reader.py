"""What a reader of a source is, and where in a source one stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from ikirere.corpus.document import Document
from ikirere.corpus.readers.text import Skipped
from ikirere.errors import UserError

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """How far a source has been read.

    documents, n_bytes: documents and their UTF-8 bytes behind the place. row: rows of the underlying stream behind it,
    where the reader can begin at a row; None where it must read past what is behind.
    """

    documents: int = 0
    n_bytes: int = 0
    row: int | None = None


class Reader(Protocol):
    """row: what `Place.row` would be behind the document given last; None where the reader counts no rows."""

    row: int | None

    def documents(self, skipped: Skipped, say: Say, start: int | Place = 0) -> Iterator[Document]: ...
    def fingerprint(self) -> str: ...
    def size(self) -> int: ...


def count(start: int | Place) -> int:
    """Documents behind a start."""
    return start if isinstance(start, int) else start.documents


def fewer(name: str, found: int, wanted: int) -> UserError:
    """The error of a source that has shrunk since it was read."""
    return UserError(
        f"data.sources ({name}): has {found} documents, but {wanted} were read before: what it reads or its keys have "
        "changed; read it from its beginning"
    )


def onward(
    read: Callable[[Skipped], Iterator[Document]], skipped: Skipped, start: int | Place
) -> Iterator[Document]:
    """What `read` yields from the start-th document on, by reading past the earlier ones.

    What is skipped on the way to them is not told again: to the caller that took the earlier documents it was told
    before it took the last of them. Raises UserError where there are fewer documents than `start`.
    """
    wanted = count(start)
    loud = not wanted

    def tell(path: str, reason: str) -> None:
        if loud:
            skipped(path, reason)

    stream = read(tell)
    past = sum(1 for _ in islice(stream, wanted))
    if past < wanted:
        raise fewer("the source", past, wanted)
    loud = True
    yield from stream
