"""Rows of whole documents: best-fit packing (Ding et al. 2024, Fewer Truncations Improve Language Modeling).

A document longer than a row gives full rows and a rest; rests and short documents are packed by
best-fit-decreasing, so that nothing that fits a row is ever split. Each token is an input position of a row
once, as in rows that are cut end to end: a document of L tokens, <eos> included, takes L positions, and fits
where L <= T.

The layout of rows depends only on how many pieces there are of each length, so the packing works on counts per
length (`best_fit`). *Which* document is at each slot of that layout is drawn by keyed permutations, which are
evaluated where they are needed (`permuted`). An epoch therefore needs no table of its own: any row of any epoch
is found in constant time, with 4 bytes of memory per document plus 12 per document longer than a row.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import numpy as np

from ikirere.tokens.permutation import keyed, permuted
from ikirere.tokens.stream import DocumentStream, Pieces

# ---------------------------------------------------------------- layout


@dataclass
class Layout:
    """Rows in groups of equal build. All int64.

    Group g has `rows[g]` rows with `free[g]` positions left over; each is made of the entries
    first_entry[g] : first_entry[g + 1]. Entry e gives `each[e]` pieces of length class `kind[e]` to every
    row: row r of the group gets the class's pieces base[e] + r * each[e] and following.
    """

    rows: np.ndarray
    free: np.ndarray
    first_entry: np.ndarray
    kind: np.ndarray
    each: np.ndarray
    base: np.ndarray

    @property
    def total(self) -> int:
        """Number of rows in all groups."""
        return int(self.rows.sum())


@dataclass
class _Group:
    """Rows of equal build while they are filled. entries: (class, pieces per row, first piece)."""

    rows: int
    entries: list[tuple[int, int, int]]

    def split(self, rows: int) -> _Group:
        """Takes the first rows away."""
        head = _Group(rows, self.entries.copy())
        self.entries = [(kind, each, base + rows * each) for kind, each, base in self.entries]
        self.rows -= rows
        return head


def best_fit(lengths: list[int], counts: list[int], capacity: int) -> Layout:
    """Best-fit-decreasing of counts[c] pieces of lengths[c] tokens into rows of `capacity`.

    lengths: strictly falling, within 1..capacity. The result equals that of taking the pieces one after another
    and putting each into the fullest row where it fits, but all rows of equal build are filled at once. Filling
    such rows with a length at least halves their free positions, and each length opens or splits off at most two
    groups, so for D lengths there are O(D log capacity) iterations, and never more than pieces.
    """
    open_groups: dict[int, list[_Group]] = defaultdict(list)  # by free positions per row
    open_sizes: list[int] = []  # keys of open_groups, rising
    closed: list[tuple[int, _Group]] = []

    def put_back(free: int, group: _Group) -> None:
        if free < lengths[-1]:
            closed.append((free, group))
            return
        if not open_groups[free]:
            insort(open_sizes, free)
        open_groups[free].append(group)

    for kind, (length, left) in enumerate(zip(lengths, counts)):
        base = 0
        while left:
            found = bisect_left(open_sizes, length)
            if found < len(open_sizes):
                free = open_sizes[found]
                each = free // length
                group = open_groups[free].pop()
                if not open_groups[free]:
                    open_sizes.pop(found)
            else:
                free, each = capacity, capacity // length
                group = _Group(-(-left // each), [])
            if group.rows * each > left:  # not enough pieces to fill them all
                whole, odd = divmod(left, each)
                if whole:
                    rest, group = group, group.split(whole)
                else:
                    rest, group, each = group, group.split(1), odd
                if rest.rows:
                    put_back(free, rest)
            group.entries.append((kind, each, base))
            base += group.rows * each
            left -= group.rows * each
            put_back(free - each * length, group)
    for free in open_sizes:
        closed += [(free, group) for group in open_groups[free]]
    entries = [entry for _, group in closed for entry in group.entries]
    kinds, eaches, bases = np.array(entries, dtype=np.int64).reshape(-1, 3).T
    return Layout(
        np.array([group.rows for _, group in closed], dtype=np.int64),
        np.array([free for free, _ in closed], dtype=np.int64),
        np.cumsum([0, *(len(group.entries) for _, group in closed)], dtype=np.int64),
        kinds.copy(),
        eaches.copy(),
        bases.copy(),
    )


def _packed(counts: np.ndarray, capacity: int) -> Layout:
    """The layout of counts[l] pieces of l tokens."""
    lengths = np.flatnonzero(counts)[::-1]
    lengths = lengths[lengths > 0]
    return best_fit(lengths.tolist(), counts[lengths].tolist(), capacity)


def _expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts [n], two int64 [sum(counts)]: the index of the count that each element belongs to, and the element's
    own index within it."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


# ---------------------------------------------------------------- legs

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # of `Pieces`


@dataclass(frozen=True)
class Leg:
    """Documents that are packed together: a stretch of an epoch, or some whole epochs, which share a layout.

    epoch: the first, of `epochs`. first: number of its first row in the phase; rows: per epoch. start, tail,
    stop: positions within the epoch; documents from `tail` to `stop` have rows of their own, the last may be cut.
    """

    epoch: int
    epochs: int
    first: int
    rows: int
    start: int
    tail: int
    stop: int


class _Plan:
    """Which pieces the rows of a leg are made of, up to the permutations."""

    def __init__(self, stream: DocumentStream, leg: Leg, length: int) -> None:
        self.stream, self.length = stream, length
        offsets = stream.shard.offsets
        if leg.start == 0 and leg.tail == leg.stop == stream.total:
            documents = stream.documents  # in any order: each epoch draws their slots
            self.head, self.head_offset = -1, 0
            sizes = offsets[documents + 1] - offsets[documents]
            alone = 0
        else:
            order, begin = stream.epoch(leg.epoch)
            low = int(np.searchsorted(begin, leg.start, side="right")) - 1
            high = int(np.searchsorted(begin, leg.stop, side="left"))
            documents = order[low:high]
            edges = np.clip(begin[low : high + 1], leg.start, leg.stop)
            sizes = np.diff(edges)
            self.head, self.head_offset = int(documents[0]), int(leg.start - begin[low])
            alone = int((edges[:-1] >= leg.tail).sum())
        full, rest = np.divmod(sizes, length)
        if alone:
            full[-alone:] += rest[-alone:] > 0
            rest[-alone:] = 0
        long = np.flatnonzero(full)
        self.long = documents[long]
        self.first_full = np.concatenate([[0], np.cumsum(full[long])])
        counts = np.bincount(rest, minlength=length)
        # Rests in falling order of length, the classes back to back. Narrow numbers sort faster.
        falling = (length - 1 - rest).astype(np.uint16 if length <= 1 << 16 else np.uint32)
        self.index = documents[np.argsort(falling, kind="stable")[: len(rest) - int(counts[0])]]
        self.layout = _packed(counts, length)
        self.class_length = np.flatnonzero(counts)[::-1]
        self.class_length = self.class_length[self.class_length > 0]
        self.class_count = counts[self.class_length]
        self.class_first = np.cumsum(self.class_count) - self.class_count
        self.first_row = np.concatenate([[0], np.cumsum(self.layout.rows)]) + self.first_full[-1]

    def _offset(self, documents: np.ndarray) -> np.ndarray:
        """Tokens of the documents that belong to the leg before."""
        return np.where(documents == self.head, self.head_offset, 0)

    def pieces(self, rows: np.ndarray, key: np.ndarray) -> Pieces:
        """What some rows are made of; key: of each row's epoch, uint64."""
        cut = np.flatnonzero(rows < self.first_full[-1])
        packed = np.flatnonzero(rows >= self.first_full[-1])
        parts = [*self._full(cut, rows[cut]), *self._fitted(packed, rows[packed], key[packed])]
        joined = (np.concatenate(column) for column in zip(*parts))
        return Pieces(*joined)

    def _piece(self, row: np.ndarray, document: np.ndarray, start: np.ndarray, length: np.ndarray) -> Columns:
        offsets = self.stream.shard.offsets
        source = offsets[document] + start
        return row, source, length, source + length < offsets[document + 1]

    def _padding(self, row: np.ndarray, free: np.ndarray) -> Columns:
        """Padding pieces of the rows that have positions left over."""
        short = np.flatnonzero(free)
        return row[short], np.full(len(short), -1), free[short], np.zeros(len(short), dtype=bool)

    def _full(self, index: np.ndarray, rows: np.ndarray) -> list[Columns]:
        """Rows of one piece, which is as long as the row but for a document that has its row alone."""
        number = np.searchsorted(self.first_full, rows, side="right") - 1
        document = self.long[number]
        start = self._offset(document) + (rows - self.first_full[number]) * self.length
        offsets = self.stream.shard.offsets
        left = offsets[document + 1] - offsets[document] - start
        length = np.minimum(left, self.length)
        return [self._piece(index, document, start, length), self._padding(index, self.length - length)]

    def _fitted(self, index: np.ndarray, rows: np.ndarray, key: np.ndarray) -> list[Columns]:
        """Rows that are packed by the layout. index: of the rows among those asked for."""
        layout = self.layout
        group = np.searchsorted(self.first_row, rows, side="right") - 1
        within = rows - self.first_row[group]
        of_row, nth = _expand(layout.first_entry[group + 1] - layout.first_entry[group])
        entry = layout.first_entry[group[of_row]] + nth
        of_entry, nth = _expand(layout.each[entry])
        row, entry = of_row[of_entry], entry[of_entry]
        kind = layout.kind[entry]
        seat = layout.base[entry] + within[row] * layout.each[entry] + nth
        drawn = permuted(seat, self.class_count[kind], keyed(key[row], kind))
        document = self.index[self.class_first[kind] + drawn]
        length = self.class_length[kind]
        # A rest is what is left of its document after the full rows.
        offsets = self.stream.shard.offsets
        start = offsets[document + 1] - offsets[document] - length
        return [
            self._piece(index[row], document, start, length),
            self._padding(index, layout.free[group]),
        ]


class BestFit:
    """Rows of whole documents from the position `base` of the stream on; arguments as of `stream.Concatenated`.

    Each epoch is packed as a whole, or where a phase begins or ends within it, in stretches: a phase takes
    documents in the epoch's order until they fill its rows (the last document may be cut at the end of a row,
    and its rest is the next phase's). No row holds tokens of two epochs or stretches, so the last rows of
    each may be padded; no token is left out, and none is repeated before all of its epoch were seen, also over
    phases of other lengths.
    Rows are visited in a random order within each epoch or stretch.
    """

    def __init__(self, stream: DocumentStream, base: int, length: int, count: int, salt: int) -> None:
        self.stream, self.length, self.count, self.salt = stream, length, count, salt
        self.legs: list[Leg] = []
        self.end = self._divide(base, count)
        self._firsts = np.array([leg.first for leg in self.legs], dtype=np.int64)

    # ------------------------------------------------------------ which documents

    def _divide(self, base: int, count: int) -> int:
        """Makes the legs of `count` rows from a position on. Returns the position where they end."""
        total = self.stream.total
        epoch, start = divmod(base, total)
        done = 0
        while done < count:
            if start == 0 and (rows := self.epoch_rows()) <= count - done:
                epochs = (count - done) // rows
                leg = Leg(epoch, epochs, done, rows, 0, total, total)
            else:
                leg = self._stretch(epoch, start, done, count - done)
            self.legs.append(leg)
            done += leg.rows * leg.epochs
            epoch, start = divmod((epoch + leg.epochs - 1) * total + leg.stop, total)
        return epoch * total + start

    def epoch_rows(self) -> int:
        """How many rows a whole epoch makes, each the same number."""
        known = self.stream.rows_of_epoch
        if self.length not in known:
            offsets, documents = self.stream.shard.offsets, self.stream.documents
            full, rest = np.divmod(offsets[documents + 1] - offsets[documents], self.length)
            known[self.length] = int(full.sum()) + _packed(np.bincount(rest), self.length).total
        return known[self.length]

    def _stretch(self, epoch: int, start: int, first: int, wanted: int) -> Leg:
        """From a position of an epoch on: as many documents as fill the rows, or all that are left of it."""
        total, length = self.stream.total, self.length
        _, begin = self.stream.epoch(epoch)
        low = int(np.searchsorted(begin, start, side="right")) - 1
        edges = begin[low:].copy()
        edges[0] = start
        # Documents that start after `wanted` full rows cannot fit, which bounds the search.
        reach = min(len(edges) - 1, int(np.searchsorted(edges, start + wanted * length, side="right")))
        full, rest = np.divmod(np.diff(edges[: reach + 1]), length)
        fulls = np.concatenate([[0], np.cumsum(full)])

        def rows_of(documents: int) -> int:
            return int(fulls[documents]) + _packed(np.bincount(rest[:documents]), length).total

        fits, few, over, many = 0, 0, reach, rows_of(reach)
        if many <= wanted:
            return Leg(epoch, 1, first, many, start, total, total)
        # Rows grow almost evenly with tokens, so interpolation soon finds where they come to exceed `wanted`:
        # it aims a little before and after alternately, to close in from both sides. Every third guess bisects,
        # for uneven lengths.
        guesses = 0
        while over - fits > 1:
            aim = (wanted - few + (0.0, 1.0)[guesses % 2]) / (many - few)
            position = edges[fits] + aim * float(edges[over] - edges[fits])
            guess = (fits + over) // 2 if guesses % 3 == 2 else int(np.searchsorted(edges, position))
            guess = min(max(guess, fits + 1), over - 1)
            guesses += 1
            if (rows := rows_of(guess)) <= wanted:
                fits, few = guess, rows
            else:
                over, many = guess, rows
        # Rows that are still wanted are filled by the documents that follow, each in rows of its own.
        tail = stop = int(edges[fits])
        document, rows = fits, few
        while rows < wanted and stop < total:
            end = int(begin[low + document + 1])
            taken = min(wanted - rows, -(-(end - stop) // length))
            stop = min(end, stop + taken * length)
            rows += taken
            document += 1
        return Leg(epoch, 1, first, rows, start, tail, stop)

    # ------------------------------------------------------------ rows

    def pieces(self, ordinals: np.ndarray) -> Pieces:
        """What the rows of these numbers are made of."""
        legs = np.searchsorted(self._firsts, ordinals, side="right") - 1
        parts = []
        for number in np.unique(legs).tolist():
            leg = self.legs[number]
            here = np.flatnonzero(legs == number)
            repeat, row = np.divmod(ordinals[here] - leg.first, leg.rows)
            key = keyed(*self.stream.key, self.salt, self.length, leg.start, leg.epoch + repeat)
            row = permuted(row, np.full(len(row), leg.rows), keyed(key, 1))
            whole = leg.start == 0 and leg.tail == self.stream.total
            name = (self.length, -1 if whole else leg.epoch, leg.start, leg.tail, leg.stop)
            plan = self.stream.kept.get(name, partial(_Plan, self.stream, leg, self.length))
            found = plan.pieces(row, keyed(key, 2))
            found.row = here[found.row]
            parts.append(found)
        if len(parts) == 1:
            return parts[0]
        names = ("row", "source", "length", "continues")
        return Pieces(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
