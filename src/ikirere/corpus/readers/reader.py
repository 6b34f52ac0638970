"""What a reader of a source is, and how far a source has been read."""

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
class SourcePosition:
    """How far a source has been read.

    documents, n_bytes: documents and their UTF-8 bytes before the position. row: rows of the underlying stream before it,
    where the reader can begin at a row; None where it has to read them again.
    """

    documents: int = 0
    n_bytes: int = 0
    row: int | None = None


class Reader(Protocol):
    """row: what `SourcePosition.row` would be after the document given last; None where the reader counts no rows.

    of_machine: whether what it reads belongs to the machine (installed packages, the interpreter), so that a change
    marks what was made of it and does not outdate it. fingerprint: of the names and contents of the files that it
    reads, empty ones left out; of such a machine its packages.
    """

    row: int | None

    @property
    def of_machine(self) -> bool: ...

    def documents(
        self, skipped: Skipped, say: Say, start: int | SourcePosition = 0
    ) -> Iterator[Document]: ...
    def fingerprint(self) -> str: ...
    def size(self) -> int: ...


def count(start: int | SourcePosition) -> int:
    """Documents before a start."""
    return start if isinstance(start, int) else start.documents


def source_shrank(name: str, found: int, wanted: int) -> UserError:
    """The error of a source that has shrunk since it was read."""
    return UserError(
        f"data.sources ({name}): has {found} documents, but {wanted} were read before: what it reads or its keys have "
        "changed; read it from its beginning"
    )


def resume_after(
    read: Callable[[Skipped], Iterator[Document]], skipped: Skipped, start: int | SourcePosition
) -> Iterator[Document]:
    """What `read` yields from the start-th document on, by reading past the earlier ones.

    What is skipped before them is not reported again: it was when the earlier documents were read. Raises UserError
    where there are fewer documents than `start`.
    """
    wanted = count(start)
    loud = not wanted

    def report(path: str, reason: str) -> None:
        if loud:
            skipped(path, reason)

    stream = read(report)
    past = sum(1 for _ in islice(stream, wanted))
    if past < wanted:
        raise source_shrank("the source", past, wanted)
    loud = True
    yield from stream
