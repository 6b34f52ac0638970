"""Texts to words, words to shingles, shingles to MinHash signatures and to the keys of LSH bands.

Signatures and exact similarities are made of the same words: what `normalised` returns, cut at its blanks.
Daft's expressions are evaluated on tables in memory, so they work in whatever process and under whatever
runner.

MinHash: Broder, "On the resemblance and containment of documents" (1997). Bands: Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", chapter 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import daft

SEED = 1

# Scripts written without blanks between words: each of their characters counts as a word. Korean has blanks.
_SCRIPTS = (
    *("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"),
    *("Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Javanese", "Balinese"),
)
# The long-vowel mark of Japanese belongs to no script.
_UNSPACED = (
    "([" + "".join(rf"\p{{{name}}}" for name in _SCRIPTS) + "\N{KATAKANA-HIRAGANA PROLONGED SOUND MARK}])"
)

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_FINISH = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_HALF = np.uint64(32)


def normalised(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Words with one blank between them: ASCII punctuation gone, lower case, decomposed (NFD).

    texts: strings; null counts as ''. Returns strings, '' where a text has no word.
    """
    texts = pc.fill_null(_whole(texts), "")
    dense = pc.match_substring_regex(texts, _UNSPACED)
    if pc.any(dense).as_py():
        spaced = pc.replace_substring_regex(texts.filter(dense), _UNSPACED, r" \1 ")
        texts = pc.replace_with_mask(texts, dense, spaced)
    from daft import col

    # Punctuation between a blank and the end leaves that blank, which Daft's minhash would take for a word.
    words = col("x").normalize(remove_punct=True, lowercase=True, nfd_unicode=True, white_space=True).rstrip()
    return _evaluate(texts, words)


def minhash(words: pa.Array, hashes: int, shingle_words: int, seed: int = SEED) -> np.ndarray:
    """Signatures, uint32 [texts, hashes], of texts as `normalised` returns them.

    A text with fewer words than a shingle has one shingle, of all of them; a text without words gets the
    largest value in each position. seed: of the permutations.
    """
    from daft import col

    made = col("x").minhash(
        num_hashes=hashes, ngram_size=shingle_words, seed=seed, hash_function="xxhash3_64"
    )
    flat = _evaluate(words, made).flatten()
    return flat.to_numpy(zero_copy_only=False).reshape(len(words), hashes)


def band_keys(signatures: np.ndarray, bands: int) -> np.ndarray:
    """uint32 [texts, bands * rows] to uint64 [texts, bands]: one key per band, spread evenly over 64 bits.

    Equal rows of a band have equal keys; keys of two bands are unrelated, so that one table holds them all.
    """
    texts, hashes = signatures.shape
    rows = signatures.reshape(texts, bands, hashes // bands)
    keys = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), (texts, bands)).copy()
    _absorb_first(keys)
    for row in range(rows.shape[2]):
        _absorb(keys, rows[:, :, row])
    return _finished(keys)


def shingle_sets(words: pa.Array, shingle_words: int) -> tuple[np.ndarray, np.ndarray]:
    """The sets of shingles of texts as `normalised` returns them.

    Returns (values, sizes): 64-bit hashes, uint64, each text's sorted and without repetition, one text after
    the other; and how many each text has, int64 [texts]. A text without words has none.
    """
    from daft import col

    lists = pc.split_pattern(words, " ")
    ends = lists.offsets.to_numpy().astype(np.int64)
    hashed = _evaluate(lists.flatten(), col("x").hash(hash_function="xxhash3_64")).to_numpy(
        zero_copy_only=False
    )
    windows = max(len(hashed) - shingle_words + 1, 0)
    rolled = np.full(windows, shingle_words, dtype=np.uint64)
    _absorb_first(rolled)
    for position in range(shingle_words):
        _absorb(rolled, hashed[position : position + windows])
    rolled = _finished(rolled)
    sets = []
    for start, end, text in zip(ends[:-1].tolist(), ends[1:].tolist(), pc.not_equal(words, "").to_pylist()):
        if not text:
            sets.append(rolled[:0])
        elif end - start < shingle_words:
            sets.append(_short(hashed[start:end]))
        else:
            sets.append(_distinct(rolled[start : end - shingle_words + 1]))
    sizes = np.fromiter(map(len, sets), dtype=np.int64, count=len(sets))
    return (np.concatenate(sets) if sets else rolled[:0]), sizes


def _short(hashed: np.ndarray) -> np.ndarray:
    """The one shingle, uint64 [1], of all words."""
    value = np.full(1, len(hashed), dtype=np.uint64)
    _absorb_first(value)
    for position in range(len(hashed)):
        _absorb(value, hashed[position : position + 1])
    return _finished(value)


def _distinct(values: np.ndarray) -> np.ndarray:
    ordered = np.sort(values)
    fresh = np.empty(len(ordered), dtype=bool)
    fresh[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=fresh[1:])
    return ordered[fresh]


# Hashing of sequences of numbers, arrays at a time: uint64 arithmetic wraps around.


def _absorb_first(state: np.ndarray) -> None:
    state *= _MULTIPLIER


def _absorb(state: np.ndarray, values: np.ndarray) -> None:
    state ^= values
    state *= _MULTIPLIER
    state ^= state >> _HALF


def _finished(state: np.ndarray) -> np.ndarray:
    shift = np.uint64(33)
    for factor in _FINISH:
        state ^= state >> shift
        state *= factor
    state ^= state >> shift
    return state


def _whole(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _evaluate(values: pa.Array, expression: daft.Expression) -> pa.Array:
    """An expression over the column `x`, without a runner."""
    from daft.expressions import ExpressionsProjection
    from daft.recordbatch import RecordBatch

    batch = RecordBatch.from_arrow_table(pa.table({"x": values}))
    evaluated = batch.eval_expression_list(ExpressionsProjection([expression.alias("y")]))
    return _whole(evaluated.to_arrow_table().column(0))
