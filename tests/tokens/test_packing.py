"""Best-fit packing: the layout against a plain one, documents whole, every token once per epoch."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.tokens import packing
from ikirere.tokens.packing import BestFit, Layout, Leg, _Plan, best_fit
from ikirere.tokens.permutation import keyed, permuted
from ikirere.tokens.shards import Shard
from ikirere.tokens.stream import DocumentStream, Pieces

EXAMPLES = settings(max_examples=100, deadline=None)
lengths_of_documents = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def shard_of(lengths: list[int] | np.ndarray) -> Shard:
    """Token p of the data is p."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Shard(np.arange(offsets[-1], dtype=np.uint32), offsets, np.array(lengths))


# ---------------------------------------------------------------- permutations


@EXAMPLES
@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_a_keyed_permutation_takes_every_place_once(size: int, secret: int) -> None:
    index = np.arange(size)
    image = permuted(index, np.full(size, size), np.full(size, secret, dtype=np.uint64))
    assert sorted(image.tolist()) == index.tolist()


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_orders_of_a_few_are_about_equally_frequent(size: int) -> None:
    draws = 400 * len(list(permutations(range(size))))
    key = np.repeat(keyed(np.arange(draws), 7), size)
    image = permuted(np.tile(np.arange(size), draws), np.full(draws * size, size), key)
    found = Counter(map(tuple, image.reshape(draws, size).tolist()))
    assert set(found) == set(permutations(range(size)))
    # 400 of each are expected with a standard deviation of 20.
    assert all(300 < count < 500 for count in found.values())


def test_many_places_are_well_mixed() -> None:
    size = 100_000
    index = np.arange(size)
    image = permuted(index, np.full(size, size), np.repeat(keyed(3), size))
    other = permuted(index, np.full(size, size), np.repeat(keyed(4), size))
    for a, b in ((index, image), (image, other), (image[:-1], image[1:])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.015  # five standard deviations
    assert (image == other).sum() < 10 and (np.diff(image) == 1).sum() < 10


# ---------------------------------------------------------------- layout


def rows_of(layout: Layout) -> list[list[tuple[int, int]]]:
    """(class, piece) of every row."""
    rows = []
    for group, count in enumerate(layout.rows.tolist()):
        for row in range(count):
            pieces = []
            for entry in range(int(layout.first_entry[group]), int(layout.first_entry[group + 1])):
                each = int(layout.each[entry])
                first = int(layout.base[entry]) + row * each
                pieces += [(int(layout.kind[entry]), first + i) for i in range(each)]
            rows.append(pieces)
    return rows


def one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """Best-fit-decreasing as in the textbook: the free positions of every row, sorted."""
    open_rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        best = min((free, i) for i, free in enumerate([*open_rows, capacity]) if free >= length)[1]
        if best == len(open_rows):
            open_rows.append(capacity)
        open_rows[best] -= length
    return sorted(open_rows)


@EXAMPLES
@given(st.dictionaries(st.integers(1, 50), st.integers(1, 30), max_size=25), st.integers(50, 80))
def test_layout_is_best_fit_decreasing(counts: dict[int, int], capacity: int) -> None:
    lengths = sorted(counts, reverse=True)
    layout = best_fit(lengths, [counts[length] for length in lengths], capacity)
    rows = rows_of(layout)
    assert layout.total == len(rows)
    pieces = [piece for row in rows for piece in row]
    assert sorted(pieces) == sorted((c, i) for c, length in enumerate(lengths) for i in range(counts[length]))
    free = [capacity - sum(lengths[kind] for kind, _ in row) for row in rows]
    assert free == np.repeat(layout.free, layout.rows).tolist()
    assert sorted(free) == one_by_one([x for x in lengths for _ in range(counts[x])], capacity)


def test_the_work_grows_with_lengths_not_with_documents() -> None:
    counts = np.random.default_rng(0).integers(0, 100_000, 2048)
    counts[0] = 0
    lengths = np.flatnonzero(counts)[::-1]
    layout = best_fit(lengths.tolist(), counts[lengths].tolist(), 2048)
    used = int((counts[lengths] * lengths).sum())
    assert layout.total * 2048 - int((layout.rows * layout.free).sum()) == used
    assert used > 0.99 * layout.total * 2048
    assert len(layout.rows) <= 2 * len(lengths) and len(layout.kind) <= 2 * len(lengths) * 11


# ---------------------------------------------------------------- rows of a stream


def checked(pieces: Pieces, rows: int, length: int) -> np.ndarray:
    """Tokens of the pieces, after a look at padding."""
    assert np.bincount(pieces.row, weights=pieces.length, minlength=rows).tolist() == [length] * rows
    padding = pieces.source < 0
    assert not pieces.continues[padding].any()
    for row in range(rows):
        assert not padding[pieces.row == row][:-1].any() and not padding[pieces.row == row].all()
    real = zip(pieces.source[~padding].tolist(), pieces.length[~padding].tolist())
    return np.concatenate([np.arange(source, source + n) for source, n in real])


@EXAMPLES
@given(lengths_of_documents, st.integers(1, 40), st.integers(0, 9), st.integers(1, 3))
def test_every_token_once_in_each_epoch(lengths: list[int], length: int, seed: int, epochs: int) -> None:
    shard = shard_of(lengths)
    stream = DocumentStream(shard, "a", seed)
    per_epoch = BestFit(stream, 0, length, 1, 0).epoch_rows()
    cut = BestFit(stream, 0, length, epochs * per_epoch, 0)
    assert cut.end == epochs * shard.total_tokens
    seen = []
    for epoch in range(epochs):
        pieces = cut.pieces(np.arange(epoch * per_epoch, (epoch + 1) * per_epoch))
        tokens = checked(pieces, per_epoch, length)
        assert sorted(tokens.tolist()) == list(range(shard.total_tokens))
        seen.append(tokens.tolist())
        document = np.searchsorted(shard.offsets, pieces.source, side="right") - 1
        real = pieces.source >= 0
        ends = shard.offsets[document + 1]
        assert (pieces.continues == (real & (pieces.source + pieces.length < ends))).all()
        # One piece where the document fits, full rows and at most one rest where it does not.
        in_pieces = Counter(document[real].tolist())
        assert in_pieces == {d: -(-n // length) for d, n in enumerate(lengths)}
    if len(lengths) > 30:
        assert epochs == 1 or seen[0] != seen[1]


@EXAMPLES
@given(
    lengths_of_documents, st.lists(st.tuples(st.integers(1, 40), st.integers(0, 25)), min_size=1, max_size=5)
)
def test_phases_of_other_lengths_go_on_where_the_last_one_ended(
    lengths: list[int], phases: list[tuple[int, int]]
) -> None:
    shard = shard_of(lengths)
    stream = DocumentStream(shard, "a", 3)
    base, counts = 0, np.zeros(shard.total_tokens, dtype=np.int64)
    for salt, (length, count) in enumerate(phases):
        cut = BestFit(stream, base, length, count, salt)
        if count:
            tokens = checked(cut.pieces(np.arange(count)), count, length)
            assert len(tokens) == cut.end - base
            counts += np.bincount(tokens, minlength=shard.total_tokens)
            assert counts.max() - counts.min() <= 1
        base = cut.end
        assert counts.sum() == base


@EXAMPLES
@given(lengths_of_documents, st.integers(1, 40), st.integers(1, 60), st.data())
def test_rows_do_not_depend_on_those_asked_with_them(
    lengths: list[int], length: int, count: int, data: st.DataObject
) -> None:
    stream = DocumentStream(shard_of(lengths), "a", 1)
    cut = BestFit(stream, 0, length, count, 5)
    whole = cut.pieces(np.arange(count))
    chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=8))
    some = BestFit(DocumentStream(shard_of(lengths), "a", 1), 0, length, count, 5).pieces(np.array(chosen))
    for place, row in enumerate(chosen):
        for name in ("source", "length", "continues"):
            theirs, mine = getattr(whole, name)[whole.row == row], getattr(some, name)[some.row == place]
            assert theirs.tolist() == mine.tolist()


@pytest.mark.parametrize(("length", "least"), [(512, 0.999), (2048, 0.999), (4096, 0.999)])
def test_rows_of_ordinary_documents_are_full(length: int, least: float) -> None:
    lengths = np.random.default_rng(1).lognormal(6, 1.3, 20_000).astype(np.int64) + 1
    shard = shard_of(lengths)
    stream = DocumentStream(shard, "a", 0)
    rows = BestFit(stream, 0, length, 1, 0).epoch_rows()
    assert shard.total_tokens / (rows * length) > least
    third = BestFit(stream, 1000, length, rows // 3, 0)  # from within a document to within an epoch
    assert (third.end - 1000) / (rows // 3 * length) > least - 0.002


def test_a_giant_document_over_several_phases() -> None:
    stream = DocumentStream(shard_of([1000]), "a", 0)
    base, seen = 0, []
    for length, count in ((64, 3), (128, 2), (100, 5), (7, 200)):
        cut = BestFit(stream, base, length, count, base)
        seen += checked(cut.pieces(np.arange(count)), count, length).tolist()
        base = cut.end
    counts = np.bincount(seen, minlength=1000)
    assert counts.max() - counts.min() == 1 and base == len(seen)


def test_documents_meet_others_in_every_epoch() -> None:
    stream = DocumentStream(shard_of([5] * 400), "a", 0)
    cut = BestFit(stream, 0, 10, 400, 0)
    pairs = []
    for epoch in range(2):
        pieces = cut.pieces(np.arange(200 * epoch, 200 * (epoch + 1)))
        pairs.append({tuple(sorted(pieces.source[pieces.row == row].tolist())) for row in range(200)})
    assert len(pairs[0]) == len(pairs[1]) == 200 and len(pairs[0] & pairs[1]) < 10
    other = BestFit(DocumentStream(shard_of([5] * 400), "a", 1), 0, 10, 400, 0).pieces(np.arange(200))
    assert other.source.tolist() != cut.pieces(np.arange(200)).source.tolist()


@EXAMPLES
@given(lengths_of_documents, st.integers(1, 30), st.data())
def test_documents_after_the_tail_of_a_leg_have_their_rows_alone(
    lengths: list[int], length: int, data: st.DataObject
) -> None:
    stream = DocumentStream(shard_of(lengths), "a", 0)
    order, begin = stream.epoch(0)
    first = data.draw(st.integers(0, len(lengths) - 1))
    start = int(begin[first]) + data.draw(st.integers(0, lengths[order[first]] - 1))
    tail = int(begin[data.draw(st.integers(first + 1, len(lengths)))])
    alone = order[begin[:-1] >= tail]
    own = sum(-(-lengths[d] // length) for d in alone)
    leg = Leg(0, 1, 0, 0, start, tail, stream.total)
    plan = _Plan(stream, leg, length)
    count = int(plan.first_row[-1])
    pieces = plan.pieces(np.arange(count), np.zeros(count, dtype=np.uint64))
    tokens = checked(pieces, count, length)
    places = np.concatenate([np.arange(stream.shard.offsets[d], stream.shard.offsets[d + 1]) for d in order])
    assert sorted(tokens.tolist()) == sorted(places[start:].tolist())
    document = np.searchsorted(stream.shard.offsets, pieces.source, side="right") - 1
    rows = pieces.row[(pieces.source >= 0) & np.isin(document, alone)]
    assert len(set(rows.tolist())) == len(rows) == own
    assert len(set(pieces.row[pieces.source >= 0].tolist())) == count
    assert not set(rows.tolist()) & set(pieces.row[(pieces.source >= 0) & ~np.isin(document, alone)].tolist())


@pytest.mark.parametrize("length", [65_535, 65_536, 65_537])
def test_rows_at_the_width_of_sixteen_bits(length: int) -> None:
    """Rests are sorted as 16-bit numbers where they fit: those of 0, 1 and length - 1 tokens are the ends."""
    lengths = [1, length, length - 1, 2, 2 * length, length + 1, 300, 2 * length + length - 1, 1]
    shard = shard_of(lengths)
    cut = BestFit(DocumentStream(shard, "a", 0), 0, length, 20, 0)
    rows = cut.epoch_rows()
    assert rows == len(one_by_one([n % length for n in lengths if n % length], length)) + 6
    pieces = cut.pieces(np.arange(rows))
    assert sorted(checked(pieces, rows, length).tolist()) == list(range(shard.total_tokens))
    document = np.searchsorted(shard.offsets, pieces.source[pieces.source >= 0], side="right") - 1
    assert Counter(document.tolist()) == {d: -(-n // length) for d, n in enumerate(lengths)}


def test_a_leg_of_whole_epochs_shares_a_layout_and_a_stretch_ends_it() -> None:
    """Seven documents of 6 to a row of 10 make 7 rows: 17 rows are two epochs and a stretch of three documents."""
    stream = DocumentStream(shard_of([6] * 7), "a", 0)
    cut = BestFit(stream, 0, 10, 17, 0)
    assert cut.epoch_rows() == 7
    assert cut.legs == [Leg(0, 2, 0, 7, 0, 42, 42), Leg(2, 1, 14, 3, 0, 18, 18)]
    assert cut.end == 2 * 42 + 18
    after = BestFit(stream, cut.end, 10, 13, 0)
    assert after.legs == [
        Leg(2, 1, 0, 4, 18, 42, 42),
        Leg(3, 1, 4, 7, 0, 42, 42),
        Leg(4, 1, 11, 2, 0, 12, 12),
    ]


def test_the_last_document_of_a_phase_is_cut_at_the_end_of_a_row() -> None:
    """Of documents of 25 tokens one fills two rows of 10 and a half: a third row would hold its rest, or the
    beginning of the next document's rows."""
    stream = DocumentStream(shard_of([25] * 4), "a", 0)
    cut = BestFit(stream, 0, 10, 4, 0)
    assert cut.legs == [Leg(0, 1, 0, 4, 0, 25, 35)] and cut.end == 35
    pieces = cut.pieces(np.arange(4))
    assert sorted(pieces.length[pieces.source >= 0].tolist()) == [5, 10, 10, 10]
    assert sorted(pieces.length[pieces.source < 0].tolist()) == [5]


def test_rows_are_visited_in_an_order_of_seed_salt_and_epoch() -> None:
    lengths = [10] * 200

    def order(seed: int = 0, salt: int = 0, base: int = 0) -> list[int]:
        cut = BestFit(DocumentStream(shard_of(lengths), "a", seed), base, 10, 400, salt)
        return cut.pieces(np.arange(200)).source.tolist()

    plain = order()
    assert plain == order() and plain != sorted(plain)
    for other in (order(seed=1), order(salt=1), order(base=2000)):
        assert sorted(other) == sorted(plain) and sum(a == b for a, b in zip(plain, other, strict=True)) < 12


def test_which_row_and_which_document_come_where_is_what_resumed_runs_depend_on() -> None:
    """Of a stretch's key, numbered keys: 1 for the order of rows, 2 for the documents of each length class."""
    stream, rows = DocumentStream(shard_of([10] * 30), "a", 4), np.arange(30)
    key = keyed(*stream.key, 7, 10, 0, 0)
    order = permuted(rows, np.full(30, 30), keyed(np.repeat(key, 30), 1))
    assert (
        BestFit(stream, 0, 10, 30, 7).pieces(rows).source.tolist() == (10 * stream.documents[order]).tolist()
    )
    alone = DocumentStream(shard_of([6] * 30), "a", 4)
    key = np.repeat(keyed(*alone.key, 7, 10, 0, 0), 30)
    order = permuted(rows, np.full(30, 30), keyed(key, 1))
    drawn = permuted(order, np.full(30, 30), keyed(keyed(key, 2), 0))
    pieces = BestFit(alone, 0, 10, 30, 7).pieces(rows)
    by_row = pieces.source[pieces.source >= 0][np.argsort(pieces.row[pieces.source >= 0])]
    assert by_row.tolist() == (6 * alone.documents[drawn]).tolist()


@pytest.mark.parametrize("share", [0.1, 0.37, 0.8])
def test_where_a_stretch_ends_is_found_in_few_packings(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halving alone would take 15 for 20,000 documents."""
    lengths = np.random.default_rng(2).lognormal(6, 1.3, 20_000).astype(np.int64) + 1
    stream = DocumentStream(shard_of(lengths), "a", 0)
    wanted = int(share * BestFit(stream, 0, 512, 1, 0).epoch_rows())
    packings = []
    real = packing._packed
    monkeypatch.setattr(packing, "_packed", lambda *a: packings.append(1) or real(*a))
    assert BestFit(stream, 0, 512, wanted, 0).legs[-1].rows == wanted
    assert len(packings) <= 6
