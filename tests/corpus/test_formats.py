"""Local formats, plain and compressed, read as streams."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ikirere.corpus.document import Document
from ikirere.corpus.readers import open_source
from ikirere.corpus.readers.formats.compressed import ending
from ikirere.corpus.readers.formats.jsonl import jsonl_documents
from ikirere.corpus.readers.formats.parquet import parquet_documents
from ikirere.corpus.readers.formats.rows import Columns, RowMapper, licence_id
from ikirere.recipe.data import Source


def read(folder: Path, **fields: Any) -> tuple[list[Document], list[tuple[str, str]]]:
    skipped: list[tuple[str, str]] = []
    config: Source = TypeAdapter(Source).validate_python(
        {"kind": "local", "name": "n", "domain": "d", "path": str(folder)} | fields
    )
    return list(open_source(config, folder, lambda *found: skipped.append(found))), skipped


def zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
TEXTS = {
    "a.txt": "plain text\n",
    "b.md": "# Title\n\n* **bold** stays\n",
    "c.rst": "Title\n=====\n\n.. note:: stays\n",
    "d.py": "def f() -> int:\n    return 1\n",
    "e.rs": "fn main() {}\n",
    "f.tex": "\\begin{proof} $x^2$ \\end{proof}\n",
    "g.cpp": "int main() { return 0; }\n",
}


@pytest.mark.parametrize("packed", PACK)
def test_text_files_are_the_text_that_they_are(tmp_path: Path, packed: str) -> None:
    for name, text in TEXTS.items():
        (tmp_path / f"{name}{packed}").write_bytes(PACK[packed](text.encode()))
    documents, skipped = read(tmp_path)
    assert {d.path: d.text for d in documents} == {f"n/{n}{packed}": t for n, t in TEXTS.items()}
    assert skipped == []


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", ["local", "jsonl"])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson"])
def test_json_lines(tmp_path: Path, packed: str, kind: str, suffix: str) -> None:
    rows = [{"text": f"row {i} é\u2028", "url": f"https://x/{i}", "id": "same"} for i in range(40)]
    raw = "\n".join(json.dumps(r, ensure_ascii=i % 2 == 0) for i, r in enumerate(rows)).encode()
    (tmp_path / f"rows{suffix}{packed}").write_bytes(PACK[packed](raw))
    (tmp_path / "other.bin").write_bytes(b"\0")
    documents, skipped = read(tmp_path, kind=kind)
    assert [(d.text, d.url) for d in documents] == [(r["text"], r["url"]) for r in rows]
    assert documents[3].path == f"n/rows{suffix}{packed}:4"
    assert skipped == ([] if kind == "jsonl" else [("n/other.bin", "binary")])


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", ["local", "parquet"])
def test_parquet(tmp_path: Path, packed: str, kind: str) -> None:
    table = pa.table(
        {
            "body": [f"row {i}" for i in range(50)],
            "meta": [{"url": f"https://x/{i}", "by": "CC-BY-4.0"} for i in range(50)],
        }
    )
    pq.write_table(table, tmp_path / "plain", row_group_size=7)
    raw = (tmp_path / "plain").read_bytes()
    (tmp_path / "plain").unlink()
    (tmp_path / f"t.parquet{packed}").write_bytes(PACK[packed](raw))
    documents, skipped = read(
        tmp_path,
        kind=kind,
        text_field="body",
        url_field="meta.url",
        licence_field="meta.by",
        group_field="meta.url",
    )
    assert [d.text for d in documents] == [f"row {i}" for i in range(50)] and skipped == []
    assert (documents[8].url, documents[8].licence, documents[8].group) == (
        "https://x/8",
        "CC-BY-4.0",
        "n/https://x/8",
    )
    assert documents[8].path == f"n/t.parquet{packed}:9"


def test_compression_is_told_by_the_content(tmp_path: Path) -> None:
    (tmp_path / "unpacked.jsonl.gz").write_text('{"text": "kept its name"}\n')
    (tmp_path / "packed.txt").write_bytes(gzip.compress(b"lost its ending"))
    (tmp_path / "twice.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    (tmp_path / "twice.md.zst").write_bytes(zstd(b"three ") + zstd(b"four"))
    documents, skipped = read(tmp_path)
    assert {d.text for d in documents} == {"kept its name", "lost its ending", "one two", "three four"}
    assert skipped == []


def test_a_single_file_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "rows.any").write_bytes(zstd(b'{"text": "a"}\n{"text": "b"}\n'))
    assert [d.text for d in read(tmp_path / "rows.any", kind="jsonl")[0]] == ["a", "b"]


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, packed: str) -> None:
    raw = b"".join(b'{"text": "%s %d"}\n' % (b"words " * 3000, i) for i in range(2000))
    assert len(raw) > 36_000_000
    (tmp_path / f"big.jsonl{packed}").write_bytes(PACK[packed](raw))
    del raw
    config: Source = TypeAdapter(Source).validate_python(
        {"kind": "jsonl", "name": "n", "domain": "d", "path": str(tmp_path)}
    )
    tracemalloc.start()
    try:
        count = sum(1 for _ in open_source(config, tmp_path, lambda *found: None))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 2000 and peak < 3_000_000


def test_memory_does_not_grow_with_a_row_group(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [draw.randbytes(10_000).hex() for _ in range(800)]
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"text": rows}),
        path,
        use_dictionary=False,
        compression="zstd",
        write_batch_size=16,
        data_page_size=200_000,
    )
    assert pq.ParquetFile(path).num_row_groups == 1 and path.stat().st_size > 7_000_000
    mapper = RowMapper("n", "d", Columns())
    tracemalloc.start()
    try:
        count = sum(1 for _ in parquet_documents(path, "t", mapper, lambda *found: None))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 800 and peak < 4_000_000


def test_patterns_are_globs_below_the_root(tmp_path: Path) -> None:
    for name in ("a.txt", "b/a.txt", "b/c/a.txt", "b/c/d.md", ".git/a.txt", "b/.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(pattern: str) -> list[str]:
        return sorted(d.text for d in read(tmp_path, pattern=pattern)[0])

    assert found("**/*") == ["a.txt", "b/a.txt", "b/c/a.txt", "b/c/d.md"]
    assert found("*.txt") == ["a.txt"]
    assert found("**/*.txt") == ["a.txt", "b/a.txt", "b/c/a.txt"]
    assert found("b/**") == found("./b/**/*") == ["b/a.txt", "b/c/a.txt", "b/c/d.md"]
    assert found("*/?/[a-c].txt") == ["b/c/a.txt"]
    assert found("**/c/*") == ["b/c/a.txt", "b/c/d.md"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.jsonl", ".jsonl"), ("a.JSONL.GZ", ".jsonl"), ("a.b.txt.zst", ".txt"), ("gz", ""), ("a.zstd", "")],
)
def test_endings(name: str, expected: str) -> None:
    assert ending(name) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "MIT"),
        ("", "MIT"),
        ([], "MIT"),
        ("apache-2.0", "Apache-2.0"),
        (["mit", "apache-2.0"], "Apache-2.0 AND MIT"),
        (["MIT OR Apache-2.0", "GPL-3.0-only"], "GPL-3.0-only AND (MIT OR Apache-2.0)"),
        (
            "Creative Commons - Attribution Share-Alike - https://creativecommons.org/licenses/by-sa/4.0/",
            "CC-BY-SA-4.0",
        ),
        ("Creative Commons - Attribution - https://creativecommons.org/licenses/by/3.0/", "CC-BY-3.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("Public Domain", "LicenseRef-Public-Domain"),
        ("whatever we like", "unknown"),
    ],
)
def test_licences_of_rows(value: Any, expected: str) -> None:
    assert licence_id(value, "MIT") == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
            str.strip
        ),
        max_size=8,
    ),
    st.sampled_from(sorted(PACK)),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.booleans(),
)
def test_any_texts_come_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], packed: str, encoding: str, escaped: bool
) -> None:
    raw = "".join(json.dumps({"text": t}, ensure_ascii=escaped) + "\n" for t in texts).encode(encoding)
    path = tmp_path_factory.mktemp("round") / f"r.jsonl{packed}"
    path.write_bytes(PACK[packed](raw))
    skipped: list[tuple[str, str]] = []
    found = jsonl_documents(path, "r", RowMapper("n", "d", Columns()), lambda *s: skipped.append(s))
    assert [d.text for d in found] == texts
    assert skipped == ([] if texts else [("r", "empty")])


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([".jsonl", ".parquet", ".txt"]),
    st.sampled_from(["", ".gz", ".zst"]),
)
def test_any_bytes_are_documents_or_have_a_reason(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, suffix: str, packed: str
) -> None:
    from ikirere.corpus.readers.local import read_file

    path = tmp_path_factory.mktemp("any") / f"f{suffix}{packed}"
    path.write_bytes(PACK[packed](raw))
    skipped: list[tuple[str, str]] = []
    mapper = RowMapper("n", "d", Columns())
    found = list(read_file(path, "f", mapper, lambda *s: skipped.append(s)))
    assert found or skipped
    assert all(where.startswith("f") and reason for where, reason in skipped)
