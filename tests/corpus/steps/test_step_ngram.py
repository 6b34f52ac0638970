"""The trigram model against a plain implementation of its definition, and the classifier beside it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.corpus.steps.classifier import CHARACTERS, SIZE, Classifier, features
from ikirere.corpus.steps.ngram_model import UNKNOWN, NgramModel, discounts, tokens

Text = list[str]


class Reference:
    """Interpolated modified Kneser-Ney of order 3, written as its formulas are, with dictionaries."""

    def __init__(self, texts: list[Text], min_count: int = 2) -> None:
        seen = Counter(word for text in texts for word in text)
        self.known = {word for word, n in seen.items() if n >= min_count}
        self.words = [UNKNOWN, *sorted(self.known)]
        self.unknown = max(1, len(seen) - len(self.known))
        mapped = [[self.of(word) for word in text] for text in texts]
        three = Counter(tuple(text[i : i + 3]) for text in mapped for i in range(len(text) - 2))
        two = Counter(gram[1:] for gram in three)
        one = Counter(gram[1:] for gram in two)
        self.orders: list[dict[tuple[str, ...], dict[str, int]]] = []
        self.discounts = []
        for counts in (one, two, three):
            after: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
            for gram, n in counts.items():
                after[gram[:-1]][gram[-1]] = n
            self.orders.append(after)
            self.discounts.append(self.of_order(counts))

    @staticmethod
    def of_order(counts: Counter[tuple[str, ...]]) -> list[float]:
        n = [sum(value == k for value in counts.values()) for k in range(5)]
        if not all(n[1:]):
            return [0, 0.5, 1.0, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        raw = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        return [0, *(min(max(d, 0), k) for k, d in enumerate(raw, 1))]

    def of(self, word: str) -> str:
        return word if word in self.known else UNKNOWN

    def probability(self, context: tuple[str, ...], word: str) -> float:
        """Of `<unk>`: of all unknown words together."""
        order = len(context)
        lower = self.probability(context[1:], word) if order else 1 / len(self.words)
        after = self.orders[order].get(context)
        if not after:
            return lower
        total = sum(after.values())
        taken = self.discounts[order]
        weight = sum(taken[min(n, 3)] for n in after.values()) / total
        n = after.get(word, 0)
        return max(n - taken[min(n, 3)], 0) / total + weight * lower

    def logs(self, text: Text) -> list[float]:
        words = [self.of(word) for word in text]
        found = []
        for i in range(2, len(words)):
            p = self.probability((words[i - 2], words[i - 1]), words[i])
            found.append(math.log(p / self.unknown if words[i] == UNKNOWN else p))
        return found


def made_up(seed: int, documents: int, length: int) -> list[Text]:
    """Text from a chain over fifty words with a long tail, so that counts of 1, 2, 3 and 4 all occur."""
    generator = np.random.default_rng(seed)
    chain = generator.dirichlet(np.full(50, 0.05), size=50)
    texts = []
    for _ in range(documents):
        word, text = 0, []
        for _ in range(length):
            word = int(generator.choice(50, p=chain[word]))
            text.append(f"w{word}" if generator.random() > 0.03 else f"rare{generator.integers(1_000)}")
        texts.append(text)
    return texts


def agree(texts: list[Text], others: list[Text]) -> None:
    model, reference = NgramModel.train(texts), Reference(texts)
    assert sorted(model.words) == sorted(reference.words)
    for text in [*texts, *others]:
        logs = model.logs(model.encode(text))
        assert logs.shape == (max(len(text) - 2, 0),)
        np.testing.assert_allclose(logs, reference.logs(text), rtol=0, atol=1e-9)


def test_probabilities_are_those_of_the_formulas() -> None:
    texts = made_up(0, 20, 120)
    model = NgramModel.train(texts)
    grams = Counter(tuple(text[i : i + 3]) for text in texts for i in range(118))
    assert {1, 2, 3, 4} <= set(grams.values())  # so that discounts are estimated
    assert len(model.words) > 40
    agree(texts, made_up(1, 5, 60))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from("abcdefg"), max_size=12), min_size=1, max_size=8),
    st.lists(st.lists(st.sampled_from("abcdxyz"), max_size=8), max_size=3),
)
def test_small_texts_of_any_shape_agree_too(texts: list[Text], others: list[Text]) -> None:
    if any(len(text) >= 3 for text in texts):
        agree(texts, others)
    else:
        with pytest.raises(ValueError, match="three words"):
            NgramModel.train(texts)


def test_probabilities_of_all_words_sum_to_one() -> None:
    texts = made_up(2, 20, 120)
    model = NgramModel.train(texts)
    generator = np.random.default_rng(0)
    contexts = {tuple(model.encode(text[i : i + 2])) for text in texts[:5] for i in range(118)}
    contexts |= {tuple(generator.integers(0, len(model.words), 2)) for _ in range(100)}
    assert any((a << 21 | b) not in set(model.contexts.tolist()) for a, b in contexts)  # unseen ones too
    every = np.arange(len(model.words))
    for first, second in contexts:
        triples = np.stack((np.full(len(every), first), np.full(len(every), second), every), axis=1)
        logs = model.logs(triples.ravel())[::3]  # those of the triples; what is between them is dropped
        shares = np.exp(logs) * np.where(every == 0, math.exp(model.unknown_log), 1)
        assert abs(shares.sum() - 1) < 1e-9


def test_discounts_are_chen_and_goodmans() -> None:
    counts = np.array([1] * 100 + [2] * 40 + [3] * 20 + [4] * 10 + [9] * 5)
    y = 100 / 180
    np.testing.assert_allclose(discounts(counts), [0, 1 - 0.8 * y, 2 - 1.5 * y, 3 - 2 * y])
    np.testing.assert_allclose(discounts(np.array([1, 2, 3])), [0, 0.5, 1, 1.5])


def test_a_model_is_saved_with_equal_bytes_and_opened_again(tmp_path: Path) -> None:
    texts = made_up(3, 10, 80)
    model = NgramModel.train(texts)
    model.save(tmp_path / "one.npz")
    NgramModel.train(list(reversed(texts))).save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    opened = NgramModel.load(tmp_path / "one.npz")
    text = " ".join(texts[0])
    assert opened.words == model.words
    assert opened.perplexity(text) == model.perplexity(text)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["one.npz", "two.npz"]


def test_perplexity_is_low_for_like_text_and_high_for_other_languages() -> None:
    line = "the old man walked to the market and bought bread , fish and a small basket of apples . "
    other = "the young woman walked to the river and sold apples , bread and a basket of fish . "
    model = NgramModel.train([tokens(line * 3 + other) for _ in range(5)])
    like = model.perplexity("the old woman walked to the market and sold fish , bread and apples .")
    shuffled = model.perplexity(
        ". and of basket the , apples fish to sold walked the woman old market bread and"
    )
    foreign = model.perplexity("der alte mann ging zum markt und kaufte brot , fisch und einen korb äpfel .")
    assert like is not None and shuffled is not None and foreign is not None
    assert like < shuffled
    assert like < foreign
    assert model.perplexity("two words") is None
    assert model.perplexity("") is None


def test_the_most_frequent_words_are_known() -> None:
    model = NgramModel.train([["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 2 + ["e"]], most_words=4)
    assert model.words == [UNKNOWN, "a", "b", "c"]
    assert model.unknown_log == pytest.approx(math.log(2))
    assert model.encode(["c", "d", "e", "z", "a"]).tolist() == [3, 0, 0, 0, 1]


def test_tokens_are_words_and_signs_in_lower_case() -> None:
    assert tokens("Don't stop_it, ΑΒΓ 3.5!") == ["don", "'", "t", "stop_it", ",", "αβγ", "3", ".", "5", "!"]


# --- the classifier


def test_features_are_counts_of_words_and_pairs() -> None:
    found = features(
        ["Apple apple PEAR", "apple, apple; pear", "...", "apple pear " + "x" * CHARACTERS + " apple"]
    )
    assert found.shape == (4, SIZE)
    raw = math.sqrt(math.log(3) ** 2 + 3 * math.log(2) ** 2)  # apple, pear, apple apple, apple pear
    wanted = sorted([math.log(3) / raw] + [math.log(2) / raw] * 3)
    np.testing.assert_allclose(sorted(found[0].data), wanted)
    assert (found[0] != found[1]).nnz == 0
    assert found[2].nnz == 0
    assert found[3].nnz == 5  # what comes after CHARACTERS is not read


def sides(n: int, seed: int) -> tuple[list[str], list[str]]:
    generator = np.random.default_rng(seed)
    good = ["theorem", "proof", "lemma", "field", "ring", "group", "map", "exact", "sequence", "kernel"]
    other = ["click", "here", "buy", "now", "cheap", "offer", "sale", "login", "account", "free"]
    shared = ["the", "of", "and", "to", "a", "in", "is", "we", "it", "for"]
    first, second = (
        [" ".join(generator.choice(side + shared, 40)) for _ in range(n)] for side in (good, other)
    )
    return first, second


def test_the_classifier_learns_and_repeats_itself(tmp_path: Path) -> None:
    good, other = map(features, sides(60, 0))
    made = Classifier.train(good, other, 7)
    again = Classifier.train(good, other, 7)
    assert (made.weights == again.weights).all() and made.bias == again.bias
    assert (Classifier.train(good, other, 8).weights != made.weights).any()

    new_good, new_other = (made.probabilities(features(side)) for side in sides(40, 1))
    assert min(new_good) > 0.5 > max(new_other)
    one = made.probabilities(features(sides(40, 1)[0][3:4]))
    assert one.tolist() == new_good[3:4].tolist()
    made.save(tmp_path / "c.npz")
    opened = Classifier.load(tmp_path / "c.npz")
    assert (opened.weights == made.weights).all() and opened.bias == made.bias


def test_both_sides_weigh_the_same() -> None:
    good, other = map(features, sides(200, 2))
    empty = features([""])
    few = Classifier.train(good[:20], other, 0).probabilities(empty)[0]
    many = Classifier.train(good, other[:20], 0).probabilities(empty)[0]
    assert 0.2 < few < 0.8 and 0.2 < many < 0.8
    with pytest.raises(ValueError, match="both sides"):
        Classifier.train(good, other[:0], 0)
