"""JSON lines: one document per row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ikirere.data.document import Document
from ikirere.data.sources.local import LocalSource, RowMapper
from ikirere.data.sources.text import BAD_ROW, UNREADABLE, Skipped


def jsonl_documents(path: Path, shown: str, mapper: RowMapper, skipped: Skipped) -> Iterator[Document]:
    """Lines that are no JSON object are skipped and counted under file:line."""
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                place = f"{shown}:{number}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict):
                    skipped(place, BAD_ROW)
                elif document := mapper.document(row, place, shown, skipped):
                    yield document
    except OSError:
        skipped(shown, UNREADABLE)


class JsonlSource(LocalSource):
    """A file of any ending read as JSON lines, or the `.jsonl` and `.ndjson` files of a folder."""

    only = (".jsonl", ".ndjson")

    def _forced(self) -> str:
        return ".jsonl"
