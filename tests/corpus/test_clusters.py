"""Who stays of near-duplicates: by the rules, in families, and in crowds as if all had been compared."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from near_helpers import document, edited, prose, searcher, similarity

from ikirere.corpus.dedup import lsh as bands
from ikirere.corpus.dedup.clusters import Crowd, components, decide
from ikirere.corpus.dedup.near import NearResult
from ikirere.corpus.dedup.verify import PAIR, Shingles, jaccard, save


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., NearResult]:
    return searcher(tmp_path)


def test_who_stays_and_why(search: Callable[..., NearResult]) -> None:
    rng = random.Random(5)
    one, two, three = (prose(rng, 150) for _ in range(3))
    rows = [
        document(" ".join(one), 0, "a"),
        document(" ".join([*one, "a", "few", "more", "words"]), 1, "a"),
        document(" ".join([*two, "and", "many", "more"]), 11, "b"),
        document(" ".join(two), 2, "a"),
        document(" ".join(three), 3, "a"),
        document(" ".join([*three[:-1], "x" * len(three[-1])]), 4, "a"),
    ]
    result = search(rows)
    order = {row["id"]: row["order"] for row in rows}
    texts = {row["id"]: row["text"] for row in rows}
    found = {order[row["id"]]: (order[row["kept"]], row["because"]) for row in result.dropped.to_pylist()}
    longer = len(rows[1]["text"].encode()) - len(rows[0]["text"].encode())
    assert found == {
        0: (1, f"longer by {longer} bytes"),
        11: (2, "comes before in the order of sources"),
        4: (3, "comes before in the same source"),
    }
    for row in result.dropped.to_pylist():
        assert row["jaccard"] == similarity(texts[row["id"]], texts[row["kept"]])
        assert row["kept_set"] == ""


def test_similar_to_a_dropped_one_only(search: Callable[..., NearResult]) -> None:
    """a ~ b ~ c, but a and c differ: b goes, c stays, all are one family."""
    base = [f"w{i:02d}" for i in range(100)]
    a, b, c = base[:90], base[4:94], base[8:98]
    assert similarity(" ".join(a), " ".join(b)) >= 0.9 > 0.85 > similarity(" ".join(a), " ".join(c))
    rows = [document(" ".join(text), order) for order, text in enumerate((a, b, c))]
    rows += [document("nothing like the others at all", 3)]
    result = search(rows, threshold=0.88)
    dropped = result.dropped.to_pylist()
    assert [(row["id"], row["kept"]) for row in dropped] == [(rows[1]["id"], rows[0]["id"])]
    members = sorted(row["id"] for row in rows[:3])
    assert result.families.to_pylist() == [{"id": member, "family": members[0]} for member in members]


def greedy(sets: Sequence[set[int]], threshold: float) -> list[int]:
    """Who stays when each is compared with all that stay."""
    stay: list[int] = []
    for index, mine in enumerate(sets):
        if all(len(mine & sets[other]) / len(mine | sets[other]) < threshold for other in stay):
            stay.append(index)
    return stay


def shingles_of(sets: Sequence[set[int]], folder: Path) -> Shingles:
    arrays = [np.array(sorted(one), dtype=np.uint64) for one in sets]
    out = folder / "sets"
    out.with_suffix(".values").write_bytes(b"".join(array.tobytes() for array in arrays))
    sizes = np.array([len(array) for array in arrays])
    save(out.with_suffix(".sizes.npy"), sizes)
    save(out.with_suffix(".starts.npy"), np.cumsum(sizes) - sizes)
    return Shingles(out)


@given(
    st.lists(st.sets(st.integers(0, 12), min_size=1), min_size=1, max_size=25),
    st.sampled_from([0.3, 0.5, 0.6, 0.8, 0.9, 1.0]),
)
@settings(deadline=None)
def test_crowd_decides_as_all_comparisons_would(
    tmp_path_factory: pytest.TempPathFactory, sets: list[set[int]], threshold: float
) -> None:
    shingles = shingles_of(sets, tmp_path_factory.mktemp("crowd"))
    crowd = np.arange(len(sets), dtype=np.uint32)
    dropped, found = decide(np.zeros(0, PAIR), crowd, Crowd(crowd, shingles, threshold), 0, len(sets))
    stay = greedy(sets, threshold)
    assert sorted(set(range(len(sets))) - set(dropped["b"].tolist())) == stay
    assert np.array_equal(dropped, found)
    for kept, gone, value in dropped.tolist():
        assert kept in stay and kept < gone
        assert value == len(sets[kept] & sets[gone]) / len(sets[kept] | sets[gone]) >= threshold
        assert value == jaccard(shingles.of(kept), shingles.of(gone))


def test_crowds_are_not_compared_pair_by_pair(
    search: Callable[..., NearResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages with one long header, and copies of one page; then the same with every pair compared."""
    rng = random.Random(11)
    header = prose(rng, 120)
    pages = [" ".join(header + prose(rng, 60)) for _ in range(250)]
    copies = [edited(rng, header, rng.uniform(0.75, 1)) for _ in range(250)]
    rows = [document(text, order) for order, text in enumerate(pages + copies)]
    crowded = search(rows)
    assert crowded.figures["crowd"] > 300
    assert crowded.figures["candidates"] < 12_000
    monkeypatch.setattr(bands, "GROUP", 10_000)
    exhaustive = search(rows)
    assert exhaustive.figures["crowd"] == 0 and exhaustive.figures["candidates"] > 40_000
    assert crowded.dropped.column("id").equals(exhaustive.dropped.column("id"))
    assert len(crowded.dropped) > 100


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
@settings(deadline=None)
def test_components(edges: list[tuple[int, int]]) -> None:
    edges = [(a, b) for a, b in edges if a != b]
    pairs = np.array([(a, b, 1.0) for a, b in edges], dtype=PAIR)
    reached: dict[int, set[int]] = {node: {node} for edge in edges for node in edge}
    for _ in reached:
        for a, b in edges:
            joined = reached[a] | reached[b]
            for node in joined:
                reached[node] = joined
    ranks, labels = components(pairs)
    assert dict(zip(ranks.tolist(), labels.tolist())) == {node: min(nodes) for node, nodes in reached.items()}
