"""The endless token stream of some documents: epoch after epoch, each in an order of its own."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from ikirere.data.shards import Shard

Value = TypeVar("Value")


class Recent:
    """The last few results of a costly function of integers."""

    def __init__(self, size: int = 3) -> None:
        self.size = size
        self.kept: OrderedDict[tuple[int, ...], np.ndarray | tuple[np.ndarray, ...]] = OrderedDict()

    def get(self, key: tuple[int, ...], make: Callable[[], Value]) -> Value:
        if key not in self.kept:
            self.kept[key] = make()  # type: ignore[assignment]
        self.kept.move_to_end(key)
        value: Value = self.kept[key]  # type: ignore[assignment]
        while len(self.kept) > self.size:
            self.kept.popitem(last=False)
        return value


@dataclass
class Rows:
    """Rows cut from a stream; all arrays are int64 [R, n]. `document` counts from 0 in each row."""

    tokens: np.ndarray
    document: np.ndarray
    position: np.ndarray


class DocumentStream:
    """Position p of the stream is token p mod N of epoch p div N, where each epoch is all N tokens of the
    documents in an order drawn from (seed, name, epoch)."""

    def __init__(self, shard: Shard, name: str, seed: int, documents: np.ndarray | None = None) -> None:
        self.shard = shard
        self.key = (seed & 0xFFFFFFFF, zlib.crc32(name.encode()))
        self.documents = np.arange(len(shard)) if documents is None else documents
        self.lengths = shard.lengths[self.documents]
        self.total = int(self.lengths.sum())
        self._orders = Recent()
        self._shuffles = Recent()

    def _rng(self, *more: int) -> np.random.Generator:
        return np.random.default_rng([*self.key, *more])

    def _span(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents of the epochs first..last in their order, and where each starts from the first's start."""
        orders = [self._rng(0, epoch).permutation(len(self.documents)) for epoch in range(first, last + 1)]
        order = np.concatenate(orders)
        return self.documents[order], np.concatenate([[0], np.cumsum(self.lengths[order])])

    def shuffled(self, ordinals: np.ndarray, base: int, length: int, count: int, salt: int) -> np.ndarray:
        """Start positions of some of `count` rows of `length` tokens that tile the stream from `base`.

        Rows are visited in a random order within each epoch, so that the pieces of a long document do not come
        one after another, and never the second time before all rows of the epoch were seen.
        """
        epochs = (base + ordinals * length) // self.total
        starts = np.empty_like(ordinals)
        for epoch in np.unique(epochs).tolist():
            low = max(0, -((base - epoch * self.total) // length))
            high = min(count, -((base - (epoch + 1) * self.total) // length))
            order = self._shuffles.get(
                (salt, base, length, count, epoch), partial(self._permutation, salt, epoch, high - low)
            )
            here = epochs == epoch
            starts[here] = base + (low + order[ordinals[here] - low]) * length
        return starts

    def _permutation(self, salt: int, epoch: int, rows: int) -> np.ndarray:
        return self._rng(1, salt, epoch).permutation(rows)

    def read(self, starts: np.ndarray, n: int) -> Rows:
        """n tokens from each start. A piece of a document is numbered and counted from where the row has it."""
        first, last = int(starts.min()) // self.total, (int(starts.max()) + n - 1) // self.total
        documents, begin = self._orders.get((first, last), partial(self._span, first, last))
        local = starts - first * self.total
        head = np.searchsorted(begin, local, side="right") - 1
        tail = np.searchsorted(begin, local + n - 1, side="right") - 1
        pieces = tail - head + 1
        row = np.repeat(np.arange(len(starts)), pieces)
        ordinal = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        document = head[row] + ordinal
        piece_start = np.maximum(begin[document], local[row])
        piece_length = np.minimum(begin[document + 1], local[row] + n) - piece_start
        source = self.shard.offsets[documents[document]] + piece_start - begin[document]
        out_start = np.cumsum(piece_length) - piece_length
        place = np.arange(len(starts) * n)
        tokens = self.shard.data[place + np.repeat(source - out_start, piece_length)]
        shape = (len(starts), n)
        return Rows(
            tokens.astype(np.int64).reshape(shape),
            np.repeat(ordinal, piece_length).reshape(shape),
            (place - np.repeat(out_start, piece_length)).reshape(shape),
        )
