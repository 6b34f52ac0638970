"""Shards on disk: what goes in comes out, and nothing altered is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.corpus.document import DOCUMENT_SCHEMA, Document, TableWriter
from ikirere.errors import UserError
from ikirere.tokens.shards import Shard, open_shards, write_shards


class Letters:
    """Encodes each character as its code point."""

    eos = 2
    sha256 = "5" * 64

    def __init__(self, vocab_size: int = 1 << 16) -> None:
        self.vocab_size = vocab_size

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[ord(c) % self.vocab_size for c in text] for text in texts]


def write(path: Path, rows: list[tuple[str, str]]) -> list[Document]:
    documents = [Document(text, "s", "g", "p", domain) for text, domain in rows]
    with TableWriter(path, DOCUMENT_SCHEMA) as writer:
        for document in documents:
            writer.add(document.row())
    return documents


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(
        tmp_path / "train.parquet", [("héllo", "docs"), ("x = 1\n", "code"), ("日本", "docs"), ("y", "a/b")]
    )
    write(tmp_path / "heldout.parquet", [("held", "docs")])
    splits = {name: tmp_path / f"{name}.parquet" for name in ("train", "heldout")}
    write_shards(splits, Letters(40_000), tmp_path / "shards")
    return tmp_path / "shards"


def test_round_trip(folder: Path) -> None:
    shards = open_shards(folder, tokenizer_sha256="5" * 64)
    assert sorted(shards) == [("a/b", "train"), ("code", "train"), ("docs", "heldout"), ("docs", "train")]
    docs = shards["docs", "train"]
    assert docs.data.dtype == np.dtype("<u2") and len(docs) == 2
    assert "".join(map(chr, docs.tokens(0)[:-1])) == "héllo" and docs.tokens(0)[-1] == 2
    assert docs.tokens(1).tolist() == [ord("日"), ord("本"), 2]
    assert docs.n_bytes.tolist() == [6, 6] and docs.total_tokens == 9
    assert docs.id(0) == Document("héllo", "", "", "", "").id
    assert json.loads((folder / "manifest.json").read_text())["shards"][1]["tokens"] == 7


def test_progress_counts_bytes_and_wide_vocabularies(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", [("ab", "d"), ("\U0001f600", "d")])
    seen: list[int] = []
    write_shards({"train": tmp_path / "t.parquet"}, Letters(1 << 20), tmp_path / "s", seen.append)
    shard = open_shards(tmp_path / "s")["d", "train"]
    assert seen == [2, 4] and shard.data.dtype == np.dtype("<u4")
    assert shard.tokens(1).tolist() == [0x1F600, 2]


def test_writing_again_is_byte_equal_and_leaves_nothing_old(folder: Path, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    (folder / "old-train.bin").write_bytes(b"left by another recipe")
    (folder / "docs-train.bin.part").write_bytes(b"left by a kill")
    splits = {name: tmp_path / f"{name}.parquet" for name in ("train", "heldout")}
    write_shards(splits, Letters(40_000), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["docs-train.bin", "docs-train.npz", "manifest.json"])
def test_a_changed_byte_is_named(folder: Path, name: str) -> None:
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(UserError, match=name):
        open_shards(folder)


def test_missing_short_and_foreign_files_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: made with tokenizer 555555555555, asked for 77"):
        open_shards(folder, tokenizer_sha256="77")
    (folder / "docs-train.bin").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"docs-train\.bin: size does not fit"):
        open_shards(folder, verify=False)
    (folder / "code-train.bin").unlink()
    with pytest.raises(UserError, match=r"code-train\.bin: missing"):
        open_shards(folder, verify=False)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="holds no finished shards"):
        open_shards(folder)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(3, 99), max_size=20), min_size=1, max_size=20))
def test_shard_in_memory(documents: list[list[int]]) -> None:
    shard = Shard.from_documents([[*d, 2] for d in documents])
    assert [shard.tokens(i).tolist() for i in range(len(shard))] == [[*d, 2] for d in documents]
    assert shard.lengths.tolist() == [len(d) + 1 for d in documents]


def test_documents_refuse_half_characters() -> None:
    with pytest.raises(UnicodeEncodeError):
        Document("\ud800", "s", "g", "p", "d")


def test_a_failed_table_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write(path, [("kept", "d")])
    before = path.read_bytes()
    with pytest.raises(RuntimeError), TableWriter(path, DOCUMENT_SCHEMA) as writer:
        writer.add(Document("new", "s", "g", "p", "d").row())
        raise RuntimeError("stopped")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
