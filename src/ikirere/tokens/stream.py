"""The endless token stream of some documents, epoch after epoch, and rows that are cut from it end to end."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from ikirere.tokens.shards import Shard

Value = TypeVar("Value")


class LruCache:
    """The `size` most recently used results of a costly function."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: OrderedDict[Hashable, object] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value kept under `key`, else that of `make()`, which is then kept."""
        if key not in self.kept:
            self.kept[key] = make()
        self.kept.move_to_end(key)
        value: Value = self.kept[key]  # type: ignore[assignment]
        while len(self.kept) > self.size:
            self.kept.popitem(last=False)
        return value


@dataclass
class Pieces:
    """Stretches of documents that rows are made of; all arrays are [n].

    row: int64, index among the rows asked for. Pieces of one row are in their order, rows in any.
    source: int64, index of the first token in the shard's data; -1 for padding.
    length: int64, tokens. continues: bool, whether the document has a token after the piece, which is then the
    label of the piece's last position.
    """

    row: np.ndarray
    source: np.ndarray
    length: np.ndarray
    continues: np.ndarray


class Cut(Protocol):
    """How one phase cuts a stream into rows."""

    stream: DocumentStream
    count: int  # rows
    end: int  # position of the stream at which the next phase continues

    def pieces(self, ordinals: np.ndarray) -> Pieces:
        """What the rows of these numbers are made of."""


class DocumentStream:
    """Position p of the stream is token p mod N of epoch p div N.

    Each epoch is all N tokens of the documents in an order drawn from (seed, name, epoch).

    Memory: 4 bytes per document, and 12 for each of the last two epochs in use.
    """

    def __init__(self, shard: Shard, name: str, seed: int, documents: np.ndarray | None = None) -> None:
        self.shard = shard
        self.key = (seed & 0xFFFFFFFF, zlib.crc32(name.encode()))
        # A shard of more than 2^31 documents has more than 17 GB of offsets; narrow numbers do below that.
        self.dtype = np.int32 if len(shard) < 2**31 else np.int64
        chosen = np.arange(len(shard)) if documents is None else documents
        self.documents = chosen.astype(self.dtype)
        self.total = int((shard.offsets[self.documents + 1] - shard.offsets[self.documents]).sum())
        self._orders = LruCache(2)
        self.kept = LruCache(3)  # what cuts make of an epoch
        self.rows_of_epoch: dict[int, int] = {}  # best-fit rows, by their length

    def rng(self, *more: int) -> np.random.Generator:
        """A generator seeded by the stream's seed and name, and `more` (each at least 0)."""
        return np.random.default_rng([*self.key, *more])

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents of an epoch in its order [n], and where each begins in it, [n + 1] with the end."""
        return self._orders.get(number, partial(self._order, number))

    def _order(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        order = self.documents[self.rng(0, number).permutation(len(self.documents))]
        begin = np.zeros(len(order) + 1, dtype=np.int64)
        np.cumsum(self.shard.offsets[order + 1] - self.shard.offsets[order], out=begin[1:])
        return order, begin

    def span(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The epochs first..last as one."""
        if first == last:
            return self.epoch(first)
        orders, begins = zip(*(self.epoch(number) for number in range(first, last + 1)))
        shifted = [begin[:-1] + i * self.total for i, begin in enumerate(begins)]
        return np.concatenate(orders), np.concatenate([*shifted, [len(begins) * self.total]])


class Concatenated:
    """Rows that tile the stream from `base` on: no padding; the last row of an epoch continues into the next.

    Rows are visited in a random order within each epoch, so that the pieces of a long document do not come
    one after another, and none is repeated before all rows of the epoch were seen.

    count: how many rows of `length` tokens the phase takes. salt: distinguishes the orders of phases.
    """

    def __init__(self, stream: DocumentStream, base: int, length: int, count: int, salt: int) -> None:
        self.stream, self.base, self.length, self.count, self.salt = stream, base, length, count, salt
        self.end = base + count * length

    def _starts(self, ordinals: np.ndarray) -> np.ndarray:
        """Where the rows of these numbers start in the stream."""
        total, length = self.stream.total, self.length
        epochs = (self.base + ordinals * length) // total
        starts = np.empty_like(ordinals)
        for epoch in np.unique(epochs).tolist():
            low = max(0, -((self.base - epoch * total) // length))
            high = min(self.count, -((self.base - (epoch + 1) * total) // length))
            order = self.stream.kept.get(
                (self.salt, self.base, length, self.count, epoch), partial(self._shuffled, epoch, high - low)
            )
            here = epochs == epoch
            starts[here] = self.base + (low + order[ordinals[here] - low]) * length
        return starts

    def _shuffled(self, epoch: int, rows: int) -> np.ndarray:
        return self.stream.rng(1, self.salt, epoch).permutation(rows)

    def pieces(self, ordinals: np.ndarray) -> Pieces:
        """What the rows of these numbers are made of."""
        starts, n = self._starts(ordinals), self.length
        total, shard = self.stream.total, self.stream.shard
        first, last = int(starts.min()) // total, (int(starts.max()) + n - 1) // total
        documents, begin = self.stream.span(first, last)
        local = starts - first * total
        head = np.searchsorted(begin, local, side="right") - 1
        tail = np.searchsorted(begin, local + n - 1, side="right") - 1
        pieces = tail - head + 1
        row = np.repeat(np.arange(len(starts)), pieces)
        index = head[row] + np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        piece_start = np.maximum(begin[index], local[row])
        piece_end = np.minimum(begin[index + 1], local[row] + n)
        source = shard.offsets[documents[index]] + piece_start - begin[index]
        return Pieces(row, source, piece_end - piece_start, piece_end < begin[index + 1])


class Leftover:
    """Rows `first` and following of a cut, which the phase that laid them out did not use, and then those of another cut
    of the same stream and row length."""

    def __init__(self, before: Cut, first: int, after: Cut) -> None:
        self.stream, self.before, self.first, self.after = before.stream, before, first, after
        self.left = before.count - first
        self.count, self.end = self.left + after.count, after.end

    def pieces(self, ordinals: np.ndarray) -> Pieces:
        """What the rows of these numbers are made of."""
        parts = []
        over = ordinals < self.left
        for cut, here, shift in ((self.before, over, self.first), (self.after, ~over, -self.left)):
            if here.any():
                found = cut.pieces(ordinals[here] + shift)
                found.row = np.flatnonzero(here)[found.row]
                parts.append(found)
        names = ("row", "source", "length", "continues")
        return Pieces(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
