"""Which documents share a band: sorted tables on disk, partitioned by ranges of keys.

Each piece of the input becomes one file of rows (key of a band, document), sorted by key. A range of keys is
then read from all pieces, sorted in memory and cut into groups of equal keys. How many ranges there are
follows from the number of rows and the memory allowed, and nothing in the result depends on it: a group is
never cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ikirere.common.files import atomic
from ikirere.corpus.dedup.signatures import band_keys, minhash, normalised
from ikirere.corpus.parts import Part
from ikirere.errors import UserError

ROW = np.dtype([("key", "<u8"), ("row", "<u4")])  # row: of the piece
SORTING = 4  # bytes at work per byte of rows while a range is sorted
SMALLEST_RANGE = 1 << 16  # bytes of rows: below it, more ranges cost files and save nothing
PIECE_BYTES = 16_000_000  # text of a piece, as far as row groups allow
BATCH_ROWS, BATCH_BYTES = 2048, 8_000_000
# Documents of a group up to which every pair is compared. A band with more is nearly always boilerplate; its
# documents are compared with kept ones instead (see clusters.Crowd).
GROUP = 64
PAIRS_AT_ONCE = 2_000_000


class SignFigures(TypedDict):
    """empty: documents without words."""

    empty: int


class MatchFigures(TypedDict):
    """runs: files of pairs; crowded: groups of more than GROUP documents."""

    runs: int
    crowded: int


@dataclass(frozen=True)
class RowGroups:
    """Some row groups of one file. first: number of its first document; numbers run through all pieces."""

    index: int
    path: str
    groups: tuple[int, ...]
    first: int
    rows: int
    bytes: int  # of all columns, not compressed
    set: int  # of `against`; -1 for documents that may be dropped


def plan(parts: Sequence[Path], against: Sequence[Path]) -> list[RowGroups]:
    """The pieces of all files, those of `against` first.

    Raises UserError for a file that is no Parquet or lacks a column.
    """
    pieces: list[RowGroups] = []
    first = 0
    sets = [(path, index, ("id", "text")) for index, path in enumerate(against)]
    for path, index, columns in [*sets, *((path, -1, ("id", "text", "source", "order")) for path in parts)]:
        try:
            part = Part(path)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
        missing = [name for name in columns if name not in part.schema.names]
        if missing:
            raise UserError(
                f"{path}: has no column {', '.join(missing)}; near-duplicates need {', '.join(columns)}"
            )
        kind = part.schema.field("text").type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{path}: column text holds {kind}; texts are strings")
        for groups, rows, size in _row_groups(part.groups):
            pieces.append(RowGroups(len(pieces), str(path), groups, first, rows, size, index))
            first += rows
        part.file.close()
    return pieces


def _row_groups(groups: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Runs of row groups (rows, bytes) of about PIECE_BYTES each, their rows and their bytes."""
    run: list[int] = []
    rows = size = 0
    for index, (more, n_bytes) in enumerate(groups):
        if not more:
            continue
        if run and size + n_bytes > PIECE_BYTES:
            yield tuple(run), rows, size
            run, rows, size = [], 0, 0
        run.append(index)
        rows, size = rows + more, size + n_bytes
    if rows:
        yield tuple(run), rows, size


def read_texts(piece: RowGroups) -> Iterator[pa.Array]:
    """The texts of a piece, at most some thousand and some megabytes at a time."""
    with Part(Path(piece.path)) as part:
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES * piece.rows // max(piece.bytes, 1)))
        for batch in part.batches(rows, ["text"], piece.groups):
            yield batch.column(0).combine_chunks()


def ranges_for(documents: int, bands: int, memory: int, workers: int) -> int:
    """How many ranges of keys keep `workers` of them, sorted at a time, within `memory` bytes."""
    size = documents * bands * ROW.itemsize
    return max(1, min(-(-size * SORTING * workers // memory), -(-size // SMALLEST_RANGE)))


def sign(
    piece: RowGroups, ranges: int, bands: int, rows: int, shingle_words: int, seed: int, folder: Path
) -> SignFigures:
    """Write a piece's rows in the order of keys, where each range begins, and the texts' lengths in bytes.

    Documents without words have no rows. Returns {"empty": how many these are}.
    """
    keys, numbers, lengths, start = [], [], [], 0
    for texts in read_texts(piece):
        words = normalised(texts)
        there = pc.not_equal(words, "").to_numpy(zero_copy_only=False)
        signatures = minhash(words.filter(pa.array(there)), bands * rows, shingle_words, seed)
        keys.append(band_keys(signatures, bands))
        numbers.append(start + np.flatnonzero(there))
        lengths.append(pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False))
        start += len(texts)
    key = np.concatenate(keys).ravel()
    order = np.argsort(key, kind="stable")
    table = np.empty(len(key), dtype=ROW)
    table["key"] = key = key[order]
    table["row"] = np.repeat(np.concatenate(numbers), bands)[order]
    starts = np.searchsorted(key, np.array([i * 2**64 // ranges for i in range(ranges)], dtype=np.uint64))
    save(folder / f"{piece.index:06d}.starts.npy", np.append(starts, len(key)))
    save(folder / f"{piece.index:06d}.lengths.npy", np.concatenate(lengths).astype(np.int64))
    save(folder / f"{piece.index:06d}.npy", table)
    return {"empty": start - len(np.concatenate(numbers))}


def match(
    index: int, pieces: Sequence[RowGroups], ranks: Path, pinned: int, tables: Path, folder: Path
) -> MatchFigures:
    """Candidate pairs of one range of keys.

    ranks: .npy, uint32, a document's rank by its number; ranks below `pinned` belong to `against`, and pairs
    of two such are left out. Writes runs of pairs (uint64: rank of the first << 32 | of the second, sorted,
    distinct) and the crowd: ranks of documents in groups larger than GROUP. Returns {"runs", "crowded"}: runs
    written, groups too large.
    """
    rank_of = np.load(ranks, mmap_mode="r")
    keys, members = [], []
    for piece in pieces:
        starts = np.load(tables / f"{piece.index:06d}.starts.npy")
        begin, end = int(starts[index]), int(starts[index + 1])
        offset = _header(tables / f"{piece.index:06d}.npy") + begin * ROW.itemsize
        rows = np.fromfile(tables / f"{piece.index:06d}.npy", dtype=ROW, count=end - begin, offset=offset)
        keys.append(rows["key"].copy())
        members.append(rank_of[piece.first : piece.first + piece.rows][rows["row"]])
    key, member = np.concatenate(keys), np.concatenate(members)
    del keys, members
    order = np.argsort(key)
    key, member = key[order], member[order]
    begins = (
        np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, np.int64)
    )
    sizes = np.diff(np.append(begins, len(key)))
    runs = _Runs(folder, index)
    for size in range(2, min(GROUP, int(sizes.max(initial=0))) + 1):
        at = begins[sizes == size]
        first, second = np.triu_indices(size, 1)
        step = max(1, PAIRS_AT_ONCE // len(first))
        for some in range(0, len(at), step):
            groups = np.sort(member[at[some : some + step, None] + np.arange(size)], axis=1).astype(np.uint64)
            pairs = (groups[:, first] << np.uint64(32) | groups[:, second]).ravel()
            runs.add(pairs[(pairs & np.uint64(0xFFFFFFFF)) >= pinned])
    runs.flush()
    large = np.flatnonzero(sizes > GROUP)
    crowds = [np.unique(member[begins[i] : begins[i] + sizes[i]]) for i in large]
    crowds = [crowd for crowd in crowds if crowd[-1] >= pinned]
    crowd = np.unique(np.concatenate(crowds)) if crowds else np.zeros(0, np.uint32)
    save(folder / f"{index:06d}.crowd.npy", crowd)
    return {"runs": runs.written, "crowded": len(crowds)}


class _Runs:
    """Pairs on their way to disk: each file sorted and without repetition."""

    def __init__(self, folder: Path, index: int) -> None:
        self.folder, self.index = folder, index
        self.held: list[np.ndarray] = []
        self.size = self.written = 0

    def add(self, pairs: np.ndarray) -> None:
        self.held.append(pairs)
        self.size += len(pairs)
        if self.size > PAIRS_AT_ONCE:
            self.held = [np.unique(np.concatenate(self.held))]
            self.size = len(self.held[0])
            if self.size > PAIRS_AT_ONCE // 2:
                self.flush()

    def flush(self) -> None:
        if self.size:
            pairs = np.unique(np.concatenate(self.held))
            save(self.folder / f"{self.index:06d}-{self.written:04d}.pairs.npy", pairs)
            self.written += 1
        self.held, self.size = [], 0


def save(path: Path, array: np.ndarray) -> None:
    """A .npy file that has its name only once it is whole."""
    with atomic(path, "wb") as file:
        np.save(file, array)


def _header(path: Path) -> int:
    """Bytes before the numbers of a .npy file."""
    return int(np.load(path, mmap_mode="r").offset)
