"""Endless streams and the rows cut from them end to end: orders within an epoch, and where a new one begins."""

from __future__ import annotations

import numpy as np
import pytest

from ikirere.tokens.permutation import keyed, permuted
from ikirere.tokens.shards import Shard
from ikirere.tokens.stream import Concatenated, DocumentStream


def shard_of(lengths: list[int]) -> Shard:
    """Token p of the data is p."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Shard(np.arange(offsets[-1], dtype=np.uint32), offsets, np.array(lengths))


def rows(cut: Concatenated, ordinals: list[int]) -> list[list[int]]:
    """Tokens of each row; each row is asked for by itself."""
    found = []
    for ordinal in ordinals:
        pieces = cut.pieces(np.array([ordinal]))
        spans = zip(pieces.source.tolist(), pieces.length.tolist())
        found.append([token for start, n in spans for token in range(start, start + n)])
    return found


def epoch_tokens(stream: DocumentStream, number: int) -> list[int]:
    order, _ = stream.epoch(number)
    offsets = stream.shard.offsets
    return [token for d in order.tolist() for token in range(offsets[d], offsets[d + 1])]


def test_permutations_and_keys_are_those_of_finished_runs() -> None:
    """A resumed run has to see the rest of the order in which it began."""
    cut = Concatenated(DocumentStream(shard_of([80]), "a", 0), 0, 10, 16, 0)
    assert [row[0] // 10 for row in rows(cut, list(range(16)))] == [
        5,
        0,
        7,
        3,
        6,
        4,
        1,
        2,
        4,
        5,
        3,
        1,
        6,
        7,
        2,
        0,
    ]
    assert keyed(1, 2, 3).tolist() == [7702586659592502839]
    assert permuted(np.arange(8), np.full(8, 8), np.repeat(keyed(5), 8)).tolist() == [7, 1, 3, 5, 0, 2, 4, 6]


def test_documents_come_in_another_order_in_each_epoch() -> None:
    stream = DocumentStream(shard_of([3] * 50), "a", 0)
    orders = [stream.epoch(number)[0].tolist() for number in (0, 1, 2)]
    for order in orders:
        assert sorted(order) == list(range(50)) != order
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert stream.epoch(0)[0].tolist() == orders[0]
    for other in (DocumentStream(shard_of([3] * 50), "a", 1), DocumentStream(shard_of([3] * 50), "b", 0)):
        assert other.epoch(0)[0].tolist() != orders[0]


def test_the_first_row_of_a_new_epoch_is_of_that_epoch() -> None:
    stream = DocumentStream(shard_of([7, 13, 20, 40, 20]), "a", 3)
    cut = Concatenated(stream, 0, 10, 30, 0)
    for epoch in range(3):
        tokens = epoch_tokens(stream, epoch)
        tiles = sorted(tokens[start : start + 10] for start in range(0, 100, 10))
        assert sorted(rows(cut, list(range(10 * epoch, 10 * epoch + 10)))) == tiles


@pytest.mark.parametrize("base", [0, 5, 90])
def test_the_last_row_of_an_epoch_continues_into_the_next(base: int) -> None:
    stream = DocumentStream(shard_of([25] * 4), "a", 0)
    cut = Concatenated(stream, base, 30, 9, 0)
    assert cut.end == base + 270
    endless = [token for epoch in range(4) for token in epoch_tokens(stream, epoch)]
    tiles = [endless[start : start + 30] for start in range(base, base + 270, 30)]
    found = rows(cut, list(range(9)))
    assert sorted(found) == sorted(tiles)
    first = [i for i in range(9) if base + 30 * i < 100]  # rows that begin in the first epoch come first
    assert sorted(found[: len(first)]) == sorted(tiles[: len(first)])


def test_rows_are_visited_in_an_order_of_seed_salt_and_epoch() -> None:
    def order(seed: int = 0, salt: int = 0, base: int = 0) -> list[int]:
        """Which tile of the epoch each of its 200 rows is; one document, so that its tokens are in order."""
        cut = Concatenated(DocumentStream(shard_of([2000]), "a", seed), base, 10, 400, salt)
        return [row[0] // 10 for row in rows(cut, list(range(200)))]

    plain = order()
    assert plain == order() and sorted(plain) == list(range(200)) != plain
    for other in (order(seed=1), order(salt=1), order(base=2000)):
        assert sorted(other) == list(range(200))
        assert sum(a == b for a, b in zip(plain, other, strict=True)) < 12
