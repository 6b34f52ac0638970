"""Logistic regression on hashed words and pairs of words: how much a text reads like good text (scikit-learn).

The set-up is that of GPT-3's filter (Brown et al. 2020, appendix A): text that is taken as good against text
nobody has judged. So a low probability means "unlike the good text", not "bad", and a domain that is merely
different is low too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ikirere.common.arrays import save_arrays

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import HashingVectorizer

SIZE = 1 << 18  # hashed features; two with the same hash share a weight
CHARACTERS = 20_000  # of a text's beginning that are looked at
PASSES, DECAY = 10, 1e-5


@functools.cache
def _vectorizer() -> HashingVectorizer:
    from sklearn.feature_extraction.text import HashingVectorizer  # a second to import, in every worker

    return HashingVectorizer(
        token_pattern=r"\w+", ngram_range=(1, 2), n_features=SIZE, alternate_sign=False, norm=None
    )


def features(texts: Sequence[str]) -> csr_matrix:
    """float64 [n, SIZE], rows of Euclidean length 1 (0 for a text without words): log(1 + count) of each word and each
    pair of neighbouring words, in lower case."""
    from sklearn.preprocessing import normalize

    counts = _vectorizer().transform(text[:CHARACTERS] for text in texts)
    counts.data = np.log1p(counts.data)
    return normalize(counts, copy=False)


@dataclass
class Classifier:
    """weights: float64 [SIZE]."""

    weights: npt.NDArray[np.float64]
    bias: float

    @classmethod
    def train(cls, good: csr_matrix, unjudged: csr_matrix, seed: int) -> Classifier:
        """A classifier from the `features` of both sides, which weigh the same, whatever their numbers.

        Averaged stochastic gradient descent in an order drawn from the seed, on one thread: the same input gives the
        same weights. Raises ValueError where a side is empty."""
        from scipy.sparse import vstack
        from sklearn.linear_model import SGDClassifier

        sides = [good.shape[0], unjudged.shape[0]]
        if not all(sides):
            raise ValueError("both sides need texts")
        model = SGDClassifier(
            loss="log_loss",
            class_weight="balanced",
            alpha=DECAY,
            max_iter=PASSES,
            tol=None,
            average=True,
            random_state=np.random.RandomState(seed % 2**32),
        ).fit(vstack((good, unjudged)), np.repeat([True, False], sides))
        return cls(model.coef_[0], float(model.intercept_[0]))

    def probabilities(self, of: csr_matrix) -> npt.NDArray[np.float64]:
        """float64 [n]: that each text is of the good side, where both are equally likely."""
        from scipy.special import expit

        return expit(of @ self.weights + self.bias)

    def save(self, path: Path) -> None:
        """Plain arrays, no pickle."""
        save_arrays(path, weights=self.weights, bias=np.array([self.bias]))

    @classmethod
    def load(cls, path: Path) -> Classifier:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["weights"], float(arrays["bias"][0]))
