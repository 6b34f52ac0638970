"""Parquet files: one document per row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ikirere.data.document import Document
from ikirere.data.sources.local import LocalSource, RowMapper
from ikirere.data.sources.text import UNREADABLE, Skipped

BATCH_ROWS = 16  # rows of books are megabytes each


def parquet_documents(path: Path, shown: str, mapper: RowMapper, skipped: Skipped) -> Iterator[Document]:
    """A file that is damaged or breaks off is skipped from there on, and counted."""
    wanted = {mapper.text_field, mapper.licence_field, mapper.config.group_field, "path", "lang"}
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    if document := mapper.document(row, f"{shown}:{number}", shown, skipped):
                        yield document
    except (OSError, pa.ArrowException):
        skipped(f"{shown}:{number + 1}" if number else shown, UNREADABLE)


class ParquetSource(LocalSource):
    """A file of any ending read as Parquet, or the `.parquet` files of a folder."""

    only = (".parquet",)

    def _forced(self) -> str:
        return ".parquet"
