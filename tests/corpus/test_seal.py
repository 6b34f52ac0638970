"""Splits that near-duplicates cannot straddle, and the seal that proves it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.corpus.build.split_documents import SEAL, split_documents
from ikirere.corpus.document import DOCUMENT_SCHEMA, Document
from ikirere.corpus.seal import check_seal, make_seal
from ikirere.errors import UserError
from ikirere.tokens.shards import MANIFEST, open_shards, write_shards


def side(*pairs: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([i for i, _ in pairs], dtype="S32"), np.array([f for _, f in pairs], dtype="S32")


def part(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    """A part of (domain, group, family) rows."""
    documents = []
    for i, (domain, group, family) in enumerate(rows):
        row = Document(f"text {i} " * 20, "s", group, f"p{i}", domain).row()
        documents.append(row | {"family": family, "order": i})
    pq.write_table(pa.Table.from_pylist(documents, schema=DOCUMENT_SCHEMA), path)
    return path


rows = st.lists(
    st.tuples(
        st.sampled_from(["code", "docs"]),
        st.sampled_from("abcdefgh"),
        st.sampled_from(["", "", "x", "y", "z"]),
    ),
    min_size=4,
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(rows, st.sampled_from([0.1, 0.4]))
def test_no_family_is_on_both_sides(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], share: float
) -> None:
    folder = tmp_path_factory.mktemp("divide")
    split = split_documents([part(folder / "a.parquet", rows)], share, folder, lambda line: None)
    sides = {n: pq.read_table(folder / f"documents-{n}.parquet").to_pylist() for n in ("train", "heldout")}
    families = {n: {r["family"] for r in found} for n, found in sides.items()}
    assert not families["train"] & families["heldout"]
    assert sum(map(len, sides.values())) == len(rows)
    assert split.seal == json.loads((folder / SEAL).read_text())
    check_seal(
        split.seal,
        {n: side(*((r["id"], r["family"]) for r in found)) for n, found in sides.items()},
        "here",
    )


def test_groups_tied_by_a_family_move_together(tmp_path: Path) -> None:
    tied = [("code", f"g{i}", "tie" if i in (3, 11) else "") for i in range(20)]
    split_documents([part(tmp_path / "a.parquet", tied)], 0.3, tmp_path, lambda line: None)
    heldout = {r["group"] for r in pq.read_table(tmp_path / "documents-heldout.parquet").to_pylist()}
    assert heldout and ({"g3", "g11"} <= heldout or not {"g3", "g11"} & heldout)


def test_a_straddling_family_cannot_be_sealed() -> None:
    with pytest.raises(
        UserError, match=r"1 families of near-duplicates are in both heldout and train, first f1"
    ):
        make_seal({"train": side(("a", "f1"), ("b", "b")), "heldout": side(("c", "f1"))})


def test_a_moved_document_breaks_the_seal() -> None:
    seal = make_seal({"train": side(("a", "a"), ("b", "b")), "heldout": side(("c", "c"))})
    check_seal(seal, {"train": side(("b", "b"), ("a", "a")), "heldout": side(("c", "c"))}, "here")
    with pytest.raises(UserError, match=r"^here: the seal is broken: split train has other documents"):
        check_seal(seal, {"train": side(("a", "a")), "heldout": side(("c", "c"), ("b", "b"))}, "here")
    with pytest.raises(UserError, match="altered"):
        check_seal(seal | {"families": 9}, {}, "here")


class Words:
    vocab_size, eos, sha256 = 300, 0, "words"

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[len(w) for w in t.split()] for t in texts]


def test_shards_check_the_seal_when_they_are_opened(tmp_path: Path) -> None:
    split = split_documents(
        [part(tmp_path / "a.parquet", [("code", f"g{i}", "") for i in range(9)])], 0.3, tmp_path, print
    )
    files = {n: tmp_path / f"documents-{n}.parquet" for n in ("train", "heldout")}
    write_shards(files, Words(), tmp_path / "shards", seal=split.seal)
    assert len(open_shards(tmp_path / "shards")) == 2
    with pytest.raises(UserError, match=r"the seal is broken: split heldout has other documents \(0\)"):
        write_shards({"train": files["train"]}, Words(), tmp_path / "other", seal=split.seal)
    assert not (tmp_path / "other" / MANIFEST).exists()
