"""One document, from the moment a source yields it to the files that later stages read."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ikirere.common.files import atomic_path
from ikirere.errors import UserError

DOCUMENT_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in ("id", "text", "source", "group", "path", "domain", "licence", "lang", "url", "family")
    ]
    + [("order", pa.int64())]
)
ROW_GROUP_BYTES = 8_000_000  # text per row group: what a reader holds at once
BATCH_ROWS = 256  # rows that `read_documents` holds at once


@dataclass(slots=True)
class Document:
    """A text and where it comes from.

    group: what is kept on one side of the split (a distribution, a file, a value of `group_field`).
    licence: SPDX expression, `unknown` where nothing is declared. lang: as the source declares it, '' where it does not.
    url: where it was published, '' where unknown. family: id that near-duplicates share; '' until it is known.
    order: position in the reading order of all sources; of two copies the lower one is kept.
    id: the first 32 hex digits of the text's sha256 as it was read; equal texts have equal ids on any machine.
    Raises ValueError for text that is no Unicode (lone surrogates).
    """

    text: str
    source: str
    group: str
    path: str
    domain: str
    licence: str = "unknown"
    lang: str = ""
    url: str = ""
    family: str = ""
    order: int = 0
    id: str = ""
    n_bytes: int = field(default=0, repr=False)  # UTF-8 length of the text

    def __post_init__(self) -> None:
        raw = self.text.encode()
        self.n_bytes = len(raw)
        self.id = hashlib.sha256(raw).hexdigest()[:32]

    def row(self) -> dict[str, Any]:
        """The columns of DOCUMENT_SCHEMA."""
        row = asdict(self)
        del row["n_bytes"]
        return row


class TableWriter:
    """Writes rows to Parquet; a context manager. The file has its name only once it is whole (`common.files.atomic_path`)."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.rows: list[Mapping[str, Any]] = []
        self.size = 0
        self._opened = ExitStack()

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        self.size += len(row.get("text", "")) + 100
        if self.size >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        columns = {f.name: [row.get(f.name) for row in self.rows] for f in self.schema}
        self.writer.write_table(pa.table(columns, schema=self.schema))
        self.rows, self.size = [], 0

    def __enter__(self) -> TableWriter:
        part = self._opened.enter_context(atomic_path(self.path))
        self.writer = self._opened.enter_context(pq.ParquetWriter(part, self.schema, compression="zstd"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened:
            if error is not None:
                raise error
            if self.rows:
                self._flush()


def read_documents(
    path: Path, columns: Sequence[str] | None = None, seed: int | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file of documents, a few hundred in memory at a time; with a seed, its row groups in an order
    drawn from it. Raises UserError where the file cannot be read or lacks a column."""
    try:
        with pq.ParquetFile(path) as file:
            if missing := set(columns or ()) - set(file.schema_arrow.names):
                raise UserError(
                    f"{path}: has no column {', '.join(sorted(missing))}; `ikirere run` with --rebuild data writes it again"
                )
            groups = list(range(file.num_row_groups))
            if seed is not None:
                random.Random(seed).shuffle(groups)
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns and list(columns)):
                yield from batch.to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
