"""Words and word n-grams of texts as 64-bit hashes, made for many texts at once with NumPy, and an index of
them.

Words are runs of letters, marks and digits after NFKC and case folding; punctuation, symbols and white space
only separate; characters without width are dropped. In scripts that are written without blanks (Chinese,
Japanese, Thai, Lao, Khmer, Burmese) each character is a word. Digits stay as they are: 1,000 is the words 1
and 000.

A word's hash is the sum over its characters of a random number of the character times one of the position, an
n-gram's a polynomial of its words' hashes, both modulo 2**64 and mixed. Equal n-grams have equal hashes on
every machine; two different ones share a hash with a probability near 2**-64, so that about one of 10**12
n-grams is found by mistake in an index of ten million.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ikirere.common.splitmix import GOLDEN, splitmix

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

SEPARATOR, LETTER, ALONE, HIDDEN = range(4)  # kinds of characters
LONGEST_WORD = 1024  # characters of a word that count each by their position; after them positions repeat
FILTER_BITS = (
    16  # at least, of the filter per hash of an index: one n-gram in sixteen or fewer passes by mistake
)
# Scripts without blanks between words, as ranges of code points.
UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3134F),
)  # fmt: skip
ASSIGNED = 0x32400  # above it there are no letters, as of Unicode 16
MASK = (1 << 64) - 1


@lru_cache(maxsize=1)
def _tables() -> tuple[npt.NDArray[np.uint8], U64, U64]:
    """Kind and random number of each code point, random odd number of each position in a word."""
    kinds = np.zeros(0x110000, np.uint8)
    for code in range(ASSIGNED):
        category = unicodedata.category(chr(code))
        if category[0] in "LNM":
            kinds[code] = LETTER
        elif category == "Cf":  # soft hyphens, joiners, marks of byte order and direction
            kinds[code] = HIDDEN
    for first, last in UNSPACED:
        letters = kinds[first : last + 1]
        letters[letters == LETTER] = ALONE
    kinds[0xFE00:0xFE10] = HIDDEN  # variation selectors
    kinds[0xE0000:0xE01F0] = HIDDEN  # tags and more of them
    characters = splitmix(np.arange(1, 0x110001, dtype=np.uint64) * GOLDEN)
    positions = splitmix(np.arange(0x200000, 0x200000 + LONGEST_WORD, dtype=np.uint64) * GOLDEN) | np.uint64(
        1
    )
    return kinds, characters, positions


def folded(text: str) -> str:
    """NFKC and case folding; quick for ASCII."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def span_hash(hashes: U64) -> int:
    """Hash of some words in a row (uint64 [words]): what `Words.ngrams` gives them for their number of
    words."""
    value = 0
    for word in hashes.tolist():
        value = (value * int(GOLDEN) + word) & MASK
    return int(splitmix(np.array([(value + len(hashes)) & MASK], np.uint64))[0])


@dataclass
class Words:
    """The words of some texts, back to back.

    text: the folded texts; starts, ends: int64 [words], of each word in it. hashes: uint64 [words].
    documents: int64 [words], which text each is of, ascending.
    """

    text: str
    starts: I64
    ends: I64
    hashes: U64
    documents: I64

    def show(self, first: int, count: int) -> str:
        """Words as text, one blank between them."""
        spans = zip(self.starts[first : first + count].tolist(), self.ends[first : first + count].tolist())
        return " ".join(self.text[a:b] for a, b in spans)

    def ngrams(self, n: int, within: I64 | None = None) -> tuple[U64, I64]:
        """Hashes (uint64 [n-grams]) and first words (int64, ascending) of all n-grams that lie inside one
        document, or inside one of the groups that `within` (int64 [words], ascending) gives the words."""
        count = len(self.hashes) - n + 1
        if count <= 0:
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        within = self.documents if within is None else within
        values = self.hashes[:count].copy()
        for k in range(1, n):
            values *= GOLDEN
            values += self.hashes[k : count + k]
        inside = np.flatnonzero(within[:count] == within[n - 1 :])
        return splitmix(values[inside] + np.uint64(n)), inside


def words_of(texts: Sequence[str]) -> Words:
    """Words of texts, in order; a word never reaches over the end of a text. Holds about 40 bytes per
    character while it works."""
    _, numbers, positions = _tables()
    parts = [folded(text) for text in texts]
    joined = "\n".join(parts)
    codes, kinds = _characters(joined)
    if (kinds == HIDDEN).any():
        hidden = dict.fromkeys(np.unique(codes[kinds == HIDDEN]).tolist())
        parts = [part if part.isascii() else part.translate(hidden) for part in parts]
        joined = "\n".join(parts)
        codes, kinds = _characters(joined)
    inside = kinds != SEPARATOR
    follows = np.zeros(len(kinds) + 1, bool)  # whether a character belongs to the word of the one before
    follows[1:-1] = inside[1:] & inside[:-1]
    if (kinds == ALONE).any():
        alone = kinds == ALONE
        follows[1:-1] &= ~(alone[1:] | alone[:-1])
    starts = np.flatnonzero(inside & ~follows[:-1])
    ends = np.flatnonzero(inside & ~follows[1:]) + 1
    lengths = ends - starts
    firsts = np.cumsum(lengths) - lengths  # of each word, among the characters that belong to words
    position = np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(firsts, lengths)
    if len(lengths) and lengths.max() > LONGEST_WORD:
        position %= LONGEST_WORD
    values = numbers.take(codes[inside])
    values *= positions.take(position)
    hashes = splitmix(np.add.reduceat(values, firsts)) if len(firsts) else np.empty(0, np.uint64)
    borders = np.cumsum([0] + [len(part) + 1 for part in parts])
    documents = np.repeat(np.arange(len(parts)), np.diff(np.searchsorted(starts, borders)))
    return Words(joined, starts, ends, hashes, documents)


def _characters(text: str) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.uint8]]:
    """Code points of a text and their kinds."""
    kinds, _, _ = _tables()
    if text.isascii():
        codes = np.frombuffer(text.encode("ascii"), np.uint8)
        return codes, kinds[:128].take(codes)
    wide = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return wide, kinds.take(wide)


class HashIndex:
    """Hashes and what each stands for, as memory-mapped files that processes share.

    hashes: uint64 [n], ascending, distinct. starts: int64 [n + 1]; postings[starts[i]:starts[i + 1]] (uint32)
    belong to hash i. filter: bits by which nearly all hashes that are not there are recognised without a search.
    """

    FILES = ("hashes", "starts", "postings", "filter")

    def __init__(self, folder: Path, name: str) -> None:
        self.hashes, self.starts, self.postings, self.filter = (
            np.load(folder / f"{name}-{file}.npy", mmap_mode="r") for file in self.FILES
        )
        self.shift = np.uint64(64 - int(len(self.filter) * 8).bit_length() + 1)

    @staticmethod
    def write(folder: Path, name: str, hashes: U64, postings: npt.NDArray[np.uint32]) -> None:
        """hashes, postings: [rows] in any order; equal hashes may repeat."""
        order = np.lexsort((postings, hashes))
        distinct, starts = np.unique(hashes[order], return_index=True)
        bits = max(6, int(FILTER_BITS * max(1, len(distinct)) - 1).bit_length())
        positions = distinct >> np.uint64(64 - bits)
        table = np.zeros(1 << (bits - 3), np.uint8)
        np.bitwise_or.at(
            table, positions >> np.uint64(3), np.left_shift(1, positions & np.uint64(7)).astype(np.uint8)
        )
        starts = np.append(starts, len(order)).astype(np.int64)
        arrays: tuple[npt.NDArray[np.generic], ...] = (distinct, starts, postings[order], table)
        for file, array in zip(HashIndex.FILES, arrays):
            np.save(folder / f"{name}-{file}.npy", array)

    def find(self, wanted: U64) -> tuple[I64, I64]:
        """Positions in `wanted` (uint64 [m]) that are in the index, ascending, and which hash each is."""
        if not len(self.hashes):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        positions = wanted >> self.shift
        bits = self.filter.take((positions >> np.uint64(3)).astype(np.int64))
        bits >>= (positions & np.uint64(7)).astype(np.uint8)
        maybe = np.flatnonzero(bits & 1)
        order = np.argsort(wanted[maybe])  # neighbours in the index are looked up one after another
        found = np.empty(len(maybe), np.int64)
        found[order] = np.searchsorted(self.hashes, wanted[maybe[order]])
        found[found == len(self.hashes)] = 0
        right = self.hashes[found] == wanted[maybe]
        return maybe[right], found[right]

    def expand(self, found: I64) -> tuple[I64, npt.NDArray[np.uint32]]:
        """All postings of some hashes: which of `found` each is of (int64 [rows]), and the posting."""
        first, counts = self.starts[found], self.starts[found + 1] - self.starts[found]
        owner = np.repeat(np.arange(len(found)), counts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        return owner, self.postings[np.repeat(first, counts) + within]
