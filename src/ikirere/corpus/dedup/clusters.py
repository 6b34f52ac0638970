"""Who stays: documents in the order of priority, each dropped only where it is similar to one that stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from ikirere.corpus.dedup.lsh import RowGroups
from ikirere.corpus.dedup.verify import PAIR, Shingles, jaccard
from ikirere.corpus.parts import Part

PAIRS_SCHEMA = pa.schema(
    [
        ("a", pa.string()),
        ("b", pa.string()),
        ("jaccard", pa.float64()),
        ("a_set", pa.string()),
        ("b_set", pa.string()),
    ]
)
DROPPED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "kept", "kept_set")]
    + [("jaccard", pa.float64()), ("because", pa.string())]
)
FAMILIES_SCHEMA = pa.schema([("id", pa.string()), ("family", pa.string())])
SKETCH_CELLS = 1 << 24


@dataclass
class Documents:
    """All documents in the order of priority: arrays by rank.

    set: index of `against`, or -1. pinned: how many are of `against`; they have the first ranks.
    """

    ids: pa.Array  # large_string
    set: np.ndarray  # int32
    source: np.ndarray  # int32, numbers of sources
    length: np.ndarray  # int64, bytes
    length_class: np.ndarray  # int64
    set_names: list[str]
    pinned: int

    def because(self, kept: int, dropped: int) -> str:
        """Why `kept` stays rather than `dropped`."""
        if self.set[kept] >= 0:
            return f"belongs to {self.set_names[self.set[kept]]}, which is never dropped"
        if self.source[kept] != self.source[dropped]:
            return "comes before in the order of sources"
        if self.length_class[kept] > self.length_class[dropped]:
            return f"longer by {self.length[kept] - self.length[dropped]} bytes"
        return "comes before in the same source"

    def names(self, ranks: np.ndarray) -> pa.Array:
        """Ids of documents, strings."""
        return self.ids.take(pa.array(ranks)).cast(pa.string())

    def sets(self, ranks: np.ndarray) -> pa.Array:
        """Names of their sets; '' for documents that may be dropped."""
        return pa.array([*self.set_names, ""], pa.string()).take(
            pa.array(self.set[ranks] % (len(self.set_names) + 1))
        )


def prioritise(
    pieces: Sequence[RowGroups], lengths: np.ndarray, set_names: list[str]
) -> tuple[Documents, np.ndarray]:
    """The order in which documents are preferred, and each one's rank in it (uint32 by number).

    Before all others those of `against`, file by file. Then source by source, a source being as early as the
    first of its documents (`order`); in a source the longer text, where lengths (bytes by number) differ by
    more than 1% (they are compared by classes of 1%, so that the order is one and the same for all pairs);
    then the lower `order`. Raises ValueError where two documents that may be dropped have one id.
    """
    columns: dict[str, list[pa.Array]] = {"id": [], "source": [], "order": []}
    for piece in pieces:
        wanted = ["id"] if piece.set >= 0 else ["id", "source", "order"]
        with Part(Path(piece.path)) as part:
            table = part.read(wanted, piece.groups)
        columns["id"].append(table.column("id").cast(pa.large_string()).combine_chunks())
        for name, kind in (("source", pa.string()), ("order", pa.int64())):
            blank = pa.nulls(piece.rows, kind)
            columns[name].append(table.column(name).cast(kind).combine_chunks() if piece.set < 0 else blank)
    sets = np.concatenate([np.full(piece.rows, piece.set, np.int32) for piece in pieces])
    pinned = int(np.count_nonzero(sets >= 0))
    ids = pa.concat_arrays(columns["id"])
    if pc.count_distinct(ids.slice(pinned)).as_py() != len(ids) - pinned:
        twice = pc.filter(
            pc.value_counts(ids.slice(pinned)), pc.greater(pc.value_counts(ids.slice(pinned)).field(1), 1)
        )
        raise ValueError(f"two documents have the id {twice[0]['values'].as_py()}")
    order = pc.fill_null(pa.concat_arrays(columns["order"]), 0)
    sources = pc.fill_null(pa.concat_arrays(columns["source"]), "").dictionary_encode()
    codes = sources.indices.to_numpy().astype(np.int32)
    firsts = pa.table({"source": sources.cast(pa.string()), "order": order}).slice(pinned).group_by("source")
    by_first = firsts.aggregate([("order", "min")]).sort_by(
        [("order_min", "ascending"), ("source", "ascending")]
    )
    source_rank = pc.index_in(sources.dictionary, by_first.column("source")).fill_null(-1).to_numpy()[codes]
    classes = _length_classes(lengths)
    ranking = pa.table(
        {
            "set": np.where(sets >= 0, sets, len(set_names)),
            "source": source_rank,
            "class": np.where(sets >= 0, 0, -classes),
            "order": order,
            "id": ids,
        }
    )
    numbers = pc.sort_indices(ranking, [(name, "ascending") for name in ranking.column_names]).to_numpy()
    ranks = np.empty(len(numbers), dtype=np.uint32)
    ranks[numbers] = np.arange(len(numbers), dtype=np.uint32)
    documents = Documents(
        ids.take(pa.array(numbers)),
        sets[numbers],
        codes[numbers],
        lengths[numbers],
        classes[numbers],
        set_names,
        pinned,
    )
    return documents, ranks


def _length_classes(lengths: np.ndarray) -> np.ndarray:
    """Numbers, int64, that grow with the length and differ where lengths differ by more than 1%."""
    edges, longest = [1], int(lengths.max(initial=0))
    while edges[-1] < longest:
        edges.append(edges[-1] + max(1, edges[-1] // 100))
    return np.searchsorted(np.array(edges), lengths, side="right")


class Crowd:
    """Documents of groups too large to compare all pairs: each is compared with those that stay.

    Exact, and not quadratic where texts share only boilerplate: two sets with Jaccard similarity t or more
    have a value in common among the |x| - ceil(t |x|) + 1 first of each, whatever the order of values
    (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007). Rare values come first here, and values
    of one document only are not looked up at all. Equal sets are compared once. Memory: about 150 bytes for
    each value that is looked up, of documents that stay.
    """

    def __init__(self, ranks: np.ndarray, shingles: Shingles, threshold: float) -> None:
        self.shingles, self.threshold = shingles, threshold
        total = int(shingles.sizes[ranks].sum()) if len(ranks) else 0
        cells = min(SKETCH_CELLS, 1 << max(10, (2 * total).bit_length()))
        self.mask = np.uint64(cells - 1)
        # In how many documents a value is; never too few, too many where values share a cell.
        self.spread = np.zeros(cells, dtype=np.uint32)
        for rank in ranks.tolist():
            self.spread[shingles.of(rank) & self.mask] += 1
        self.kept: dict[int, list[int]] = {}
        self.twins: dict[bytes, tuple[int, float]] = {}
        self.compared = 0

    def match(self, rank: int) -> tuple[int, float] | None:
        """A document that stays and its similarity, where one reaches the threshold."""
        values = self.shingles.of(rank)
        twin = self.twins.get(_digest(values))
        if twin:
            return twin
        seen = set()
        for value in self._first(values):
            for other in self.kept.get(value, ()):
                if other in seen:
                    continue
                seen.add(other)
                size = int(self.shingles.sizes[other])
                if min(size, len(values)) / max(size, len(values)) >= self.threshold:
                    self.compared += 1
                    similarity = jaccard(values, self.shingles.of(other))
                    if similarity >= self.threshold:
                        return other, similarity
        return None

    def keep(self, rank: int) -> None:
        """From now on later documents are compared with this one."""
        values = self.shingles.of(rank)
        if self.twins.setdefault(_digest(values), (rank, 1.0))[0] == rank:
            for value in self._first(values):
                self.kept.setdefault(value, []).append(rank)

    def drop(self, rank: int, keeper: int, similarity: float) -> None:
        """From now on equal sets go the way of this one."""
        self.twins.setdefault(_digest(self.shingles.of(rank)), (keeper, similarity))

    def _first(self, values: np.ndarray) -> list[int]:
        spread = self.spread[values & self.mask]
        # The product is rounded; one value more than needed does no harm, one less would.
        count = len(values) - int(np.ceil(self.threshold * len(values) - 1e-9)) + 1
        first = np.lexsort((values, spread))[:count]
        chosen: list[int] = values[first[spread[first] > 1]].tolist()
        return chosen


def _digest(values: np.ndarray) -> bytes:
    return xxhash.xxh3_128_digest(np.ascontiguousarray(values).data)


def decide(
    pairs: np.ndarray, crowd: np.ndarray, members: Crowd, pinned: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Go through the documents in the order of priority.

    pairs: PAIR, verified. crowd: ranks, sorted. Returns two arrays of PAIR: (kept, dropped, their similarity)
    for each dropped document, in order; and the pairs that the crowd's comparisons found.

    A document is dropped where one that stays reaches the threshold: of those that share a band's key with
    it, and in a crowd of all that are in a crowd and stay. So no drop is missed that comparing every pair of
    every group would have made. Of several the most similar is named, of equally similar ones the first; in a
    crowd the first that is found.
    """
    pairs = pairs[np.lexsort((pairs["a"], -pairs["jaccard"], pairs["b"]))]
    lower, similarity = pairs["a"].tolist(), pairs["jaccard"].tolist()
    seconds, begins = np.unique(pairs["b"], return_index=True)
    spans = dict(zip(seconds.tolist(), zip(begins.tolist(), [*begins[1:].tolist(), len(pairs)])))
    crowded = set(crowd.tolist())
    gone = np.zeros(count, dtype=bool)
    dropped: list[tuple[int, int, float]] = []
    found: list[tuple[int, int, float]] = []
    for rank in np.union1d(seconds, crowd).tolist():
        keeper: tuple[int, float] | None = None
        for pair in range(*spans.get(rank, (0, 0))):
            if not gone[lower[pair]]:
                keeper = lower[pair], similarity[pair]
                break
        if keeper is None and rank in crowded and rank >= pinned:
            keeper = members.match(rank)
            if keeper:
                found.append((keeper[0], rank, keeper[1]))
        if keeper:
            gone[rank] = True
            dropped.append((keeper[0], rank, keeper[1]))
        if rank in crowded:
            if keeper:
                members.drop(rank, *keeper)
            else:
                members.keep(rank)
    return np.array(dropped, dtype=PAIR), np.array(found, dtype=PAIR)


def components(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ranks, label): every document of a pair, and the smallest rank that it is connected to."""
    ranks, ends = np.unique(np.concatenate([pairs["a"], pairs["b"]]), return_inverse=True)
    one, other = ends[: len(pairs)], ends[len(pairs) :]
    root = np.arange(len(ranks))
    while True:
        low, high = np.minimum(root[one], root[other]), np.maximum(root[one], root[other])
        if np.array_equal(low, high):
            return ranks, ranks[root]
        np.minimum.at(root, high, low)
        while not np.array_equal(root, root[root]):
            root = root[root]


def families(pairs: np.ndarray, documents: Documents) -> pa.Table:
    """FAMILIES_SCHEMA, sorted by id: the documents that may be dropped and have a partner. A family's name is
    the smallest id in it, of documents of `against` too."""
    ranks, labels = components(pairs)
    ids = documents.names(ranks)
    smallest = pa.table({"label": labels, "id": ids}).group_by("label").aggregate([("id", "min")])
    name = smallest.column("id_min").take(pc.index_in(pa.array(labels), smallest.column("label")))
    table = pa.table({"id": ids, "family": name}).filter(pa.array(ranks >= documents.pinned))
    return table.cast(FAMILIES_SCHEMA).sort_by("id").combine_chunks()


def drop_table(dropped: np.ndarray, documents: Documents) -> pa.Table:
    """DROPPED_SCHEMA, sorted by id."""
    because = [documents.because(a, b) for a, b in zip(dropped["a"].tolist(), dropped["b"].tolist())]
    columns = [
        documents.names(dropped["b"]),
        documents.names(dropped["a"]),
        documents.sets(dropped["a"]),
        pa.array(dropped["jaccard"]),
        pa.array(because, pa.string()),
    ]
    return pa.table(columns, schema=DROPPED_SCHEMA).sort_by("id").combine_chunks()


def pair_table(pairs: np.ndarray, documents: Documents) -> pa.Table:
    """PAIRS_SCHEMA, sorted by (a, b)."""
    a, b = pairs["a"], pairs["b"]
    columns = [
        documents.names(a),
        documents.names(b),
        pa.array(pairs["jaccard"]),
        documents.sets(a),
        documents.sets(b),
    ]
    order = [(name, "ascending") for name in ("a", "b", "a_set", "b_set")]
    return pa.table(columns, schema=PAIRS_SCHEMA).sort_by(order).combine_chunks()
