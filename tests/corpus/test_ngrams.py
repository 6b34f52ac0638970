"""Words, n-grams and their index, against plain Python."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.corpus.contamination.ngrams import UNSPACED, HashIndex, span_hash, words_of

ODD = "aB1 .-_\n\té\u0301ßﬁ①Ⅳ中日の한ก\u00ad\u200b\ufe0f😀"
texts = st.lists(
    st.text(st.sampled_from(ODD)) | st.text(max_size=40),
    max_size=6,
)


def plain_words(text: str) -> list[str]:
    """Word by word, as the module's docstring defines it."""
    words, open_word = [], False
    for c in unicodedata.normalize("NFKC", text).casefold():
        category = unicodedata.category(c)
        if category == "Cf" or 0xFE00 <= ord(c) < 0xFE10 or 0xE0000 <= ord(c) < 0xE01F0:
            continue
        if category[0] not in "LNM":
            open_word = False
        elif any(a <= ord(c) <= b for a, b in UNSPACED):
            words.append(c)
            open_word = False
        elif open_word:
            words[-1] += c
        else:
            words.append(c)
            open_word = True
    return words


@settings(deadline=None)  # the tables are made by whichever example comes first
@given(texts)
def test_words_are_those_of_the_definition(found: list[str]) -> None:
    words = words_of(found)
    expected = [(number, word) for number, text in enumerate(found) for word in plain_words(text)]
    shown = [words.show(i, 1) for i in range(len(words.hashes))]
    assert list(zip(words.documents.tolist(), shown)) == expected
    by_hash = defaultdict(set)
    for value, word in zip(words.hashes.tolist(), shown):
        by_hash[value].add(word)
    assert all(len(same) == 1 for same in by_hash.values()) and len(by_hash) == len(set(shown))


@settings(deadline=None)  # the tables are made by whichever example comes first
@given(texts, st.integers(1, 4))
def test_ngrams_are_equal_where_their_words_are_and_never_cross_texts(found: list[str], n: int) -> None:
    words = words_of(found)
    hashes, firsts = words.ngrams(n)
    grams = [tuple(words.show(int(f) + k, 1) for k in range(n)) for f in firsts]
    expected = [
        tuple(w[i : i + n]) for text in found for w in [plain_words(text)] for i in range(len(w) - n + 1)
    ]
    assert grams == expected
    assert len(set(hashes.tolist())) == len(set(grams))
    assert [span_hash(words.hashes[f : f + n]) for f in firsts] == hashes.tolist()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The Quick, BROWN fox!", "the quick brown  fox"),
        ("ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("co\u00adop\u200bera\u2060tion", "cooperation"),
        ("Cafe\u0301 Straße", "CAFÉ STRASSE"),
        ("little @-@ known", "little-known"),
        ("x^2 + 3x", "x 2 3x"),
    ],
)
def test_ways_of_writing_that_do_not_hide_an_item(one: str, other: str) -> None:
    assert words_of([one]).hashes.tolist() == words_of([other]).hashes.tolist()


@pytest.mark.parametrize(("one", "other"), [("2 3", "23"), ("ab c", "a bc"), ("1000", "100"), ("a b", "b a")])
def test_what_is_not_the_same(one: str, other: str) -> None:
    assert span_hash(words_of([one]).hashes) != span_hash(words_of([other]).hashes)


def test_hashes_are_the_same_on_every_machine() -> None:
    words = words_of(["The quick brown fox", "中文"])
    assert span_hash(words.hashes) == 9611931857374899618
    assert words.ngrams(4)[0].tolist() == [4259694346053599528]


def test_long_words_and_long_texts() -> None:
    long = "x" * 5000
    words = words_of([long, long + "y", "a" + long])
    assert len(set(words.hashes.tolist())) == 3
    assert words_of([f"{long} z"]).hashes[0] == words.hashes[0]
    assert words_of([]).hashes.tolist() == words_of(["", " .\n"]).documents.tolist() == []


def test_lone_surrogates_separate_words() -> None:
    words = words_of(["a\ud800b"])
    assert [words.show(i, 1) for i in range(2)] == ["a", "b"]


@settings(deadline=None)  # the tables are made by whichever example comes first
@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**64 - 1]), st.integers(0, 9)),
        max_size=40,
    ),
    st.lists(st.integers(0, 2**64 - 1), max_size=20),
)
def test_an_index_finds_what_is_in_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int]], others: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("index")
    HashIndex.write(
        folder, "x", np.array([k for k, _ in rows], np.uint64), np.array([v for _, v in rows], np.uint32)
    )
    index = HashIndex(folder, "x")
    known = defaultdict(list)
    for key, value in rows:
        known[key].append(value)
    wanted = [*others, *known, 7]
    positions, found = index.find(np.array(wanted, np.uint64))
    assert [wanted[p] for p in positions] == [key for key in wanted if key in known]
    owner, postings = index.expand(found)
    assert [(wanted[positions[o]], int(p)) for o, p in zip(owner, postings)] == [
        (wanted[p], value) for p in positions for value in sorted(known[wanted[p]])
    ]


def test_an_index_is_read_by_mapping(tmp_path: Path) -> None:
    HashIndex.write(tmp_path, "x", np.arange(1000, dtype=np.uint64), np.zeros(1000, np.uint32))
    assert isinstance(HashIndex(tmp_path, "x").hashes, np.memmap)
