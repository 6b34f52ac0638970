"""Logistic regression on hashed words and pairs of words: how much a text reads like good text.

The set-up is that of GPT-3's filter (Brown et al. 2020, appendix A): text that is taken as good against text
nobody has judged. So a low probability says "unlike the good text", not "bad", and a domain that is merely
different is low too.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ikirere.common.arrays import save_arrays

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]

SIZE = 1 << 18  # hashed features; two that share a place share a weight
CHARACTERS = 20_000  # of a text's beginning that are looked at
PASSES, BATCH, RATE, DECAY = 4, 32, 0.5, 1e-5
_WORD = re.compile(r"\w+")
_ODD = np.uint64(0x9E3779B97F4A7C15)

Features = tuple[Ints, Floats]


def features(text: str) -> Features:
    """(places below SIZE, int64 [n], in order; weights, float64 [n], of Euclidean length 1): log(1 + count)
    of each word and each pair of neighbours, in lower case."""
    words = _WORD.findall(text[:CHARACTERS].lower())
    if not words:
        return np.zeros(0, np.int64), np.zeros(0)
    hashes = {word: zlib.crc32(word.encode()) for word in dict.fromkeys(words)}
    single = np.fromiter(map(hashes.__getitem__, words), np.uint64, len(words))
    pairs = single[:-1] * _ODD + single[1:]
    # The product's high bits depend on all bits of the number; unsigned arithmetic wraps around.
    every = np.concatenate((single * _ODD, (pairs + np.uint64(1)) * _ODD)) >> np.uint64(64 - 18)
    places, counts = np.unique(every.astype(np.int64), return_counts=True)
    weights = np.log1p(counts)
    return places, weights / np.sqrt(np.sum(weights * weights))


@dataclass
class Classifier:
    """weights: float64 [SIZE]."""

    weights: Floats
    bias: float

    @classmethod
    def train(cls, good: Sequence[Features], unjudged: Sequence[Features], seed: int) -> Classifier:
        """Both sides weigh the same, whatever their numbers. AdaGrad (Duchi et al. 2011), four passes in an
        order drawn from the seed: the same input gives the same weights. Raises ValueError where a side is
        empty."""
        if not good or not unjudged:
            raise ValueError("both sides need texts")
        every = [*good, *unjudged]
        labels = np.concatenate((np.ones(len(good)), np.zeros(len(unjudged))))
        importance = np.concatenate(
            (np.full(len(good), len(every) / len(good)), np.full(len(unjudged), len(every) / len(unjudged)))
        )
        importance /= 2
        weights, bias = np.zeros(SIZE), 0.0
        squares, bias_squares = np.full(SIZE, 1e-8), 1e-8
        generator = np.random.default_rng(seed)
        for _ in range(PASSES):
            order = generator.permutation(len(every))
            for start in range(0, len(every), BATCH):
                rows = order[start : start + BATCH]
                batch = [every[row] for row in rows]
                places = np.concatenate([places for places, _ in batch])
                values = np.concatenate([values for _, values in batch])
                of_row = np.repeat(np.arange(len(batch)), [len(places) for places, _ in batch])
                scores = np.bincount(of_row, weights[places] * values, minlength=len(batch)) + bias
                errors = (_sigmoid(scores) - labels[rows]) * importance[rows] / len(batch)
                touched, inverse = np.unique(places, return_inverse=True)
                slope = np.bincount(inverse, errors[of_row] * values) + DECAY * weights[touched]
                squares[touched] += slope * slope
                weights[touched] -= RATE * slope / np.sqrt(squares[touched])
                bias_slope = float(errors.sum())
                bias_squares += bias_slope * bias_slope
                bias -= RATE * bias_slope / bias_squares**0.5
        return cls(weights, bias)

    def probability(self, of: Features) -> float:
        """That the text is of the good side, where both are equally likely."""
        places, values = of
        return float(_sigmoid(np.array([np.sum(self.weights[places] * values) + self.bias]))[0])

    def save(self, path: Path) -> None:
        save_arrays(path, weights=self.weights, bias=np.array([self.bias]))

    @classmethod
    def load(cls, path: Path) -> Classifier:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["weights"], float(arrays["bias"][0]))


def _sigmoid(values: Floats) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * values))


def area_under_curve(good: Sequence[float], unjudged: Sequence[float]) -> float:
    """The share of pairs of one good and one other text that the scores put in the right order; ties count
    half."""
    scores = np.concatenate((np.asarray(good, np.float64), np.asarray(unjudged, np.float64)))
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(good), len(unjudged)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
