"""Signatures of near-duplicates: words as they are compared, shingles, and the keys of bands."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.corpus.dedup.signatures import band_keys, minhash, normalised, shingle_sets


@given(st.lists(st.text(max_size=60), min_size=1, max_size=6), st.integers(1, 6))
@settings(deadline=None)
def test_signature_and_shingles_agree(texts: list[str], size: int) -> None:
    """A signature is the smallest of those of the shingles that the exact similarity counts."""
    cleaned = normalised(pa.array(texts))
    signatures = minhash(cleaned, 16, size)
    values, sizes = shingle_sets(cleaned, size)
    ends = np.cumsum(sizes)
    known: dict[str, int] = {}
    for text, signature, end, count in zip(cleaned.to_pylist(), signatures, ends, sizes):
        w = text.split(" ") if text else []
        shingles = {" ".join(w[i : i + size]) for i in range(max(1, len(w) - size + 1))} if w else set()
        assert count == len(shingles)
        if shingles:
            assert (minhash(pa.array(sorted(shingles)), 16, size).min(axis=0) == signature).all()
        mine = values[end - count : end]
        assert (np.diff(mine.astype(object)) > 0).all()
        for shingle in shingles:
            alone = int(shingle_sets(pa.array([shingle]), size)[0][0])
            assert alone in mine
            assert known.setdefault(shingle, alone) == alone
    assert len(set(known.values())) == len(known)


@given(st.text(alphabet=st.characters(categories=["L", "P", "Z", "N"])))
@settings(deadline=None)
def test_normalised_is_stable(text: str) -> None:
    once = normalised(pa.array([text]))
    assert normalised(once).to_pylist() == once.to_pylist() or not text.isascii()
    assert not re.search(r"^ | $|  ", once[0].as_py())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't  STOP!\n\tNow ", "dont stop now"),
        ("end ...", "end"),
        ("???", ""),
        (None, ""),
        ("你好世界", "你 好 世 界"),
        ("abcไทย", "abc ไ ท ย"),
        ("コーヒー", "コ ー ヒ ー"),
        ("서울 시", "서울 시"),
        ("Caf\u00e9", "cafe\u0301"),
    ],
)
def test_normalised(text: str | None, expected: str) -> None:
    import unicodedata

    made = normalised(pa.array([text], pa.string())).to_pylist()[0]
    assert made == unicodedata.normalize("NFD", expected)


def test_band_keys_are_even_and_apart() -> None:
    signatures = np.random.default_rng(0).integers(0, 2**32, (2000, 20), dtype=np.uint32)
    keys = band_keys(signatures, 4)
    assert len(np.unique(keys)) == keys.size
    counts = np.bincount((keys >> np.uint64(60)).astype(int).ravel(), minlength=16)
    assert counts.min() > 400
    one = signatures[:1].copy()
    one[0, 7] += 1  # second band
    assert (band_keys(one, 4)[0] == keys[0]).tolist() == [True, False, True, True]
    assert len(np.unique(band_keys(np.zeros((1, 20), np.uint32), 4))) == 4
