"""Exact similarities of candidate pairs against Python's sets; how the work is shared, filtered and read."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ikirere.corpus.dedup.verify as verify
from ikirere.corpus.dedup.lsh import plan
from ikirere.corpus.dedup.verify import NEAR_MISS, Shingles, balance, compare, jaccard, join, shared, shingle

EXAMPLES = settings(max_examples=60, deadline=None)
Sets = list[set[int]]


def stored(folder: Path, sets: Sets) -> Shingles:
    """As `join` writes them, rank by rank."""
    out = folder / "all"
    values = np.array([v for s in sets for v in sorted(s)], dtype="<u8")
    out.with_suffix(".values").write_bytes(values.tobytes())
    sizes = np.array([len(s) for s in sets], dtype=np.int64)
    np.save(out.with_suffix(".sizes.npy"), sizes)
    np.save(out.with_suffix(".starts.npy"), np.cumsum(sizes) - sizes)
    return Shingles(out)


def runs_of(folder: Path, *runs: Sequence[tuple[int, int]]) -> list[Path]:
    paths = []
    for index, pairs in enumerate(runs):
        paths.append(folder / f"run-{index}.npy")
        np.save(paths[-1], np.array(sorted(a << 32 | b for a, b in pairs), dtype=np.uint64))
    return paths


def similar(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0


@EXAMPLES
@given(
    st.sets(st.integers(0, 2**64 - 1), max_size=12),
    st.sets(st.integers(0, 20), max_size=12),
    st.integers(0, 6),
)
def test_jaccard_is_that_of_sets(one: set[int], other: set[int], both: int) -> None:
    one, other = one | set(range(both)), other | set(range(both))
    a, b = (np.array(sorted(s), dtype=np.uint64) for s in (one, other))
    assert jaccard(a, b) == jaccard(b, a) == (similar(one, other) if one and other else 0.0)
    if one:
        assert shared(a, b).tolist() == [value in one for value in sorted(other)]


def some_sets(count: int, seed: int) -> Sets:
    """Sets of 0 to 40 values, many of which are close to another one."""
    drawn = random.Random(seed)
    sets: Sets = []
    for _ in range(count):
        base = set(drawn.choice(sets)) if sets and drawn.random() < 0.7 else set()
        for _ in range(drawn.randrange(12)):
            base.symmetric_difference_update({drawn.randrange(60)})
        sets.append(base)
    return sets


@pytest.mark.parametrize("at_once", [1, 16, 1 << 21])
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_candidates_are_compared_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float, at_once: int
) -> None:
    monkeypatch.setattr(verify, "VALUES_AT_ONCE", at_once)
    sets = [s or {1} for s in some_sets(40, 1)]
    stored(tmp_path, sets)
    pairs = list(combinations(range(40), 2))
    runs = runs_of(tmp_path, pairs[::2], pairs[::3], pairs[1::2])
    counts = compare(0, [0, 40], runs, threshold, tmp_path / "all", tmp_path)
    exact = {pair: similar(sets[pair[0]], sets[pair[1]]) for pair in pairs}
    hits = np.load(tmp_path / "000000.hits.npy")
    assert [(*row[:2], row[2]) for row in hits.tolist()] == [
        (*pair, value) for pair, value in exact.items() if value >= threshold
    ]
    misses = np.load(tmp_path / "000000.misses.npy")
    assert [row[:2] for row in misses.tolist()] == [
        pair for pair, value in exact.items() if threshold - NEAR_MISS <= value < threshold
        and possible(sets, pair, threshold)
    ]  # fmt: skip
    assert counts == {
        "candidates": len(pairs), "read": sum(possible(sets, pair, threshold) for pair in pairs),
    }  # fmt: skip
    assert len(hits) > 2 and len(misses) > 2 and counts["read"] < len(pairs)


def possible(sets: Sets, pair: tuple[int, int], threshold: float) -> bool:
    """Similarity is at most the smaller size over the larger."""
    small, large = sorted(len(sets[i]) for i in pair)
    return small / large >= threshold


def test_pairs_whose_sizes_rule_the_threshold_out_are_not_read(tmp_path: Path) -> None:
    """Of ten values and eight the similarity can be 0.8 and not more; an empty set is like nothing."""
    sets = [set(range(10)), set(range(8)), set(range(7)), set(), set()]
    stored(tmp_path, sets)
    runs = runs_of(tmp_path, [(0, 1), (0, 2), (0, 3), (3, 4)])
    assert compare(0, [0, 5], runs, 0.8, tmp_path / "all", tmp_path) == {"candidates": 4, "read": 1}
    assert np.load(tmp_path / "000000.hits.npy").tolist() == [(0, 1, 0.8)]
    assert np.load(tmp_path / "000000.misses.npy").tolist() == []


def test_a_near_miss_is_at_most_a_fifth_below(tmp_path: Path) -> None:
    whole = set(range(10))
    sets = [
        whole,
        whole - {0},
        whole - {0} | {20},
        whole - {0, 1} | {20, 21},
        whole - {0, 1, 2} | {20, 21, 22},
    ]
    stored(tmp_path, sets)  # similarities to the first: 9/10, 9/11, 8/12, 7/13
    compare(0, [0, 5], runs_of(tmp_path, [(0, i) for i in range(1, 5)]), 0.85, tmp_path / "all", tmp_path)
    assert np.load(tmp_path / "000000.hits.npy").tolist() == [(0, 1, 0.9)]
    assert np.load(tmp_path / "000000.misses.npy").tolist() == [(0, 2, 9 / 11), (0, 3, 8 / 12)]


@pytest.mark.parametrize("bounds", [[0, 7, 7, 19, 30], [0, 30], [0, 1, 29, 30]])
def test_chunks_have_the_pairs_of_their_ranks(tmp_path: Path, bounds: list[int]) -> None:
    sets = [s | {1, 2, 3} for s in some_sets(30, 2)]
    stored(tmp_path, sets)
    runs = runs_of(tmp_path, list(combinations(range(30), 2)))
    found = []
    for index, (low, high) in enumerate(pairwise(bounds)):
        counts = compare(index, bounds, runs, 0.3, tmp_path / "all", tmp_path)
        hits = np.load(tmp_path / f"{index:06d}.hits.npy")
        assert counts["candidates"] == sum(29 - a for a in range(low, high))
        assert all(low <= a < high for a in hits["a"].tolist())
        found += hits.tolist()
    compare(9, [0] * 9 + [0, 30], runs, 0.3, tmp_path / "all", tmp_path)
    assert found == np.load(tmp_path / "000009.hits.npy").tolist() and len(found) > 10


def test_without_runs_there_is_nothing(tmp_path: Path) -> None:
    stored(tmp_path, [{1}])
    assert compare(0, [0, 1], [], 0.5, tmp_path / "all", tmp_path) == {"candidates": 0, "read": 0}
    assert len(np.load(tmp_path / "000000.hits.npy")) == 0


def test_work_is_what_has_to_be_read_and_is_shared_evenly(tmp_path: Path) -> None:
    """Rank 0 reads 6 sets of 4 values, rank 1 one of 9, rank 4 three of 4 and rank 5 two of 4; one more for each."""
    sizes = [4, 4, 4, 4, 4, 4, 4, 4, 9]
    shingles = stored(tmp_path, [set(range(n)) for n in sizes])
    first = [(0, 2), (0, 3), (0, 4), (1, 8), (4, 5), (4, 6), (5, 6)]
    second = [(0, 5), (0, 6), (0, 7), (4, 7), (5, 7)]
    runs = runs_of(tmp_path, first, second)
    # Loads by rank: 30, 10, 0, 0, 15, 10, 0, 0, 0 of 65.
    assert balance(runs, shingles, 1) == [0, 9]
    assert balance(runs, shingles, 2) == [0, 1, 9]
    assert balance(runs, shingles, 5) == [0, 0, 0, 1, 4, 9]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 99))
def test_no_chunk_has_more_than_its_share_and_one_document(chunks: int, seed: int) -> None:
    drawn = random.Random(seed)
    sizes = [drawn.randrange(1, 30) for _ in range(40)]
    pairs = sorted({tuple(sorted(drawn.sample(range(40), 2))) for _ in range(200)})
    load = [sum(sizes[b] + 1 for a, b in pairs if a == rank) for rank in range(40)]
    with tempfile.TemporaryDirectory() as folder:
        bounds = balance(
            runs_of(Path(folder), pairs), stored(Path(folder), [set(range(n)) for n in sizes]), chunks
        )
    assert bounds == sorted(bounds) and bounds[0] == 0 and bounds[-1] == 40 and len(bounds) == chunks + 1
    for low, high in pairwise(bounds):
        assert sum(load[low:high]) <= sum(load) / chunks + max(load)


@pytest.mark.parametrize("one_large_first", [True, False])
def test_each_pair_weighs_one_more_than_the_set_that_is_read(tmp_path: Path, one_large_first: bool) -> None:
    """A set of 5 weighs as much as three of 1, so half of the work ends with the first of two ranks."""
    shingles = stored(tmp_path, [{0}, {0}, {0}, {0}, {0}, set(range(5))])
    large, small = (0, 1) if one_large_first else (1, 0)
    runs = runs_of(tmp_path, [(large, 5), *((small, second) for second in (2, 3, 4))])
    assert balance(runs, shingles, 2) == [0, 0, 6]


def test_no_documents_are_no_work(tmp_path: Path) -> None:
    assert balance([], stored(tmp_path, []), 3) == [0, 0]


def test_blocks_are_cut_where_the_values_come_to_another_multiple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "VALUES_AT_ONCE", 6)
    # Sums: 3, 6, 9, 18, 19.
    assert list(verify._blocks(np.array([3, 3, 3, 9, 1]), 10)) == [(10, 11), (11, 13), (13, 15)]
    assert list(verify._blocks(np.array([1, 1]), 0)) == [(0, 2)]


def test_runs_are_read_in_parts(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, [(0, i) for i in range(1, 6)], [], [(1, 2)])
    parts = [part.tolist() for part in verify._parts(runs, 2)]
    assert parts == [[1, 2], [3, 4], [5], [(1 << 32) + 2]]


def words_of(text: str, n: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def test_sets_of_wanted_documents_go_to_one_file_by_rank(tmp_path: Path) -> None:
    """Two pieces of three and two documents, of which four are wanted; ranks are another order."""
    texts = ["a b c d", "e f g", "a b c x y", "a b c d e", "q"]
    wanted, ranks = np.array([True, False, True, True, True]), np.array([4, 0, 3, 1, 2])
    paths = []
    for index, part in enumerate((texts[:3], texts[3:])):
        paths.append(tmp_path / f"{index}.parquet")
        rows = [{"id": t, "text": t, "source": "s", "order": 0} for t in part]
        pq.write_table(pa.Table.from_pylist(rows), paths[-1])
    np.save(tmp_path / "wanted.npy", wanted)
    pieces = plan(paths, [])
    for piece in pieces:
        assert shingle(piece, tmp_path / "wanted.npy", 2, tmp_path) == {}
    assert not list(tmp_path.glob("*.part"))
    size = join(pieces, wanted, ranks, tmp_path, tmp_path / "all")
    assert size == (tmp_path / "all.values").stat().st_size and not list(tmp_path.glob("0*.values"))
    shingles = Shingles(tmp_path / "all")
    expected = [words_of(texts[i], 2) if wanted[i] else set() for i in np.argsort(ranks)]
    assert shingles.sizes.tolist() == [len(s) for s in expected] and size == 8 * sum(map(len, expected))
    for a, b in combinations(range(5), 2):
        assert jaccard(shingles.of(a), shingles.of(b)) == pytest.approx(similar(expected[a], expected[b]))  # type: ignore[arg-type]


def test_no_values_at_all_can_be_opened(tmp_path: Path) -> None:
    shingles = stored(tmp_path, [set(), set()])
    assert len(shingles.of(1)) == 0
