"""Samples of documents that depend on nothing but the seed and the documents' ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from ikirere.corpus.parts import read_part

FOLDS = 2


def draw(seed: int, identity: str) -> int:
    """A number below 2**64, as if drawn at random for this id."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {identity}".encode(), digest_size=8).digest(), "big")


def fold(drawn: int) -> int:
    """0 or 1, from the lowest bit; the order of the other bits decides what is in a sample."""
    return drawn % FOLDS


@dataclass
class Catalogue:
    """What is known of all documents of some parts, without their texts; one entry of each array per
    document, in the parts' order. domains: names by number. n_bytes: of the text in UTF-8."""

    part: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    drawn: npt.NDArray[np.uint64]
    domain: npt.NDArray[np.int64]
    n_bytes: npt.NDArray[np.int64]
    domains: list[str]

    @classmethod
    def read(cls, parts: Sequence[Path], seed: int) -> Catalogue:
        """parts: of DOCUMENT_SCHEMA (tables or views), read one at a time."""
        numbers: dict[str, int] = {}
        columns: list[list[npt.NDArray[np.int64]]] = [[], [], [], []]
        drawn: list[npt.NDArray[np.uint64]] = []
        for number, part in enumerate(parts):
            table = read_part(part, ["id", "domain", "text"])
            domain = [numbers.setdefault(name, len(numbers)) for name in table["domain"].to_pylist()]
            lengths = pc.binary_length(table["text"]).to_numpy()
            for column, values in zip(
                columns, (np.full(len(table), number), np.arange(len(table)), np.asarray(domain), lengths)
            ):
                column.append(np.asarray(values, np.int64))
            drawn.append(np.array([draw(seed, one) for one in table["id"].to_pylist()], np.uint64))
        if not parts:
            empty = np.zeros(0, np.int64)
            return cls(empty, empty, empty.astype(np.uint64), empty, empty, [])
        part_of, row, of_domain, n_bytes = (np.concatenate(column) for column in columns)
        return cls(part_of, row, np.concatenate(drawn), of_domain, n_bytes, list(numbers))

    def lowest(
        self,
        among: npt.NDArray[np.bool_],
        most: int | None = None,
        n_bytes: int | None = None,
        cut: int | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Those with the lowest numbers drawn, of those marked: `most` documents, or as many as are needed to
        reach `n_bytes` of text, counting at most `cut` bytes of each."""
        positions = np.flatnonzero(among)
        positions = positions[np.argsort(self.drawn[positions], kind="stable")]
        if n_bytes is not None:
            sizes = self.n_bytes[positions] if cut is None else np.minimum(self.n_bytes[positions], cut)
            before = np.cumsum(sizes) - sizes
            positions = positions[before < n_bytes]
        marked = np.zeros(len(self.part), np.bool_)
        marked[positions[:most]] = True
        return marked

    def texts(self, parts: Sequence[Path], wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, str]]:
        """(position in the catalogue, text) of the documents marked, one part in memory at a time."""
        for number, part in enumerate(parts):
            positions = np.flatnonzero(wanted & (self.part == number))
            if len(positions):
                column = read_part(part, ["text"])["text"]
                for position in positions:
                    yield int(position), column[int(self.row[position])].as_py()
