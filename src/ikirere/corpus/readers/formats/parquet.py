"""Parquet files: one document per row."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ikirere.corpus.document import Document
from ikirere.corpus.readers.formats.compressed import BREAKS, TRUNCATED, UNREADABLE, seekable, why
from ikirere.corpus.readers.formats.rows import RowMapper
from ikirere.corpus.readers.text import EMPTY, UNDECODABLE, Skipped

BATCH_ROWS = 16  # rows of books are megabytes each
BUFFER_BYTES = 1 << 20  # read ahead per column, instead of a row group's whole column
MAGIC = b"PAR1"


def parquet_documents(path: Path, shown: str, mapper: RowMapper, skipped: Skipped) -> Iterator[Document]:
    """Documents of a Parquet file, a few rows in memory at a time.

    What cannot be read is reported under file:row, and reading continues with the next row group. A file that breaks off
    has lost its index, which is at the end, and so gives no row: it is `truncated`. Raises UserError naming the
    columns where those of the text are not there.
    """
    try:
        handle = seekable(path)
    except BREAKS as error:
        skipped(shown, why(error))
        return
    with handle:
        try:
            file = pq.ParquetFile(handle, pre_buffer=False, buffer_size=BUFFER_BYTES)
        except BREAKS:
            skipped(*_no_index(handle, shown))
            return
        names = file.schema_arrow.names
        mapper.require(names, shown)
        wanted = mapper.wanted()
        columns = [name for name in names if name in wanted]
        if not file.metadata.num_rows:
            skipped(shown, EMPTY)
        before = 0
        for group in range(file.num_row_groups):
            number = before
            try:
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                    for row in _rows(batch):
                        number += 1
                        where = f"{shown}:{number}"
                        if row is None:
                            skipped(where, UNDECODABLE)
                        elif document := mapper.document(row, where, shown, skipped):
                            yield document
            except BREAKS:
                skipped(f"{shown}:{number + 1}", UNREADABLE)
            before += file.metadata.row_group(group).num_rows


def _no_index(handle: BufferedIOBase, shown: str) -> tuple[str, str]:
    """Name of a file that is not read, and the reason."""
    handle.seek(0)
    head = handle.read(len(MAGIC))
    if not head:
        return shown, EMPTY
    if head != MAGIC:
        return shown, UNREADABLE
    handle.seek(-len(MAGIC), 2)
    return (shown, UNREADABLE) if handle.read() == MAGIC else (f"{shown}:1", TRUNCATED)


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """Rows as mappings; None for one with a string that is no UTF-8, which Parquet does not check."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None
