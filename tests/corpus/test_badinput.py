"""Damaged, foreign and oversized input: reported once, and the rest is read."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from badinput_helpers import Skips, config, read, with_a_good_file

from ikirere.corpus.readers import fingerprint
from ikirere.corpus.readers.formats.jsonl import jsonl_documents
from ikirere.corpus.readers.formats.rows import Columns, RowMapper
from ikirere.corpus.readers.text import DAMAGED, LARGEST, read_text
from ikirere.errors import UserError


def zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_a_good_file(tmp_path)


# ---------------------------------------------------------------- files that break off


def noise(n: int) -> list[str]:
    """Lines that do not compress to nothing, so that half of a file is about half of them."""
    state, lines = 1, []
    for i in range(n):
        state = state * 6364136223846793005 % 2**64
        lines.append(f"{i} {state:x}")
    return lines


@pytest.mark.parametrize("packed", PACK)
def test_truncated_compressed_json_lines_keep_what_was_before(folder: Path, packed: str) -> None:
    lines = noise(20_000)
    whole = PACK[packed]("".join(json.dumps({"text": line}) + "\n" for line in lines).encode())
    (folder / f"cut.jsonl{packed}").write_bytes(whole[: len(whole) // 2])
    documents, skipped = read(folder)
    kept = [d.text for d in documents if d.text != "good\n"]
    assert 6000 < len(kept) < 14_000 and kept == lines[: len(kept)]
    assert skipped == [(f"n/cut.jsonl{packed}:{len(kept) + 1}", "truncated")]


@pytest.mark.parametrize("packed", PACK)
def test_truncated_compressed_text_keeps_its_whole_lines(folder: Path, packed: str) -> None:
    text = "\n".join(noise(40_000))
    whole = PACK[packed](text.encode())
    (folder / f"cut.txt{packed}").write_bytes(whole[: len(whole) // 2])
    documents, skipped = read(folder)
    (kept,) = [d.text for d in documents if d.text != "good\n"]
    assert kept.endswith("\n") and text.startswith(kept) and len(kept) > len(text) // 3
    assert skipped == [(f"n/cut.txt{packed}:{kept.count(chr(10)) + 1}", "truncated")]


@pytest.mark.parametrize("packed", PACK)
def test_damage_inside_a_compressed_file(folder: Path, packed: str) -> None:
    raw = "".join(json.dumps({"text": line}) + "\n" for line in noise(4000)).encode()
    whole = bytearray(PACK[packed](raw))
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(255 - b for b in whole[middle : middle + 64])
    (folder / f"bad.jsonl{packed}").write_bytes(whole)
    documents, skipped = read(folder)
    reasons = [r for _, r in skipped]
    assert reasons[-1] in DAMAGED and all(where.startswith(f"n/bad.jsonl{packed}") for where, _ in skipped)
    assert "good\n" in [d.text for d in documents]


def test_truncated_json_lines(folder: Path) -> None:
    (folder / "cut.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "thr')
    documents, skipped = read(folder)
    assert {d.text for d in documents} == {"good\n", "one", "two"}
    assert skipped == [("n/cut.jsonl:3", "truncated")]
    (folder / "cut.jsonl").write_text('{"text": "one"}\n{"text": "two"}')  # whole, only without a line end
    assert read(folder)[1] == []


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_truncated_parquet_has_lost_its_index(folder: Path, packed: str) -> None:
    pq.write_table(pa.table({"text": noise(500)}), folder / "t.parquet")
    whole = (folder / "t.parquet").read_bytes()
    (folder / "t.parquet").unlink()
    (folder / f"cut.parquet{packed}").write_bytes(PACK.get(packed, bytes)(whole[: len(whole) // 2]))
    documents, skipped = read(folder)
    assert [d.text for d in documents] == ["good\n"]
    assert skipped == [(f"n/cut.parquet{packed}:1", "truncated")]


def test_a_damaged_row_group_is_named_and_the_next_one_read(folder: Path) -> None:
    path = folder / "t.parquet"
    pq.write_table(
        pa.table({"text": noise(300)}), path, row_group_size=100, compression="zstd", use_dictionary=False
    )
    second = pq.ParquetFile(path).metadata.row_group(1).column(0)
    raw = bytearray(path.read_bytes())
    start, length = second.data_page_offset, second.total_compressed_size
    raw[start + 40 : start + length - 8] = bytes(length - 48)
    path.write_bytes(raw)
    documents, skipped = read(folder)
    assert [d.text for d in documents if d.text != "good\n"] == noise(300)[:100] + noise(300)[200:]
    assert skipped == [("n/t.parquet:101", "unreadable")]


def test_no_parquet_at_all(folder: Path) -> None:
    (folder / "html.parquet").write_text("<html>404</html>")
    assert read(folder)[1] == [("n/html.parquet", "unreadable")]


def test_text_that_is_no_utf8_inside_parquet(folder: Path) -> None:
    texts = pa.array([b"fine", b"caf\xe9", b"also fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), folder / "t.parquet")
    documents, skipped = read(folder)
    assert {d.text for d in documents} == {"good\n", "fine", "also fine"}
    assert skipped == [("n/t.parquet:2", "undecodable")]


# ---------------------------------------------------------------- sizes


def test_a_huge_line_is_left_out_without_being_held(folder: Path) -> None:
    with (folder / "huge.jsonl").open("wb") as handle:
        handle.write(b'{"text": "before"}\n{"text": "')
        for _ in range(100):
            handle.write(b"x" * 1_000_000)
        handle.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    try:
        documents, skipped = read(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert {d.text for d in documents} == {"good\n", "before", "after"}
    assert skipped == [("n/huge.jsonl:2", "too-long-line")]
    assert peak < 2.2 * LARGEST  # the pieces of the line's beginning and the line joined of them, no more


def test_the_longest_line_is_kept(tmp_path: Path) -> None:
    rows = ['{"text": "%s"}' % ("y" * n) for n in (85, 86, 87, 500, 3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    skipped: Skips = []
    found = jsonl_documents(
        tmp_path / "rows.jsonl", "r", RowMapper("n", "d", Columns()), lambda *s: skipped.append(s), largest=98
    )
    assert [len(d.text) for d in found] == [85, 86, 3]
    assert skipped == [("r:3", "too-long-line"), ("r:4", "too-long-line")]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_a_huge_text_is_too_long(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"big.txt{packed}"
    path.write_bytes(PACK.get(packed, bytes)(b"z" * 1001))
    skipped: Skips = []
    assert read_text(path, "big", lambda *s: skipped.append(s), largest=1000) is None
    assert skipped == [("big", "too-long")]
    assert read_text(path, "big", lambda *s: skipped.append(s), largest=1001) == "z" * 1001


def test_a_bomb_is_too_long(folder: Path) -> None:
    with gzip.open(folder / "bomb.txt.gz", "wb", compresslevel=1) as handle:
        for _ in range(LARGEST // 1_000_000 + 2):
            handle.write(b"a" * 1_000_000)
    assert (folder / "bomb.txt.gz").stat().st_size < 1_000_000
    assert read(folder)[1] == [("n/bomb.txt.gz", "too-long")]


def test_empty_files(folder: Path) -> None:
    for name in ("e.txt", "e.jsonl", "e.parquet", "e.gz", "e.md.zst"):
        (folder / name).touch()
    (folder / "blank.jsonl").write_text("\n\n  \n")
    (folder / "none.txt.gz").write_bytes(gzip.compress(b""))
    (folder / "none.jsonl.zst").write_bytes(zstd(b""))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "none.parquet")
    documents, skipped = read(folder)
    names = ["blank.jsonl", "e.gz", "e.jsonl", "e.md.zst", "e.parquet", "e.txt"]
    names += ["none.jsonl.zst", "none.parquet", "none.txt.gz"]
    assert sorted(skipped) == [(f"n/{name}", "empty") for name in names]
    assert [d.text for d in documents] == ["good\n"]


# ---------------------------------------------------------------- encodings


def test_mixed_encodings(folder: Path) -> None:
    text = "Zürich – naïve 漢字\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (folder / f"{encoding}.txt").write_bytes((text + encoding).encode(encoding))
    (folder / "be.txt").write_bytes(b"\xfe\xff" + (text + "be").encode("utf-16-be"))
    (folder / "latin.txt").write_bytes("Zürich".encode("latin-1"))
    (folder / "nomark.txt").write_bytes("ab".encode("utf-16-le"))
    (folder / "latin.jsonl").write_bytes('{"text": "Zürich"}\n{"text": "ok"}\n'.encode("latin-1"))
    (folder / "wide.jsonl").write_bytes('{"text": "wide"}\n{"text": "wider"}\n'.encode("utf-16"))
    documents, skipped = read(folder)
    assert {d.text for d in documents} == {
        *(text + e for e in ("utf-8", "utf-8-sig", "utf-16", "utf-32", "be")),
        "good\n", "ok", "wide", "wider",
    }  # fmt: skip
    assert sorted(skipped) == [
        ("n/latin.jsonl:1", "undecodable"),
        ("n/latin.txt", "undecodable"),
        ("n/nomark.txt", "binary"),
    ]


def test_nul_and_lone_surrogates(folder: Path) -> None:
    (folder / "nul.txt").write_bytes(b"a\0b")
    (folder / "wide.txt").write_bytes("a\0b".encode("utf-16"))
    rows = [
        '{"text": "a\\u0000b"}',
        '{"text": "a\0b"}',
        '{"text": "\\udc80"}',
        '{"text": "ok", "url": "\\ud800x"}',
    ]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    pq.write_table(pa.table({"text": ["c\0d", "fine"]}), folder / "t.parquet")
    documents, skipped = read(folder)
    assert {d.text for d in documents} == {"good\n", "ok", "fine"}
    assert next(d.url for d in documents if d.text == "ok") == "\\ud800x"
    assert sorted(skipped) == [
        ("n/nul.txt", "binary"),
        ("n/rows.jsonl:1", "binary"),
        ("n/rows.jsonl:2", "bad-row"),
        ("n/rows.jsonl:3", "undecodable"),
        ("n/t.parquet:1", "binary"),
        ("n/wide.txt", "binary"),
    ]


def test_names_that_are_no_unicode_can_be_written_down(folder: Path) -> None:
    strange = folder / os.fsdecode(b"d\xff")
    strange.mkdir()
    (strange / "a.txt").write_text("text\n")
    (strange / "b.txt").write_bytes(b"\0")
    documents, skipped = read(folder)
    shown = [d.path for d in documents] + [path for path, _ in skipped]
    assert sorted(shown) == ["n/d\\udcff/a.txt", "n/d\\udcff/b.txt", "n/good.txt"]
    pa.array(shown)  # as the ledger does
    assert len(fingerprint(config(folder), folder)) == 64


# ---------------------------------------------------------------- rows


def test_rows_that_repeat_are_left_to_dedup(folder: Path) -> None:
    row = json.dumps({"id": "7", "text": "same"})
    (folder / "rows.jsonl").write_text("\n".join([row, row, json.dumps({"id": "7", "text": "other"})]) + "\n")
    documents, skipped = read(folder)
    assert sorted(d.text for d in documents) == ["good\n", "other", "same", "same"] and skipped == []


def test_a_row_without_text_among_others_is_skipped(folder: Path) -> None:
    (folder / "rows.jsonl").write_text(
        '{"text": "one"}\n{"body": "two"}\n{"text": ["three"]}\n{"text": "four"}\n'
    )
    documents, skipped = read(folder)
    assert {d.text for d in documents} == {"good\n", "one", "four"}
    assert skipped == [("n/rows.jsonl:2", "bad-row"), ("n/rows.jsonl:3", "empty")]


def test_deep_and_long_json_is_no_row(folder: Path) -> None:
    lines = ["[" * 100_000, '{"text": ' + "9" * 5000 + "}", '{"text": "ok"}']
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    documents, skipped = read(folder)
    assert "ok" in {d.text for d in documents}
    assert skipped == [("n/rows.jsonl:1", "bad-row"), ("n/rows.jsonl:2", "bad-row")]


def test_a_missing_text_column_is_the_users_to_mend(folder: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "title": ["b"]}), folder / "t.parquet")
    with pytest.raises(
        UserError, match=r"n/t\.parquet: no field 'text' \(text_field of source 'n'\); fields are body, "
    ):
        read(folder)
    assert {d.text for d in read(folder, kind="parquet", text_field="title")[0]} == {"b"}
