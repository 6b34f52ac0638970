"""Near-duplicates: what is found is what is there, and who stays follows the rules."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ikirere.data.near as near
from ikirere.data.engine import Engine
from ikirere.data.near import NearResult, bands, find_near_duplicates
from ikirere.data.near.resolve import Crowd, components, decide
from ikirere.data.near.signatures import band_keys, minhash, normalised, shingle_sets
from ikirere.data.near.verify import PAIR, Shingles, jaccard, save
from ikirere.errors import UserError
from ikirere.recipe.hygiene import NearDuplicates

SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("id", "text", "source", "path", "domain")] + [("order", pa.int64())]
)
VOCABULARY = [
    "".join(letters)
    for letters in (random.Random(i).choices("abcdefghijklmnopqrstuvwxyz", k=2 + i % 8) for i in range(6000))
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("native", workers=1)


def identity(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def document(text: str, order: int, source: str = "s", id: str = "") -> dict[str, Any]:
    return {
        "id": id or identity(f"{order} {text}"),
        "text": text,
        "source": source,
        "path": f"{order}.txt",
        "domain": "d",
        "order": order,
    }


def write(folder: Path, rows: Sequence[dict[str, Any]], parts: int = 1) -> list[Path]:
    folder.mkdir(parents=True)
    paths = []
    for index in range(parts):
        path = folder / f"{index:03d}.parquet"
        pq.write_table(pa.Table.from_pylist(list(rows[index::parts]), schema=SCHEMA), path)
        paths.append(path)
    return paths


@pytest.fixture
def search(tmp_path: Path, engine: Engine) -> Callable[..., NearResult]:
    """Texts or rows to the result, with few words per shingle unless told."""

    def run(
        given: Sequence[Any], against: Sequence[Sequence[str]] = (), parts: int = 1, **keys: Any
    ) -> NearResult:
        count = len(list(tmp_path.iterdir()))
        rows = [document(row, order) if isinstance(row, str) else row for order, row in enumerate(given)]
        sets = []
        for index, texts in enumerate(against):
            path = tmp_path / f"set-{count}" / f"seen{index}.parquet"
            path.parent.mkdir(exist_ok=True)
            kind = pa.large_string() if index else pa.string()
            table = pa.table({"id": list(map(identity, texts)), "text": pa.array(texts, kind)})
            pq.write_table(table, path)
            sets.append(path)
        files = write(tmp_path / f"parts-{count}", rows, parts)
        return find_near_duplicates(files, NearDuplicates(**keys), engine, tmp_path / f"work-{count}", sets)

    return run


def words(text: str) -> list[str]:
    """By other means than the product's: for ASCII texts."""
    return re.sub(r"[^\w\s]|_", "", text).lower().split()


def similarity(one: str, other: str, size: int = 5) -> float:
    def shingles(text: str) -> set[tuple[str, ...]]:
        w = words(text)
        return {tuple(w[i : i + size]) for i in range(max(1, len(w) - size + 1))} if w else set()

    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b) if a | b else 0.0


def prose(rng: random.Random, count: int) -> list[str]:
    """Words as they are spread in texts: few of them often."""
    return [VOCABULARY[int(len(VOCABULARY) * rng.random() ** 2.5)] for _ in range(count)]


def edited(rng: random.Random, text: list[str], target: float) -> str:
    """The text with words, punctuation and case changed, at about the Jaccard similarity `target`."""
    copy = list(text)
    for place in rng.sample(range(len(copy)), round(len(copy) * (1 - target) / (1 + target) / 5)):
        copy[place] = "other" + str(rng.randrange(1000))
    if rng.random() < 0.3:
        copy[0] = copy[0].capitalize() + ","
    return ("\n" if rng.random() < 0.2 else " ").join(copy)


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


@given(st.lists(st.text(max_size=60), min_size=1, max_size=6), st.integers(1, 6))
@settings(deadline=None)
def test_signature_and_shingles_agree(texts: list[str], size: int) -> None:
    """A signature is the smallest of those of the shingles that the exact similarity counts."""
    cleaned = normalised(pa.array(texts))
    signatures = minhash(cleaned, 16, size)
    values, sizes = shingle_sets(cleaned, size)
    ends = np.cumsum(sizes)
    known: dict[str, int] = {}
    for text, signature, end, count in zip(cleaned.to_pylist(), signatures, ends, sizes):
        w = text.split(" ") if text else []
        shingles = {" ".join(w[i : i + size]) for i in range(max(1, len(w) - size + 1))} if w else set()
        assert count == len(shingles)
        if shingles:
            assert (minhash(pa.array(sorted(shingles)), 16, size).min(axis=0) == signature).all()
        mine = values[end - count : end]
        assert (np.diff(mine.astype(object)) > 0).all()
        for shingle in shingles:
            alone = int(shingle_sets(pa.array([shingle]), size)[0][0])
            assert alone in mine
            assert known.setdefault(shingle, alone) == alone
    assert len(set(known.values())) == len(known)


@given(st.text(alphabet=st.characters(categories=["L", "P", "Z", "N"])))
@settings(deadline=None)
def test_normalised_is_stable(text: str) -> None:
    once = normalised(pa.array([text]))
    assert normalised(once).to_pylist() == once.to_pylist() or not text.isascii()
    assert not re.search(r"^ | $|  ", once[0].as_py())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't  STOP!\n\tNow ", "dont stop now"),
        ("end ...", "end"),
        ("???", ""),
        (None, ""),
        ("你好世界", "你 好 世 界"),
        ("abcไทย", "abc ไ ท ย"),
        ("コーヒー", "コ ー ヒ ー"),
        ("서울 시", "서울 시"),
        ("Caf\u00e9", "cafe\u0301"),
    ],
)
def test_normalised(text: str | None, expected: str) -> None:
    import unicodedata

    made = normalised(pa.array([text], pa.string())).to_pylist()[0]
    assert made == unicodedata.normalize("NFD", expected)


def test_band_keys_are_even_and_apart() -> None:
    signatures = np.random.default_rng(0).integers(0, 2**32, (2000, 20), dtype=np.uint32)
    keys = band_keys(signatures, 4)
    assert len(np.unique(keys)) == keys.size
    counts = np.bincount((keys >> np.uint64(60)).astype(int).ravel(), minlength=16)
    assert counts.min() > 400
    one = signatures[:1].copy()
    one[0, 7] += 1  # second band
    assert (band_keys(one, 4)[0] == keys[0]).tolist() == [True, False, True, True]
    assert len(np.unique(band_keys(np.zeros((1, 20), np.uint32), 4))) == 4


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
        result = search([one, other + " " * repeat], bands=125, rows=1)
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
