"""Repetition: n-gram shares and duplicates against a plain count."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.corpus.steps.quality_rules import duplicates, ngram_shares


def plainly(words: list[str]) -> tuple[list[float], list[float]]:
    """The shares by their definition: every n-gram listed, every character marked."""
    text = " ".join(words)
    starts = [len(" ".join([*words[:i], ""])) if i else 0 for i in range(len(words))]
    ends = [start + len(word) for start, word in zip(starts, words)]
    top, copied = [], []
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = Counter(grams)
        most = max(counts.values(), default=0)
        if n <= 4:
            longest = max((len(" ".join(gram)) for gram, k in counts.items() if k == most), default=0)
            top.append(min(1.0, most * longest / len(text)) if most > 1 else 0.0)
        else:
            marked, seen = set(), set()
            for i, gram in enumerate(grams):
                if gram in seen:
                    marked |= set(range(starts[i], ends[i + n - 1]))
                seen.add(gram)
            copied.append(len(marked) / len(text) if text else 0.0)
    return top, copied


@settings(derandomize=True, deadline=None, max_examples=120)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "é"]), max_size=60))
def test_ngram_shares_are_those_of_listing_every_ngram(words: list[str]) -> None:
    for found, plain in zip(ngram_shares(words), plainly(words)):
        assert found == pytest.approx(plain)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=3, max_size=14), st.integers(1, 4), st.integers(0, 9))
def test_ngram_shares_of_copied_passages(passage: list[str], copies: int, gap: int) -> None:
    words = [w for k in range(copies) for w in [*passage, *(f"{k}-{i}" for i in range(gap))]]
    for found, plain in zip(ngram_shares(words), plainly(words)):
        assert found == pytest.approx(plain)


def test_duplicates_are_copies_after_the_first() -> None:
    assert duplicates(["aa", "b", "aa", "aa"]) == (0.5, 4 / 7)
    assert duplicates([]) == (0, 0)
