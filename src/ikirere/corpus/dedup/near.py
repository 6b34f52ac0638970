"""Near-duplicates: MinHash bands propose pairs, the exact Jaccard similarity decides, a table names the documents that stay.

`find_near_duplicates` works through files: tables on disk bound its memory, and a run that was killed continues
with the pieces that are finished. What it finds depends neither on the engine, nor on how documents lie in
files, nor on the memory allowed.

Not covered: similarity of meaning; a short text inside a long one (Jaccard compares whole texts); texts
without any word, which have no shingles and are compared with nothing. A pair at similarity s shares a band
with probability 1 - (1 - s^rows)^bands, and is not seen otherwise: 0.99995 at 0.8 with 25 bands of 5 rows.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypedDict, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ikirere.common.files import atomic, json_sha256, read_json, write_json, write_text
from ikirere.corpus.dedup.clusters import (
    DROPPED_SCHEMA,
    FAMILIES_SCHEMA,
    Crowd,
    Documents,
    decide,
    drop_table,
    families,
    pair_table,
    prioritise,
)
from ikirere.corpus.dedup.lsh import (
    ROW,
    MatchFigures,
    RowGroups,
    SignFigures,
    match,
    plan,
    ranges_for,
    save,
    sign,
)
from ikirere.corpus.dedup.signatures import SEED
from ikirere.corpus.dedup.verify import (
    PAIR,
    CompareFigures,
    Shingles,
    balance,
    compare,
    join,
    shingle,
)
from ikirere.corpus.executor import Engine
from ikirere.errors import UserError
from ikirere.recipe.hygiene import NearDuplicates

T = TypeVar("T")

__all__ = ["NearResult", "find_near_duplicates"]

SMALL_BYTES = 40_000_000  # text that is done sooner in this process than others have started
VERSION = 1  # of the files below `work`; another version's are not reused
CHUNK_PAIRS = 2_000_000  # candidates, counted once per band, that one verification holds at most, about


class NearFigures(TypedDict):
    """documents, against: documents of each; empty: without words; candidates, verified: pairs; crowd: documents in
    groups too large to compare all pairs; seconds: by part; peak_spill_bytes: of the tables on disk."""

    documents: int
    against: int
    empty: int
    candidates: int
    verified: int
    dropped: int
    crowd: int
    seconds: dict[str, float]
    peak_spill_bytes: int


@dataclass(frozen=True)
class NearResult:
    """What `find_near_duplicates` found.

    pairs: Parquet file with columns a, b (ids), jaccard (float64), a_set, b_set (file of `against`, '' for
    documents that may be dropped); sorted by (a, b); the document that is preferred is a. misses: the same
    columns, for candidates at most 0.2 below the threshold. dropped: id, kept, kept_set, jaccard, because.
    families: id, family.
    """

    pairs: Path
    misses: Path
    dropped: pa.Table
    families: pa.Table
    figures: NearFigures


def find_near_duplicates(
    parts: Sequence[Path],
    settings: NearDuplicates,
    engine: Engine,
    work: Path,
    against: Sequence[Path] = (),
    say: Callable[[str], None] = lambda line: None,
    seed: int = SEED,
) -> NearResult:
    """Which documents are near-duplicates of others, and which of them stays.

    parts: Parquet files, or views (`corpus/parts`), with id (unique over all of them), text, source and order. against: files with id and
    text; their documents are compared with and never dropped, nor compared among themselves. work: a folder
    for pairs.parquet, misses.parquet and, while it runs, for tables of about 300 bytes per document (at 25
    bands) and 8 bytes per word of the candidates. settings.threshold is compared with the exact Jaccard
    similarity of sets of settings.shingle_words consecutive words; settings.spill_bytes bounds what is sorted
    at a time in all processes together. seed: of the permutations. Besides, memory grows by about 250 bytes per document and 150 bytes
    per verified pair.

    All verified pairs are listed but those among the dropped documents of a crowd: documents that share a
    band with more than 63 others are compared with those that stay. No drop is missed for it, since a
    document is dropped because of one that stays, and it meets all of these (`clusters.Crowd`); but two
    families that only a pair of dropped documents would join remain two.

    Raises UserError for files that cannot be read or lack columns, ValueError for an id
    that occurs twice in parts.
    """
    work.mkdir(parents=True, exist_ok=True)
    say(f"near-duplicates: {len(parts)} files, {len(against)} to compare with")
    pieces = plan(parts, against)
    count = sum(piece.rows for piece in pieces)
    if count >= 2**32:
        raise UserError(f"near_duplicates: {count} documents; at most {2**32 - 1} are compared in one run")
    if not count:
        return _nothing(work)
    run = _Run(pieces, count, settings, engine, work, say, seed)
    with run.part("signatures"):
        signed = run.each(
            "signed",
            len(pieces),
            partial(
                _sign,
                pieces,
                run.ranges,
                settings.bands,
                settings.rows_per_band,
                settings.shingle_words,
                seed,
            ),
        )
        lengths = np.concatenate([np.load(run.folder / f"signed/{p.index:06d}.lengths.npy") for p in pieces])
        documents, ranks = prioritise(pieces, lengths, _set_names(against))
        save(run.folder / "ranks.npy", ranks)
    with run.part("bands"):
        matched = run.each("matched", run.ranges, partial(_match, pieces, run.folder, documents.pinned))
        runs, crowd = run.candidates(matched)
    with run.part("shingles"):
        shingles = run.shingles(runs, crowd, ranks)
    with run.part("verification"):
        pairs = sum(len(np.load(path, mmap_mode="r")) for path in runs)
        chunks = max(1, -(-pairs // CHUNK_PAIRS))
        if pairs > 100_000:
            chunks = max(chunks, 4 * engine.workers)
        bounds = balance(runs, shingles, chunks)
        compared = run.each(
            "verified", chunks, partial(_compare, bounds, runs, settings.threshold, run.folder / "shingles")
        )
        hits, misses = (
            np.concatenate([np.load(run.folder / f"verified/{i:06d}.{name}.npy") for i in range(chunks)])
            for name in ("hits", "misses")
        )
    with run.part("decisions"):
        members = Crowd(crowd, shingles, settings.threshold)
        dropped, found = decide(hits, crowd, members, documents.pinned, count)
        hits = np.concatenate([hits, found])
        _write(pair_table(hits, documents), work / "pairs.parquet")
        _write(pair_table(misses, documents), work / "misses.parquet")
        result = NearResult(
            work / "pairs.parquet",
            work / "misses.parquet",
            drop_table(dropped, documents),
            families(hits, documents),
            {
                "documents": count - documents.pinned,
                "against": documents.pinned,
                "empty": sum(figures["empty"] for figures in signed),
                "candidates": sum(figures["candidates"] for figures in compared) + members.compared,
                "verified": len(hits),
                "dropped": len(dropped),
                "crowd": len(crowd),
                "seconds": run.seconds,
                "peak_spill_bytes": 0,
            },
        )
    run.spill()
    result.figures["peak_spill_bytes"] = run.peak
    del shingles, members
    shutil.rmtree(run.folder)
    say(f"near-duplicates: {len(dropped)} of {count - documents.pinned} documents dropped, {len(hits)} pairs")
    return result


class _Run:
    """The folder of one search, its jobs and its figures."""

    def __init__(
        self,
        pieces: list[RowGroups],
        count: int,
        settings: NearDuplicates,
        engine: Engine,
        work: Path,
        say: Callable[[str], None],
        seed: int,
    ) -> None:
        self.seed = seed
        self.pieces, self.settings, self.engine, self.say = pieces, settings, engine, say
        self.ranges = ranges_for(count, settings.bands, settings.spill_bytes, engine.workers)
        if count * settings.bands * ROW.itemsize > 100_000_000:
            self.ranges = max(self.ranges, engine.workers)
        self.folder = work / "near"
        self.bytes = sum(piece.bytes for piece in pieces)
        self.seconds: dict[str, float] = {}
        self.peak = 0
        self._take_over()

    def _take_over(self) -> None:
        """Keep what an earlier run on the same files with the same settings left; remove anything else."""
        stats = {piece.path: Path(piece.path).stat() for piece in self.pieces}
        facts = {
            "version": VERSION,
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.seed,
            "pieces": [asdict(piece) for piece in self.pieces],
            "files": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()],
            "ranges": self.ranges,
            "workers": self.engine.workers,
        }
        key = json_sha256(facts)
        note = self.folder / "key"
        if self.folder.exists() and (not note.exists() or note.read_text() != key):
            shutil.rmtree(self.folder)
        self.folder.mkdir(exist_ok=True)
        write_text(note, key)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self.spill()
        self.say(f"near-duplicates: {name}, {self.seconds[name]:.1f} s")

    def spill(self) -> None:
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        self.peak = max(self.peak, size)

    def each(self, name: str, count: int, work: Callable[[Path, int], T]) -> list[T]:
        """Jobs 0 to count - 1, each in the folder `name`; those with a note of their figures are done."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        notes = [folder / f"{index:06d}.json" for index in range(count)]
        job = _Job(work)
        small = self.engine.workers == 1 or self.bytes < SMALL_BYTES
        if count == 1 or (self.engine.name == "native" and small):
            return [job(str(note)) for note in notes]
        return self.engine.each(job, notes)

    def candidates(self, matched: list[MatchFigures]) -> tuple[list[Path], np.ndarray]:
        """The files of candidate pairs, and the ranks in the crowd."""
        folder = self.folder / "matched"
        runs = [
            folder / f"{index:06d}-{run:04d}.pairs.npy"
            for index, figures in enumerate(matched)
            for run in range(figures["runs"])
        ]
        crowds = [np.load(folder / f"{index:06d}.crowd.npy") for index in range(len(matched))]
        return runs, np.unique(np.concatenate(crowds)).astype(np.uint32)

    def shingles(self, runs: list[Path], crowd: np.ndarray, ranks: np.ndarray) -> Shingles:
        """The shingles of all candidates, in one file."""
        out, folder = self.folder / "shingles", self.folder / "shingled"
        wanted = np.zeros(len(ranks), dtype=bool)  # by rank, then by number
        wanted[crowd] = True
        for path in runs:
            pairs = np.load(path, mmap_mode="r")
            for start in range(0, len(pairs), 1 << 20):
                some = np.array(pairs[start : start + (1 << 20)])
                wanted[(some >> np.uint64(32)).astype(np.int64)] = True
                wanted[(some & np.uint64(0xFFFFFFFF)).astype(np.int64)] = True
        wanted = wanted[ranks]
        if not out.with_suffix(".sizes.npy").exists():  # the last file that `join` writes
            pieces = [piece for piece in self.pieces if wanted[piece.first : piece.first + piece.rows].any()]
            if folder.exists() and (folder / "joining").exists():
                shutil.rmtree(folder)
            save(self.folder / "wanted.npy", wanted)
            words = self.settings.shingle_words
            self.each("shingled", len(pieces), partial(_shingle, pieces, self.folder / "wanted.npy", words))
            self.spill()
            (folder / "joining").touch()
            join(pieces, wanted, ranks, folder, out)
        return Shingles(out)


class _Job(Generic[T]):
    """A numbered piece of work that leaves its figures beside its files once these are whole."""

    def __init__(self, work: Callable[[Path, int], T]) -> None:
        self.work = work

    def __call__(self, note: str) -> T:
        path = Path(note)
        if path.exists():
            done: T = read_json(path)
            return done
        figures = self.work(path.parent, int(path.stem))
        write_json(path, figures)
        return figures


def _sign(
    pieces: Sequence[RowGroups],
    ranges: int,
    bands: int,
    rows: int,
    shingle_words: int,
    seed: int,
    folder: Path,
    index: int,
) -> SignFigures:
    return sign(pieces[index], ranges, bands, rows, shingle_words, seed, folder)


def _match(pieces: Sequence[RowGroups], root: Path, pinned: int, folder: Path, index: int) -> MatchFigures:
    return match(index, pieces, root / "ranks.npy", pinned, root / "signed", folder)


def _shingle(
    pieces: Sequence[RowGroups], wanted: Path, shingle_words: int, folder: Path, index: int
) -> dict[str, int]:
    return shingle(pieces[index], wanted, shingle_words, folder)


def _compare(
    bounds: Sequence[int], runs: Sequence[Path], threshold: float, out: Path, folder: Path, index: int
) -> CompareFigures:
    return compare(index, bounds, runs, threshold, out, folder)


def _set_names(against: Sequence[Path]) -> list[str]:
    """The end of each path, as short as distinguishes it from the others."""
    names = []
    for path in against:
        length = 1
        while (
            length < len(path.parts) and sum(o.parts[-length:] == path.parts[-length:] for o in against) > 1
        ):
            length += 1
        names.append("/".join(path.parts[-length:]))
    return names


def _write(table: pa.Table, path: Path) -> None:
    with atomic(path, "wb") as handle:
        pq.write_table(table, handle, compression="zstd")


def _nothing(work: Path) -> NearResult:
    none = np.zeros(0, np.int64)
    documents = Documents(pa.array([], pa.large_string()), none, none, none, none, [], 0)
    for name in ("pairs", "misses"):
        _write(pair_table(np.zeros(0, PAIR), documents), work / f"{name}.parquet")
    return NearResult(
        work / "pairs.parquet",
        work / "misses.parquet",
        DROPPED_SCHEMA.empty_table(),
        FAMILIES_SCHEMA.empty_table(),
        {
            "documents": 0,
            "against": 0,
            "empty": 0,
            "candidates": 0,
            "verified": 0,
            "dropped": 0,
            "crowd": 0,
            "seconds": {},
            "peak_spill_bytes": 0,
        },
    )
