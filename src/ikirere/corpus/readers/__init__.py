"""Where documents come from: one small class per kind.

A reader is built from its section of the recipe and the recipe's folder. `documents(skipped, say, start)` yields documents
in an order that only depends on what is read, from the `start`-th on, and calls `skipped(path, reason)` for what it
cannot use. `fingerprint()` changes when what it would yield may change. `size()` estimates the bytes to come, for
progress.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from ikirere.corpus.document import Document
from ikirere.corpus.readers.reader import Reader, Say, SourcePosition, source_shrank
from ikirere.corpus.readers.text import Skipped
from ikirere.errors import UserError
from ikirere.recipe.data import Source

__all__ = [
    "SOURCES",
    "Reader",
    "Reading",
    "Say",
    "Skipped",
    "SourcePosition",
    "fingerprint",
    "open_source",
    "reader",
    "size",
]

SOURCES = {
    "python-environment": "ikirere.corpus.readers.python_environment:PythonEnvironmentSource",
    "local": "ikirere.corpus.readers.local:LocalSource",
    "jsonl": "ikirere.corpus.readers.local:JsonlSource",
    "parquet": "ikirere.corpus.readers.local:ParquetSource",
    "hub": "ikirere.corpus.readers.hub:HubSource",
    "arc": "ikirere.corpus.readers.arc:ArcSource",
    "puzzles": "ikirere.corpus.readers.puzzles.source:PuzzleSource",
}


def reader(config: Source, recipe_folder: Path) -> Reader:
    """The reader of a source. Raises UserError for a path or variable that is not there."""
    module, name = SOURCES[config.kind].split(":")
    made: Reader = getattr(importlib.import_module(module), name)(config, recipe_folder)
    return made


class Reading(Iterator[Document]):
    """The documents of a source; `position` is after the one given last. Raises UserError naming a source that
    yields nothing, and what its reader raises."""

    def __init__(
        self, config: Source, recipe_folder: Path, skipped: Skipped, say: Say, start: int | SourcePosition
    ) -> None:
        self.config = config
        self.position = SourcePosition() if isinstance(start, int) else start
        self._made = (config, recipe_folder, skipped, say, start)
        self._stream: Iterator[Document] | None = None

    def __next__(self) -> Document:
        if self._stream is None:
            self._stream = self._read(*self._made)
        return next(self._stream)

    def _read(
        self, config: Source, recipe_folder: Path, skipped: Skipped, say: Say, start: int | SourcePosition
    ) -> Iterator[Document]:
        # Of a number alone the bytes that count towards the limit are not known: the documents are read again.
        wanted, past = start if isinstance(start, int) else 0, 0

        def report(path: str, reason: str) -> None:
            if past == wanted:
                skipped(path, reason)

        def full() -> bool:
            return config.max_bytes is not None and self.position.n_bytes >= config.max_bytes

        if full():
            return
        made = reader(config, recipe_folder)
        for document in made.documents(report, say, start if isinstance(start, SourcePosition) else 0):
            self.position = SourcePosition(
                self.position.documents + 1, self.position.n_bytes + document.n_bytes, made.row
            )
            if past < wanted:
                past += 1
            else:
                yield document
            if full():
                break
        if past < wanted:
            raise source_shrank(config.name, past, wanted)
        if not self.position.documents:
            raise UserError(
                f"data.sources: source {config.name!r} ({config.kind}) gave no document; check its path or filters"
            )


def open_source(
    config: Source,
    recipe_folder: Path,
    skipped: Skipped,
    say: Say = lambda line: None,
    start: int | SourcePosition = 0,
) -> Reading:
    """Documents of a source, at most `max_bytes` of text (the document that reaches the limit is the last).

    start: documents to leave out, or the `position` of an earlier reading; sources that can continue there do not read
    what is before it. What follows, the limit and the calls of `skipped` are then those of a reading that was not
    interrupted: what was skipped before the start is not reported again.
    Raises UserError naming the source when it yields nothing or fewer documents than `start`, and what the reader
    raises.
    """
    return Reading(config, recipe_folder, skipped, say, start)


def fingerprint(config: Source, recipe_folder: Path) -> str:
    """Hash of the external inputs that the source reads; the recipe's own keys are not part of it."""
    return reader(config, recipe_folder).fingerprint()


def size(config: Source, recipe_folder: Path) -> int:
    """Bytes of text to expect, roughly."""
    whole = reader(config, recipe_folder).size()
    return whole if config.max_bytes is None else min(whole, config.max_bytes) if whole else config.max_bytes
