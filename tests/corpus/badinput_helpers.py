"""What the tests of bad input share: a reader that reports what it skipped, and a folder with one good file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ikirere.corpus.document import Document
from ikirere.corpus.readers import open_source
from ikirere.recipe.data import Source

Skips = list[tuple[str, str]]


def config(folder: Path, **fields: Any) -> Source:
    source: Source = TypeAdapter(Source).validate_python(
        {"kind": "local", "name": "n", "domain": "d", "path": str(folder)} | fields
    )
    return source


def read(folder: Path, **fields: Any) -> tuple[list[Document], Skips]:
    skipped: Skips = []
    documents = list(open_source(config(folder, **fields), folder, lambda *found: skipped.append(found)))
    return documents, skipped


def with_a_good_file(folder: Path) -> Path:
    """With one good file, so that the source has a document."""
    (folder / "good.txt").write_text("good\n")
    return folder
