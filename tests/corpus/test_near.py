"""Near-duplicates: what is found is what is there, whatever the memory, files and breaks."""

from __future__ import annotations

import hashlib
import os
import random
import re
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from near_helpers import SCHEMA, document, edited, identity, one_worker, prose, searcher, similarity, write

import ikirere.corpus.dedup.near as near
from ikirere.corpus.dedup import lsh as bands
from ikirere.corpus.dedup.near import NearResult, find_near_duplicates
from ikirere.corpus.executor import Engine
from ikirere.errors import UserError
from ikirere.recipe.hygiene import NearDuplicates


@pytest.fixture
def engine() -> Engine:
    return one_worker()


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., NearResult]:
    return searcher(tmp_path)


def content(result: NearResult) -> str:
    """A hash of everything found."""
    tables = [pq.read_table(result.pairs), pq.read_table(result.misses), result.dropped, result.families]
    return hashlib.sha256(repr([table.to_pylist() for table in tables]).encode()).hexdigest()


def test_recall_and_precision(search: Callable[..., NearResult]) -> None:
    rng = random.Random(7)
    rows, planted = [], {}
    while len(planted) < 2500:
        text = prose(rng, rng.randint(30, 300))
        one, other = " ".join(text), edited(rng, text, rng.uniform(0.72, 1.0))
        a, b = document(one, len(rows)), document(other, len(rows) + 1)
        rows += [a, b]
        true = similarity(one, other)
        if true >= 0.8:
            planted[a["id"], b["id"]] = true
    rng.shuffle(rows)
    result = search(rows)
    texts = {row["id"]: row["text"] for row in rows}
    pairs = pq.read_table(result.pairs).to_pylist()
    for pair in pairs:
        assert pair["jaccard"] == similarity(texts[pair["a"]], texts[pair["b"]]) >= 0.8
    found = {frozenset((pair["a"], pair["b"])) for pair in pairs}
    assert len(found) == len(pairs)
    high = [frozenset(ids) in found for ids, true in planted.items() if true >= 0.85]
    low = [frozenset(ids) in found for ids, true in planted.items() if true < 0.85]
    assert len(high) > 1500 and len(low) > 300
    assert np.mean(high) >= 0.999
    assert np.mean(low) >= 0.98
    order = [(pair["a"], pair["b"]) for pair in pairs]
    assert order == sorted(order)
    misses = pq.read_table(result.misses).to_pylist()
    assert misses
    assert all(0.6 <= m["jaccard"] < 0.8 for m in misses)
    assert all(m["jaccard"] == similarity(texts[m["a"]], texts[m["b"]]) for m in misses)


def corpus(rng: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for family in range(150):
        text = prose(rng, rng.randint(5, 120))
        for _ in range(rng.choice([1, 1, 2, 3, 5])):
            rows.append(document(edited(rng, text, rng.uniform(0.7, 1)), len(rows), f"s{family % 3}"))
    header = prose(rng, 40)
    for _ in range(2 * bands.GROUP):
        rows.append(document(" ".join(header + prose(rng, 3)), len(rows), "s2"))
    rows += [document("", len(rows)), document("?", len(rows) + 1), document("one", len(rows) + 2)]
    return rows


def test_memory_and_files_do_not_matter(
    search: Callable[..., NearResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = corpus(random.Random(3))
    whole = search(rows)
    assert len(whole.dropped) > 100 and whole.figures["crowd"] >= 2 * bands.GROUP
    monkeypatch.setattr(near, "CHUNK_PAIRS", 1000)
    monkeypatch.setattr(bands, "SMALLEST_RANGE", 4096)
    monkeypatch.setattr(bands, "PAIRS_AT_ONCE", 500)
    monkeypatch.setattr(bands, "BATCH_ROWS", 50)
    assert bands.ranges_for(len(rows), 25, 10_000, 1) > 20
    shuffled = random.Random(0).sample(rows, len(rows))
    for found in (
        search(rows, spill_bytes=10_000),
        search(rows, parts=5, spill_bytes=10_000),
        search(shuffled, parts=3),
    ):
        assert content(found) == content(whole)


def test_pieces_of_one_file(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = corpus(random.Random(4))[:200]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, row_group_size=30)
    whole = find_near_duplicates([path], NearDuplicates(), engine, tmp_path / "one")
    monkeypatch.setattr(bands, "PIECE_BYTES", 1)
    assert len(bands.plan([path], [])) == 7
    assert content(find_near_duplicates([path], NearDuplicates(), engine, tmp_path / "many")) == content(
        whole
    )


def test_against(search: Callable[..., NearResult]) -> None:
    rng = random.Random(1)
    seen, fresh = prose(rng, 90), prose(rng, 90)
    text = " ".join(seen)
    rows = [
        document(edited(rng, seen, 0.93), 0),
        document(" ".join(fresh), 1),
        document(text, 2, id=identity(text)),
    ]
    result = search(
        rows, against=[[text, text + " more"], ["unrelated words that nobody else has written down"]]
    )
    dropped = result.dropped.to_pylist()
    assert {row["id"] for row in dropped} == {rows[0]["id"], rows[2]["id"]}
    for row in dropped:
        assert row["kept"] == identity(text) and row["kept_set"] == "seen0.parquet"
        assert row["because"] == "belongs to seen0.parquet, which is never dropped"
    assert {row["id"]: row["jaccard"] for row in dropped}[rows[2]["id"]] == 1.0
    pairs = pq.read_table(result.pairs).to_pylist()
    assert not [pair for pair in pairs if pair["b_set"]]
    assert sorted(pair["a_set"] for pair in pairs) == ["", *["seen0.parquet"] * 4]
    assert result.figures["against"] == 3
    assert {row["id"] for row in result.families.to_pylist()} == {rows[0]["id"], rows[2]["id"]}


def test_odd_texts(search: Callable[..., NearResult]) -> None:
    chinese = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少" * 3
    thai = "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอนหรือวรรณยุกต์" * 3
    texts = [
        "",
        "",
        "...",
        "!?",
        "word",
        "Word!",
        "another",
        "two words",
        "TWO words",
        chinese,
        chinese[:-1] + "。",
    ]
    texts += [thai, thai + "ๆ", "Ένα δύο τρία τέσσερα πέντε έξι", "ένα  δύο τρία, τέσσερα πέντε έξι"]
    rows = [document(text, order) for order, text in enumerate(texts)]
    result = search(rows)
    order = {row["id"]: row["order"] for row in rows}
    found = {(order[row["id"]], order[row["kept"]]) for row in result.dropped.to_pylist()}
    # "Word!" is longer than "word" by more than 1%, the Thai texts differ by less.
    assert found == {(4, 5), (8, 7), (10, 9), (12, 11), (13, 14)}
    assert result.figures["empty"] == 4


def test_goes_on_after_a_kill(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = corpus(random.Random(6))
    parts = write(tmp_path / "parts", rows, 3)
    whole = find_near_duplicates(parts, NearDuplicates(), engine, tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "whole").iterdir()) == ["misses.parquet", "pairs.parquet"]

    def kill_after(function: str, work: Path) -> None:
        real = getattr(near, function)

        def killed(*args: Any) -> Any:
            real(*args)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(near, function, killed)
            find_near_duplicates(parts, NearDuplicates(), engine, work)

    for function in ("match", "join", "compare", "pair_table"):
        work = tmp_path / f"work-{function}"
        kill_after(function, work)
        assert len(list((work / "near" / "signed").glob("*.json"))) == 3
        lines: list[str] = []
        with monkeypatch.context() as patch:
            patch.delattr(near, "sign")
            again = find_near_duplicates(parts, NearDuplicates(), engine, work, say=lines.append)
        assert lines
        assert content(again) == content(whole)
    # What other settings left is of no use.
    kill_after("compare", tmp_path / "work")
    other = NearDuplicates(shingle_words=2)
    fresh = find_near_duplicates(parts, other, engine, tmp_path / "fresh")
    assert (
        content(find_near_duplicates(parts, other, engine, tmp_path / "work"))
        == content(fresh)
        != content(whole)
    )


def test_nothing_to_compare(tmp_path: Path, engine: Engine, search: Callable[..., NearResult]) -> None:
    empty = find_near_duplicates([], NearDuplicates(), engine, tmp_path / "w")
    assert pq.read_table(empty.pairs).num_rows == len(empty.dropped) == len(empty.families) == 0
    wordless = search(["", "?"])
    assert pq.read_table(wordless.pairs).schema == pq.read_table(empty.pairs).schema
    assert (
        wordless.dropped.schema == empty.dropped.schema and wordless.families.schema == empty.families.schema
    )
    assert set(wordless.figures) == set(empty.figures)
    assert len(wordless.dropped) == 0 and wordless.figures["empty"] == 2


def test_files_that_will_not_do(tmp_path: Path, engine: Engine, search: Callable[..., NearResult]) -> None:
    broken, poor, numbers = (tmp_path / f"{name}.parquet" for name in ("broken", "poor", "numbers"))
    broken.write_text("no")
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), poor)
    pq.write_table(pa.table({"id": ["a"], "text": [1]}), numbers)
    for parts, against, message in (
        ([broken], [], r"broken.parquet: cannot be read as Parquet"),
        ([poor], [], r"poor.parquet: has no column source, order"),
        ([], [numbers], r"numbers.parquet: column text holds int64"),
    ):
        with pytest.raises(UserError, match=message):
            find_near_duplicates(parts, NearDuplicates(), engine, tmp_path / "w", against)
    with pytest.raises(ValueError, match="the id same"):
        search([document("x", 0, id="same"), document("y", 1, id="same")])


def test_similarity_is_exact_at_the_threshold(search: Callable[..., NearResult]) -> None:
    """4 of 5 shingles are 0.8, and that counts."""
    one, other = "a b c d e f g h i", "a b c d e f g h"
    assert similarity(one, other) == 0.8
    for repeat in range(3):
        result = search([one, other + " " * repeat], bands=125, rows_per_band=1)
        assert pq.read_table(result.pairs).column("jaccard").to_pylist() == [0.8]


def test_every_pair_of_a_small_group(search: Callable[..., NearResult]) -> None:
    rng = random.Random(2)
    text = prose(rng, 200)
    texts = [edited(rng, text, 0.97) for _ in range(20)]
    rows = [document(one, order) for order, one in enumerate(texts)]
    expected = {
        (tuple(sorted((a["id"], b["id"]))), similarity(a["text"], b["text"]))
        for a, b in combinations(rows, 2)
        if similarity(a["text"], b["text"]) >= 0.8
    }
    found = pq.read_table(search(rows).pairs).to_pylist()
    assert {(tuple(sorted((p["a"], p["b"]))), p["jaccard"]) for p in found} == expected
    assert len(expected) == 190


@pytest.mark.skipif("IKIRERE_DATA" not in os.environ, reason="IKIRERE_DATA is not set")
def test_two_editions_of_novels(tmp_path: Path, engine: Engine) -> None:
    rows = []
    for path in sorted((Path(os.environ["IKIRERE_DATA"]) / "corpus/books").glob("*.parquet")):
        for row in pq.read_table(path, columns=["text", "path", "source"]).to_pylist():
            if re.search("145|2701|Middlemarch|Moby", row["path"]):
                rows.append(document(row["text"], len(rows), row["source"], id=row["path"]))
    result = find_near_duplicates(write(tmp_path / "p", rows, 2), NearDuplicates(), engine, tmp_path / "w")
    pairs = pq.read_table(result.pairs).to_pylist()
    assert [(pair["a"], pair["b"]) for pair in pairs] == [("145.txt", "George Eliot/Middlemarch.md")]
    assert 0.99 < pairs[0]["jaccard"] < 1
    misses = pq.read_table(result.misses).to_pylist()
    assert [(pair["a"], pair["b"]) for pair in misses] == [("2701-0.txt", "Herman Melville/Moby-Dick.md")]
    assert 0.74 < misses[0]["jaccard"] < 0.76
