"""Where documents come from: one small class per kind.

A reader is made of its section of the recipe and the recipe's folder. `documents(skipped, say, start)` yields documents
in an order that only depends on what is read, from the `start`-th on, and calls `skipped(path, reason)` for what it
cannot use. `fingerprint()` changes when what it would yield may change. `size()` estimates the bytes to come, for
progress.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from ikirere.corpus.document import Document
from ikirere.corpus.readers.reader import Place, Reader, Say, fewer
from ikirere.corpus.readers.text import Skipped
from ikirere.errors import UserError
from ikirere.recipe.data import Source

__all__ = [
    "SOURCES",
    "Place",
    "Reader",
    "Reading",
    "Say",
    "Skipped",
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
    """The documents of a source, and the place behind the one given last. Raises UserError naming a source that
    yields nothing, and what its reader raises."""

    def __init__(
        self, config: Source, recipe_folder: Path, skipped: Skipped, say: Say, start: int | Place
    ) -> None:
        self.config = config
        self.place = Place() if isinstance(start, int) else start
        self._made = (config, recipe_folder, skipped, say, start)
        self._stream: Iterator[Document] | None = None

    def __next__(self) -> Document:
        if self._stream is None:
            self._stream = self._read(*self._made)
        return next(self._stream)

    def _read(
        self, config: Source, recipe_folder: Path, skipped: Skipped, say: Say, start: int | Place
    ) -> Iterator[Document]:
        # Of a number alone the bytes that count towards the limit are not known: the documents are read anew.
        behind, past = start if isinstance(start, int) else 0, 0

        def tell(path: str, reason: str) -> None:
            if past == behind:
                skipped(path, reason)

        def full() -> bool:
            return config.max_bytes is not None and self.place.n_bytes >= config.max_bytes

        if full():
            return
        made = reader(config, recipe_folder)
        for document in made.documents(tell, say, start if isinstance(start, Place) else 0):
            self.place = Place(self.place.documents + 1, self.place.n_bytes + document.n_bytes, made.row)
            if past < behind:
                past += 1
            else:
                yield document
            if full():
                break
        if past < behind:
            raise fewer(config.name, past, behind)
        if not self.place.documents:
            raise UserError(
                f"data.sources: source {config.name!r} ({config.kind}) gave no document; check its path or filters"
            )


def open_source(
    config: Source,
    recipe_folder: Path,
    skipped: Skipped,
    say: Say = lambda line: None,
    start: int | Place = 0,
) -> Reading:
    """Documents of a source, at most `max_bytes` of text (the document that reaches the limit is the last).

    start: documents to leave out, or the `place` of an earlier reading, which goes there without reading what is
    behind where the kind can. What follows, the limit and the calls of `skipped` are then those of a reading that was
    not interrupted: what was skipped before the last document behind the start is not told again.
    Raises UserError naming the source when it yields nothing or fewer documents than `start`, and what the reader
    raises.
    """
    return Reading(config, recipe_folder, skipped, say, start)


def fingerprint(config: Source, recipe_folder: Path) -> str:
    """Of what the source reads from outside; the recipe's own keys are not part of it."""
    return reader(config, recipe_folder).fingerprint()


def size(config: Source, recipe_folder: Path) -> int:
    """Bytes of text to expect, roughly."""
    whole = reader(config, recipe_folder).size()
    return whole if config.max_bytes is None else min(whole, config.max_bytes) if whole else config.max_bytes
