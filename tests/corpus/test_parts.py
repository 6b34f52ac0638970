"""Parts: a view reads as the table would that it stands for."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from build_helpers import text

from ikirere.corpus.document import DOCUMENT_SCHEMA, Document
from ikirere.corpus.parts import TABLE, Part, part_name, read_part, write_part, write_view


def table(rows: int) -> pa.Table:
    found = []
    for i in range(rows):
        found.append(Document(text(i, 10), "s", f"g{i}", f"p{i}", "d").row() | {"order": 100 + i})
    return pa.Table.from_pylist(found, schema=DOCUMENT_SCHEMA)


def written(folder: Path, rows: int, row_group: int = 4) -> Path:
    path = folder / "tables" / "t.parquet"
    path.parent.mkdir()
    pq.write_table(table(rows), path, row_group_size=row_group)
    return path


def is_view(path: Path) -> bool:
    return TABLE in (pq.read_schema(path).metadata or {})


def with_column(documents: pa.Table, name: str, values: list[str]) -> pa.Table:
    return documents.set_column(documents.schema.get_field_index(name), name, pa.array(values, pa.string()))


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 18)), st.integers(1, 7), st.integers(1, 5))
def test_a_view_is_read_as_its_table(
    tmp_path_factory: pytest.TempPathFactory, left: set[int], row_group: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("view")
    path = written(folder, 19, row_group)
    rows = np.array(sorted(left), dtype=np.int64)
    families = [f"f{row}" for row in rows]
    with Part(path) as part:
        write_view(folder / "v.parquet", part, rows, pa.array(families, pa.string()))
    expected = with_column(table(19).take(pa.array(rows)), "family", families)
    assert read_part(folder / "v.parquet").equals(expected)
    assert read_part(folder / "v.parquet", ["family", "id"]).equals(expected.select(["family", "id"]))
    with Part(folder / "v.parquet") as view:
        assert sum(rows for rows, _ in view.groups) == len(left)
        for group, (count, _) in enumerate(view.groups):
            first = row_group * group
            some = [i for i, row in enumerate(sorted(left)) if first <= row < first + row_group]
            assert count == len(some)
            assert view.read(["id"], [group]).equals(expected.select(["id"]).take(pa.array(some, pa.int64())))
        batches = list(view.batches(size, ["text"], range(len(view.groups))))
        assert all(0 < len(batch) <= size for batch in batches)
        assert [t for batch in batches for t in batch["text"].to_pylist()] == expected["text"].to_pylist()


def test_only_changed_documents_are_written_again(tmp_path: Path) -> None:
    """Dropped rows and new families make views, of the first table also after several passes; a text, a licence or
    another order makes a table."""
    path, out = written(tmp_path, 9), tmp_path / "out"
    out.mkdir()
    with Part(path) as part:
        before = part.read()
        fewer = before.filter(pa.array([i != 2 for i in range(9)]))
        write_part(with_column(fewer, "family", list("abcdefgh")), out / "one.parquet", part, before)
    assert is_view(out / "one.parquet") and (out / "one.parquet").stat().st_size < path.stat().st_size
    with Part(out / "one.parquet") as part:
        before = part.read()
        assert before["order"].to_pylist() == [100, 101, 103, 104, 105, 106, 107, 108]
        write_part(before.slice(3), out / "two.parquet", part, before)
        changed = before["text"].to_pylist()
        changed[4] += " "
        write_part(with_column(before, "text", changed), out / "text.parquet", part, before)
        write_part(with_column(before, "licence", ["MIT"] * 8), out / "licence.parquet", part, before)
        write_part(before.take([1, 0]), out / "order.parquet", part, before)
    assert is_view(out / "two.parquet")
    assert not any(is_view(out / f"{name}.parquet") for name in ("text", "licence", "order"))
    two = read_part(out / "two.parquet")
    assert two["order"].to_pylist() == [104, 105, 106, 107, 108]
    assert two["family"].to_pylist() == list("defgh")
    assert read_part(out / "text.parquet")["text"].to_pylist() == changed
    # A view names its table relative to itself, so that a build's folder can be moved.
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    assert read_part(tmp_path / "elsewhere" / "two.parquet").equals(two)


def test_parts_keep_the_names_of_what_was_read() -> None:
    assert part_name(Path("work/read/03/part-00001.parquet")) == "03-part-00001"
    assert part_name(Path("work/first/parts/03-part-00001.parquet")) == "03-part-00001"
