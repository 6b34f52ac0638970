"""Files of documents: written whole, read in their order or in one drawn from a seed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ikirere.corpus.document import DOCUMENT_SCHEMA, Document, TableWriter, read_documents
from ikirere.errors import UserError


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Twelve rows in four row groups."""
    path = tmp_path / "documents.parquet"
    table = pa.table({"id": [f"{i:02d}" for i in range(12)], "text": ["t"] * 12, "other": [1] * 12})
    pq.write_table(table, path, row_group_size=3)
    return path


def test_rows_come_in_the_files_order_with_the_columns_asked_for(parquet: Path) -> None:
    rows = list(read_documents(parquet, ("id", "text")))
    assert [row["id"] for row in rows] == [f"{i:02d}" for i in range(12)]
    assert all(set(row) == {"id", "text"} for row in rows)
    assert set(next(read_documents(parquet))) == {"id", "text", "other"}


def test_a_seed_draws_the_order_of_row_groups(parquet: Path) -> None:
    orders = {seed: [row["id"] for row in read_documents(parquet, ("id",), seed)] for seed in range(8)}
    for order in orders.values():
        groups = [order[i : i + 3] for i in range(0, 12, 3)]
        assert sorted(order) == [f"{i:02d}" for i in range(12)]
        assert all(group == sorted(group) and int(group[0]) % 3 == 0 for group in groups)
    assert len({tuple(order) for order in orders.values()}) > 3
    assert orders[3] == [row["id"] for row in read_documents(parquet, ("id",), 3)]


def test_what_cannot_be_read_is_named(parquet: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"documents\.parquet: has no column domain, family"):
        list(read_documents(parquet, ("id", "family", "domain")))
    with pytest.raises(UserError, match=r"absent\.parquet: cannot be read as Parquet"):
        list(read_documents(tmp_path / "absent.parquet"))
    parquet.write_bytes(parquet.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"documents\.parquet: cannot be read as Parquet"):
        list(read_documents(parquet))


def test_documents_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    document = Document("text", "s", "g", "p", "code")
    with TableWriter(path, DOCUMENT_SCHEMA) as writer:
        writer.add(document.row())
        assert not path.exists()
    assert list(read_documents(path)) == [document.row()]
    with pytest.raises(RuntimeError), TableWriter(path, DOCUMENT_SCHEMA) as writer:
        raise RuntimeError
    assert list(read_documents(path)) == [document.row()]
    assert [p.name for p in tmp_path.iterdir()] == ["d.parquet"]
