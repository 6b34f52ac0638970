"""Published quality rules: what each measures, its bounds, and the papers they are from.

gopher, gopher-repetition: Rae et al. 2021 (arXiv 2112.11446), appendix A1.1 and table A1.
c4: Raffel et al. 2020 (JMLR 21/140), section 2.2. fineweb: Penedo et al. 2024 (arXiv 2406.17557), section
3.6.

The papers leave some terms open. Here a word is what stands between blanks, a line one that is not blank
(blanks at its ends aside), a paragraph what stands between blank lines, and a duplicate every copy after the
first. Fractions of characters count the characters of words with one blank between two, or of lines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """A measure and the values of it that a document may have: low <= value <= high, or without the ends
    where `strict`. The name is the reason in the ledger."""

    name: str
    low: float | None = None
    high: float | None = None
    strict: bool = False

    def broken(self, value: float) -> float | None:
        """The bound that the value breaks, or None."""
        if self.low is not None and (value < self.low or (self.strict and value == self.low)):
            return self.low
        if self.high is not None and (value > self.high or (self.strict and value == self.high)):
            return self.high
        return None


RULES: dict[str, tuple[Rule, ...]] = {
    "gopher": (
        Rule("gopher-word-count", low=50, high=100_000),
        Rule("gopher-mean-word-length", low=3, high=10),
        Rule("gopher-hash-ratio", high=0.1),
        Rule("gopher-ellipsis-ratio", high=0.1),
        Rule("gopher-bullet-lines", high=0.9),
        Rule("gopher-ellipsis-lines", high=0.3),
        Rule("gopher-alphabetic-words", low=0.8),
        Rule("gopher-stop-words", low=2),
    ),
    "gopher-repetition": (
        Rule("gopher-duplicate-lines", high=0.30),
        Rule("gopher-duplicate-paragraphs", high=0.30),
        Rule("gopher-duplicate-line-characters", high=0.20),
        Rule("gopher-duplicate-paragraph-characters", high=0.20),
        Rule("gopher-top-2-gram", high=0.20),
        Rule("gopher-top-3-gram", high=0.18),
        Rule("gopher-top-4-gram", high=0.16),
        Rule("gopher-duplicate-5-grams", high=0.15),
        Rule("gopher-duplicate-6-grams", high=0.14),
        Rule("gopher-duplicate-7-grams", high=0.13),
        Rule("gopher-duplicate-8-grams", high=0.12),
        Rule("gopher-duplicate-9-grams", high=0.11),
        Rule("gopher-duplicate-10-grams", high=0.10),
    ),
    "c4": (
        Rule("c4-lorem-ipsum", high=0),
        Rule("c4-curly-bracket", high=0),
        Rule("c4-sentences", low=3),
    ),
    "fineweb": (
        Rule("fineweb-line-punctuation", low=0.12, strict=True),
        Rule("fineweb-duplicate-line-characters", high=0.1, strict=True),
        Rule("fineweb-short-lines", high=0.67, strict=True),
    ),
}


def lines_of(text: str) -> list[str]:
    """The lines that are not blank, without blanks at their ends."""
    return [stripped for line in text.split("\n") if (stripped := line.strip())]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


# --- Gopher's quality rules

_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_MARKS = ".,;:!?\"'()[]{}*_“”‘’"
_BULLETS = tuple("•‣◦▪▫■□●○–-*")
_LETTER = re.compile(r"[^\W\d_]")


def gopher(text: str) -> list[float]:
    """Values of RULES["gopher"], in their order."""
    words = text.split()
    lines = lines_of(text)
    n = len(words)
    counts = Counter(words)  # most words are there several times: look at each once
    lettered = sum(times for word, times in counts.items() if word.isalpha() or _LETTER.search(word))
    present = {word.strip(_MARKS) for word in map(str.lower, counts)} & _STOP_WORDS
    bullets = sum(line.startswith(_BULLETS) for line in lines)
    trailing = sum(line.endswith(("...", "…")) for line in lines)
    return [
        n,
        _share(sum(map(len, words)), n),
        _share(text.count("#"), n),
        _share(text.count("...") + text.count("…"), n),
        _share(bullets, len(lines)),
        _share(trailing, len(lines)),
        _share(lettered, n),
        len(present),
    ]


# --- Gopher's repetition rules

_PARAGRAPHS = re.compile(r"\n\s*\n")


def duplicates(items: Iterable[str]) -> tuple[float, float]:
    """(share of the items that are copies of an earlier one, the same share by characters)."""
    counts = Counter(items)
    copies = sum(n - 1 for n in counts.values())
    characters = sum((n - 1) * len(item) for item, n in counts.items())
    return (
        _share(copies, counts.total()),
        _share(characters, sum(n * len(item) for item, n in counts.items())),
    )


def ngram_shares(words: list[str]) -> tuple[list[float], list[float]]:
    """(shares of characters in the most frequent 2-, 3- and 4-gram, shares in duplicate 5- to 10-grams).

    An n-gram that is there once is no repetition, and every character counts once however many duplicates
    hold it. Of equally frequent n-grams the longest counts. Exact: n-grams are numbered, not hashed. An
    n-gram can only be repeated where the (n-1)-grams at its beginning and its end are, so each length looks
    only at those of the last.
    """
    top, copied = [0.0] * 3, [0.0] * 6
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    ids = np.fromiter(map(numbers.__getitem__, words), np.int64, len(words))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    ends = np.concatenate(
        ([0], np.cumsum(lengths + 1))
    )  # characters up to each word, one blank after every word
    total = max(int(ends[-1]) - 1, 1)
    positions: Ints = np.flatnonzero(np.bincount(ids)[ids] > 1) if len(words) else ids
    grams = ids[positions]
    for n in range(2, 11):
        repeated = np.zeros(len(words) + 1, np.bool_)
        repeated[positions] = True
        fits = repeated[positions + 1]
        positions, grams = positions[fits], grams[fits]
        _, first, grams, counts = np.unique(
            grams * len(numbers) + ids[positions + n - 1],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        if not len(counts) or counts.max() < 2:
            break
        if n <= 4:
            frequent = first[counts == counts.max()]
            characters = (ends[positions[frequent] + n] - ends[positions[frequent]] - 1).max()
            top[n - 2] = min(1.0, float(counts.max() * characters) / total)
        else:
            later = np.ones(len(positions), np.bool_)
            later[first] = False
            copied[n - 5] = _covered(positions[later], n, ends) / total
        again = counts[grams] > 1
        positions, grams = positions[again], grams[again]
    return top, copied


def _covered(positions: Ints, n: int, ends: Ints) -> int:
    """Characters in the union of the n-grams that begin at these positions, which are in order."""
    stops = np.maximum.accumulate(positions + n)
    begins = np.concatenate(([True], positions[1:] > stops[:-1])) if len(positions) else np.zeros(0, np.bool_)
    starts = positions[begins]
    last = stops[np.concatenate((begins[1:], [True]))] if len(positions) else stops
    return int((ends[last] - ends[starts] - 1).sum())


def repetition(text: str) -> list[float]:
    """Values of RULES["gopher-repetition"], in their order."""
    of_lines = duplicates(lines_of(text))
    of_paragraphs = duplicates(stripped for part in _PARAGRAPHS.split(text) if (stripped := part.strip()))
    top, copied = ngram_shares(text.split())
    return [of_lines[0], of_paragraphs[0], of_lines[1], of_paragraphs[1], *top, *copied]


# --- C4's rules

MIN_WORDS_PER_LINE = 5
MAX_WORD_LENGTH = 1_000  # from the released code, as are ellipses, citation marks and the notices below
_C4_ENDS = (".", "!", "?", '"', "”")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_NOTICES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
# A sentence ends in marks, perhaps quotes or brackets, and is not followed by lower case.
_SENTENCE = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s+[^\sa-z]|\s*\Z)")


def c4_lines(text: str) -> tuple[str, dict[str, int]]:
    """(the lines that C4 keeps, without citation marks; how many were left out, by cause)."""
    kept: list[str] = []
    removed: Counter[str] = Counter()
    for line in lines_of(text):
        words = line.split()
        if "[" in line:
            line = _CITATION.sub("", line).rstrip()
        lower = line.lower()
        if not line.endswith(_C4_ENDS) or line.endswith("..."):
            removed["no-terminal-punctuation"] += 1
        elif len(words) < MIN_WORDS_PER_LINE:
            removed["few-words"] += 1
        elif max(map(len, words)) > MAX_WORD_LENGTH:
            removed["long-word"] += 1
        elif "javascript" in lower:
            removed["javascript"] += 1
        elif any(notice in lower for notice in _NOTICES):
            removed["policy-notice"] += 1
        else:
            kept.append(line)
    return "\n".join(kept), dict(sorted(removed.items()))


def sentences(text: str) -> int:
    """How many sentences end on the text's lines. Abbreviations before a capital letter count as ends."""
    return sum(max(1, len(_SENTENCE.findall(line))) for line in lines_of(text))


def c4(text: str) -> tuple[list[float], str, dict[str, int]]:
    """(values of RULES["c4"], in their order; the lines that C4 keeps; how many it leaves out, by cause).

    Bad words are left to the policy step, repeated spans of three sentences to the search for
    near-duplicates.
    """
    kept, removed = c4_lines(text)
    return [text.lower().count("lorem ipsum"), text.count("{"), sentences(kept)], kept, removed


# --- FineWeb's rules

SHORT_LINE = 30  # characters
# Marks that end a sentence in the scripts of large languages.
_TERMINAL = tuple(".!?‼⁇⁈⁉‽。！？｡．।॥؟۔։።፧။។")


def fineweb(text: str) -> list[float]:
    """Values of RULES["fineweb"], in their order."""
    lines = lines_of(text)
    ended = sum(line.endswith(_TERMINAL) for line in lines)
    short = sum(len(line) < SHORT_LINE for line in lines)
    return [_share(ended, len(lines)), duplicates(lines)[1], _share(short, len(lines))]
