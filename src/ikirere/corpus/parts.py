"""Parts: the documents of a build between its passes, as Parquet tables and as views of tables.

A view names a table, the rows of it that are left and their families. A pass that only drops documents or names
families leaves a view, and the next one applies it while it reads; a table is written only where a document changed.
Tables and views are read alike, also by `find_near_duplicates` and the models of `steps/quality`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ikirere.common.files import atomic

TABLE = b"table"  # metadata key of a view: its table's path, relative to the view's folder
VIEW_SCHEMA = pa.schema([("row", pa.int32()), ("family", pa.string())])  # row: of the table, ascending


class Part:
    """A part opened for reading; a context manager. OSError and pa.ArrowException of the file are passed on.

    table: the Parquet file that holds the documents. rows: int64 [documents], rows of it that are left. groups: of each
    row group the rows that are left and the bytes of all its columns, not compressed.
    """

    def __init__(self, path: Path) -> None:
        self.table, self.families = path, None
        self.file = pq.ParquetFile(path)
        view = (self.file.schema_arrow.metadata or {}).get(TABLE)
        if view is not None:
            with self.file as file:
                left = file.read()
            self.table = path.parent / view.decode()
            self.file = pq.ParquetFile(self.table)
            self.families = left.column("family").combine_chunks()
        metadata = self.file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.rows: npt.NDArray[np.int64] = np.arange(metadata.num_rows)
        if view is not None:
            self.rows = left.column("row").to_numpy().astype(np.int64)
        kept = np.diff(np.searchsorted(self.rows, self.starts)).tolist()
        self.groups = [(rows, metadata.row_group(i).total_byte_size) for i, rows in enumerate(kept)]
        self.schema: pa.Schema = self.file.schema_arrow

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def read(self, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None) -> pa.Table:
        """The documents that are left, in order; of these row groups (ascending) only."""
        groups = range(len(self.groups)) if groups is None else groups
        found = self.file.read_row_groups(list(groups), columns=None if columns is None else list(columns))
        return self._left(found, self._numbers(groups))

    def batches(self, size: int, columns: Sequence[str], groups: Sequence[int]) -> Iterator[pa.Table]:
        """The same in pieces of at most `size` rows, empty ones left out."""
        numbers, at = self._numbers(groups), 0
        for batch in self.file.iter_batches(size, row_groups=list(groups), columns=list(columns)):
            found = self._left(pa.Table.from_batches([batch]), numbers[at : at + len(batch)])
            at += len(batch)
            if len(found):
                yield found

    def _numbers(self, groups: Sequence[int]) -> npt.NDArray[np.int64]:
        spans = [np.arange(self.starts[group], self.starts[group + 1]) for group in groups]
        return np.concatenate(spans) if spans else np.zeros(0, np.int64)

    def _left(self, table: pa.Table, numbers: npt.NDArray[np.int64]) -> pa.Table:
        if self.families is None:
            return table
        positions = np.searchsorted(self.rows, numbers)
        there = positions < len(self.rows)
        there[there] = self.rows[positions[there]] == numbers[there]
        table = table.filter(pa.array(there))
        if "family" in table.column_names:
            index = table.schema.get_field_index("family")
            table = table.set_column(index, "family", self.families.take(pa.array(positions[there])))
        return table


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The documents of a part."""
    with Part(path) as part:
        return part.read(columns)


def write_part(documents: pa.Table, path: Path, part: Part, before: pa.Table) -> None:
    """What a pass made of the documents of `part`, which were `before`: a view where nothing but families differs from
    what they were, else a table."""
    left = pc.index_in(documents.column("order"), before.column("order"))
    if left.null_count == 0:
        rows = left.to_numpy().astype(np.int64)
        ascending = bool((np.diff(rows) > 0).all())
        if ascending and before.take(pa.array(rows)).drop(["family"]).equals(documents.drop(["family"])):
            write_view(path, part, part.rows[rows], documents.column("family").combine_chunks())
            return
    write_table(documents, path)


def write_view(path: Path, part: Part, rows: npt.NDArray[np.int64], families: pa.Array) -> None:
    """rows: of the part's table, ascending; families: of these documents."""
    metadata = {TABLE: os.path.relpath(part.table, path.parent).encode()}
    schema = VIEW_SCHEMA.with_metadata(metadata)
    write_table(pa.table([pa.array(rows, pa.int32()), families], schema=schema), path)


def write_table(table: pa.Table, path: Path) -> None:
    """Parquet, whole or not at all."""
    with atomic(path, "wb") as handle:
        pq.write_table(table, handle, compression="zstd", compression_level=1, row_group_size=4096)


def part_name(path: Path) -> str:
    """Name of a part: source and number where reading wrote it, else the file's own."""
    return f"{path.parent.name}-{path.stem}" if path.stem.startswith("part-") else path.stem
