"""A trigram model of words with interpolated modified Kneser-Ney smoothing, trained in seconds, held in
arrays.

Chen and Goodman 1998 (TR-10-98), with three discounts per order and an interpolated uniform distribution
below the unigrams, as in Heafield et al. 2013. A document is one stream of words; there are no marks for its
beginning and end, so its first two words are only ever context.

Words that training saw once or never share the probability of `<unk>` evenly, among as many words as training
left unknown. Without that a text in another language, all of it unknown, would be the least surprising of
all.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ikirere.common.arrays import save_arrays

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

UNKNOWN = "<unk>"  # id 0: words that training saw fewer than `min_count` times
BITS = 21  # of a word's id: three fit into an int64, so an n-gram's number is exact
MASK = (1 << BITS) - 1
_TOKEN = re.compile(r"\w+|[^\w\s]")


def tokens(text: str) -> list[str]:
    """Words (runs of letters, digits and underscores) in lower case, and every other sign by itself."""
    return _TOKEN.findall(text.lower())


def discounts(counts: Ints) -> Floats:
    """What is taken off counts of 1, 2 and 3 or more: float64 [4], the first 0 (Chen and Goodman, equation
    26).

    counts: of the distinct n-grams of one order. Where a sample is too small to estimate them: 0.5, 1 and
    1.5.
    """
    seen = [int((counts == k).sum()) for k in range(1, 5)]
    if not all(seen):
        return np.array([0.0, 0.5, 1.0, 1.5])
    y = seen[0] / (seen[0] + 2 * seen[1])
    found = [k - (k + 1) * y * seen[k] / seen[k - 1] for k in (1, 2, 3)]
    return np.array([0.0, *(min(max(d, 0.0), float(k)) for k, d in enumerate(found, 1))])


def _discounted(counts: Ints) -> tuple[Floats, Floats]:
    """(counts less their discount, the discount of each)."""
    taken = discounts(counts)[np.minimum(counts, 3)]
    return counts - taken, taken


def _find(keys: Ints, wanted: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """(position of each wanted number in the sorted keys, whether it is there)."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    positions = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return positions, keys[positions] == wanted


@dataclass
class NgramModel:
    """Natural logarithms of probabilities, float64; n-grams as sorted int64 numbers of 21 bits per word.

    trigrams, trigram_logs [T]: p(c | a b) of the trigrams seen. contexts, context_logs [C]: the weight of the
    lower order after a b. bigrams, bigram_logs [B]: p(c | b). word_weights [V]: the weight of the unigrams
    after b. word_logs [V]: p(c). Of V words the first is `<unk>`, which stands for exp(unknown_log) words.
    """

    words: list[str]
    trigrams: Ints
    trigram_logs: Floats
    contexts: Ints
    context_logs: Floats
    bigrams: Ints
    bigram_logs: Floats
    word_weights: Floats
    word_logs: Floats
    unknown_log: float

    def __post_init__(self) -> None:
        self.ids = {word: number for number, word in enumerate(self.words)}

    @classmethod
    def train(
        cls, texts: Iterable[Sequence[str]], min_count: int = 2, most_words: int = 1 << 18
    ) -> NgramModel:
        """texts: documents as tokens. Words seen fewer than `min_count` times count as `<unk>`; of the others
        the `most_words` most frequent are known. Raises ValueError where no document has three tokens."""
        texts = list(texts)
        seen = Counter(token for text in texts for token in text)
        known = sorted(
            (word for word, n in seen.items() if n >= min_count), key=lambda word: (-seen[word], word)
        )
        words = [UNKNOWN, *known[: min(most_words, MASK) - 1]]
        ids = {word: number for number, word in enumerate(words)}
        streams = [_ids(text, ids) for text in texts if len(text) >= 3]
        if not streams:
            raise ValueError("no document has three words")
        every = np.concatenate([(s[:-2] << 2 * BITS) | (s[1:-1] << BITS) | s[2:] for s in streams])
        trigrams, counts = np.unique(every, return_counts=True)
        # Lower orders count the different words that stand before, not how often.
        bigrams, before = np.unique(trigrams & ((1 << 2 * BITS) - 1), return_counts=True)
        word_before = np.bincount(bigrams & MASK, minlength=len(words))

        less, taken = _discounted(word_before)
        total = word_before.sum()
        word = less / total + taken.sum() / total / len(words)

        less, taken = _discounted(before)
        context = bigrams >> BITS
        total_of = np.bincount(context, weights=before, minlength=len(words))
        has = total_of > 0
        weights = np.ones(len(words))
        weights[has] = np.bincount(context, weights=taken, minlength=len(words))[has] / total_of[has]
        bigram = less / total_of[context] + weights[context] * word[bigrams & MASK]

        less, taken = _discounted(counts)
        contexts, of_context = np.unique(trigrams >> BITS, return_inverse=True)
        total_of = np.bincount(of_context, weights=counts)
        context_weights = np.bincount(of_context, weights=taken) / total_of
        lower, there = _find(bigrams, trigrams & ((1 << 2 * BITS) - 1))
        assert there.all()
        trigram = less / total_of[of_context] + context_weights[of_context] * bigram[lower]
        with np.errstate(
            divide="ignore"
        ):  # a weight of zero: all discounts are zero, and nothing else is looked up
            logs = [np.log(values) for values in (trigram, context_weights, bigram, weights, word)]
        unknown = math.log(max(1, len(seen) + 1 - len(words)))
        return cls(words, trigrams, logs[0], contexts, logs[1], bigrams, logs[2], logs[3], logs[4], unknown)

    def logs(self, ids: Ints) -> Floats:
        """float64 [n - 2]: the logarithm of each word's probability after the two before it; of 0, that of
        any one unknown word. ids: int64 [n]."""
        if len(ids) < 3:
            return np.zeros(0)
        first, second, third = ids[:-2], ids[1:-1], ids[2:]
        position, seen = _find(self.trigrams, (first << 2 * BITS) | (second << BITS) | third)
        found = self.trigram_logs[position]
        rest = np.flatnonzero(~seen)
        second, third = second[rest], third[rest]
        position, seen = _find(self.bigrams, (second << BITS) | third)
        lower = np.where(seen, self.bigram_logs[position], self.word_weights[second] + self.word_logs[third])
        position, seen = _find(self.contexts, (first[rest] << BITS) | second)
        found[rest] = lower + np.where(seen, self.context_logs[position], 0.0)
        return found - self.unknown_log * (ids[2:] == 0)

    def encode(self, text: Sequence[str]) -> Ints:
        """Ids of tokens, int64 [n]."""
        return _ids(text, self.ids)

    def perplexity(self, text: str) -> float | None:
        """Perplexity of the text's words from the third on; None for a text with fewer than three."""
        logs = self.logs(self.encode(tokens(text)))
        return math.exp(min(-float(logs.mean()), 700.0)) if len(logs) else None

    def save(self, path: Path) -> None:
        words = np.frombuffer("\n".join(self.words).encode(), np.uint8)
        unknown = np.array([self.unknown_log])
        save_arrays(path, words=words, unknown=unknown, **{name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, path: Path) -> NgramModel:
        with np.load(path, allow_pickle=False) as arrays:
            words = arrays["words"].tobytes().decode().split("\n")
            held = {name: arrays[name] for name in _ARRAYS}
            return cls(words, **held, unknown_log=float(arrays["unknown"][0]))


_ARRAYS = (
    *("trigrams", "trigram_logs", "contexts", "context_logs"),
    *("bigrams", "bigram_logs", "word_weights", "word_logs"),
)


def _ids(text: Sequence[str], ids: dict[str, int]) -> Ints:
    return np.fromiter(map(ids.get, text, itertools.repeat(0)), np.int64, len(text))
