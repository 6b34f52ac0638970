"""The exact Jaccard similarity of candidates: sets of shingles in one file, read where a pair needs them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa

from ikirere.common.files import atomic
from ikirere.corpus.dedup.lsh import RowGroups, read_texts, save
from ikirere.corpus.dedup.signatures import normalised, shingle_sets

PAIR = np.dtype([("a", "<u4"), ("b", "<u4"), ("jaccard", "<f8")])  # ranks; a < b
NEAR_MISS = 0.2  # how far below the threshold a pair may be to be logged
VALUES_AT_ONCE = 1 << 21
_LOW = np.uint64(0xFFFFFFFF)


class CompareFigures(TypedDict):
    """candidates: distinct pairs; read: those whose sizes do not rule the threshold out."""

    candidates: int
    read: int


def shingle(piece: RowGroups, wanted: Path, shingle_words: int, folder: Path) -> dict[str, int]:
    """Write the shingles of a piece's wanted documents (.npy, bool by number) and how many each has."""
    mask = np.load(wanted, mmap_mode="r")[piece.first : piece.first + piece.rows]
    target = folder / f"{piece.index:06d}.values"
    sizes, start = [np.zeros(0, np.int64)], 0
    with atomic(target, "wb") as file:
        for texts in read_texts(piece):
            some = texts.filter(pa.array(mask[start : start + len(texts)]))
            start += len(texts)
            if len(some):
                values, counts = shingle_sets(normalised(some), shingle_words)
                file.write(values.astype("<u8", copy=False).data)
                sizes.append(counts)
    save(folder / f"{piece.index:06d}.sizes.npy", np.concatenate(sizes))
    return {}


def join(pieces: Sequence[RowGroups], wanted: np.ndarray, ranks: np.ndarray, folder: Path, out: Path) -> int:
    """One file of all shingles, and where each document's are; the pieces' files are removed meanwhile.

    Writes out.values, out.starts.npy and out.sizes.npy (int64 by rank; size 0 where not wanted). Returns the
    bytes of the values.
    """
    starts, sizes = np.zeros((2, len(ranks)), dtype=np.int64)
    total = 0
    with out.with_suffix(".values").open("wb") as joined:
        for piece in pieces:
            counts = np.load(folder / f"{piece.index:06d}.sizes.npy")
            numbers = piece.first + np.flatnonzero(wanted[piece.first : piece.first + piece.rows])
            sizes[ranks[numbers]] = counts
            starts[ranks[numbers]] = total + np.cumsum(counts) - counts
            total += int(counts.sum())
            values = folder / f"{piece.index:06d}.values"
            with values.open("rb") as file:
                shutil.copyfileobj(file, joined, 1 << 22)
            values.unlink()
    save(out.with_suffix(".starts.npy"), starts)
    save(out.with_suffix(".sizes.npy"), sizes)
    return total * 8


class Shingles:
    """The file that `join` wrote: `of(rank)` is a document's set, uint64, sorted; `sizes[rank]` its size."""

    def __init__(self, out: Path) -> None:
        values = out.with_suffix(".values")
        self.values = (
            np.memmap(values, dtype="<u8", mode="r") if values.stat().st_size else np.zeros(0, np.uint64)
        )
        self.starts = np.load(out.with_suffix(".starts.npy"), mmap_mode="r")
        self.sizes = np.load(out.with_suffix(".sizes.npy"), mmap_mode="r")

    def of(self, rank: int) -> np.ndarray:
        start = int(self.starts[rank])
        return np.asarray(self.values[start : start + int(self.sizes[rank])])


def shared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """For each value of `other`, whether it is in `one` (sorted, not empty)."""
    return one[np.minimum(np.searchsorted(one, other), len(one) - 1)] == other


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard similarity of two sets as sorted arrays; 0 where one of them is empty."""
    if not len(one) or not len(other):
        return 0.0
    small, large = (one, other) if len(one) < len(other) else (other, one)
    common = int(np.count_nonzero(shared(large, small)))
    return common / (len(one) + len(other) - common)


def balance(runs: Sequence[Path], shingles: Shingles, chunks: int) -> list[int]:
    """Bounds of ranks that give each chunk about the same number of shingles to compare: chunk i has the
    pairs whose first document's rank is in [bounds[i], bounds[i + 1])."""
    count = len(shingles.sizes)
    load = np.zeros(count)
    for pairs in _parts(runs):
        seconds = shingles.sizes[(pairs & _LOW).astype(np.int64)]
        load += np.bincount((pairs >> np.uint64(32)).astype(np.int64), weights=seconds + 1, minlength=count)
    done = np.cumsum(load)
    inner = np.searchsorted(done, done[-1] * np.arange(1, chunks) / chunks) if count else []
    return [0, *map(int, inner), count]


def compare(
    index: int, bounds: Sequence[int], runs: Sequence[Path], threshold: float, out: Path, folder: Path
) -> CompareFigures:
    """Verify the candidates of one chunk: distinct pairs over all runs, in the order of ranks.

    Pairs whose sizes alone rule the threshold out are not read. Writes an array of PAIR with the pairs at or
    above `threshold`, and one with those at most NEAR_MISS below. Returns {"candidates", "read"}: pairs,
    pairs read.
    """
    low, high = bounds[index] << 32, bounds[index + 1] << 32
    held = []
    for run in runs:
        pairs = np.load(run, mmap_mode="r")
        begin, end = (int(np.searchsorted(pairs, np.uint64(edge))) for edge in (low, high))
        held.append(np.array(pairs[begin:end]))
    pairs = np.unique(np.concatenate(held)) if held else np.zeros(0, np.uint64)
    del held
    shingles = Shingles(out)
    first, second = (pairs >> np.uint64(32)).astype(np.int64), (pairs & _LOW).astype(np.int64)
    size_a, size_b = shingles.sizes[first], shingles.sizes[second]
    possible = np.minimum(size_a, size_b) / np.maximum(np.maximum(size_a, size_b), 1) >= threshold
    first, second = first[possible], second[possible]
    found = np.empty(len(first), dtype=PAIR)
    found["a"], found["b"] = first, second
    firsts, begins = np.unique(first, return_index=True)
    for rank, begin, end in zip(firsts.tolist(), begins.tolist(), [*begins[1:].tolist(), len(first)]):
        one = shingles.of(rank)
        for start, stop in _blocks(shingles.sizes[second[begin:end]], begin):
            others = [shingles.of(other) for other in second[start:stop].tolist()]
            lengths = np.fromiter(map(len, others), np.int64, len(others))
            hits = shared(one, others[0] if len(others) == 1 else np.concatenate(others))
            common = np.add.reduceat(hits, np.cumsum(lengths) - lengths, dtype=np.int64)
            found["jaccard"][start:stop] = common / (len(one) + lengths - common)
    save(folder / f"{index:06d}.hits.npy", found[found["jaccard"] >= threshold])
    near = (found["jaccard"] < threshold) & (found["jaccard"] >= threshold - NEAR_MISS)
    save(folder / f"{index:06d}.misses.npy", found[near])
    return {"candidates": len(pairs), "read": len(found)}


def _blocks(sizes: np.ndarray, begin: int) -> Iterator[tuple[int, int]]:
    """Runs of documents with about VALUES_AT_ONCE shingles, as positions from `begin` on."""
    block = np.cumsum(sizes) // VALUES_AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(sizes)]
    for start, stop in pairwise(edges):
        yield begin + start, begin + stop


def _parts(runs: Sequence[Path], size: int = 1 << 20) -> Iterator[np.ndarray]:
    """Pairs of all runs, a million at a time."""
    for run in runs:
        pairs = np.load(run, mmap_mode="r")
        for start in range(0, len(pairs), size):
            yield np.array(pairs[start : start + size])
