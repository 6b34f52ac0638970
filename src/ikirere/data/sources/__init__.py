"""Where documents come from: one small class per kind.

A reader is made of its section of the recipe and the recipe's folder. `documents(skipped)` yields documents in an
order that only depends on what is read, and calls `skipped(path, reason)` for what it cannot use. `fingerprint()`
changes when what it would yield may change. `size()` estimates the bytes to come, for progress.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from ikirere.data.document import Document
from ikirere.errors import UserError
from ikirere.recipe.sections import Source

Skipped = Callable[[str, str], None]
Say = Callable[[str], None]

SOURCES = {
    "python-environment": "ikirere.data.sources.python_environment:PythonEnvironmentSource",
    "local": "ikirere.data.sources.local:LocalSource",
    "jsonl": "ikirere.data.sources.jsonl:JsonlSource",
    "parquet": "ikirere.data.sources.parquet:ParquetSource",
    "hub": "ikirere.data.sources.hub:HubSource",
}


class Reader(Protocol):
    def documents(self, skipped: Skipped, say: Say) -> Iterator[Document]: ...
    def fingerprint(self) -> str: ...
    def size(self) -> int: ...


def reader(config: Source, recipe_folder: Path) -> Reader:
    """The reader of a source. Raises UserError for a path or variable that is not there."""
    module, name = SOURCES[config.kind].split(":")
    made: Reader = getattr(importlib.import_module(module), name)(config, recipe_folder)
    return made


def open_source(
    config: Source, recipe_folder: Path, skipped: Skipped, say: Say = lambda line: None
) -> Iterator[Document]:
    """Documents of a source, at most `max_bytes` of text (the document that reaches the limit is the last).

    Raises UserError naming the source when it yields nothing, and what the reader raises.
    """
    total = count = 0
    for document in reader(config, recipe_folder).documents(skipped, say):
        yield document
        count += 1
        total += document.n_bytes
        if config.max_bytes is not None and total >= config.max_bytes:
            break
    if not count:
        raise UserError(
            f"data.sources: source {config.name!r} ({config.kind}) gave no document; check its path or filters"
        )


def fingerprint(config: Source, recipe_folder: Path) -> str:
    """Of what the source reads from outside; the recipe's own keys are not part of it."""
    return reader(config, recipe_folder).fingerprint()


def size(config: Source, recipe_folder: Path) -> int:
    """Bytes of text to expect, roughly."""
    whole = reader(config, recipe_folder).size()
    return whole if config.max_bytes is None else min(whole, config.max_bytes) if whole else config.max_bytes
