"""How preference pairs become batches: order, epochs, ranks, references, continuation, padding."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.posttrain.dpo import EncodedPair, PairSource, Preference, collate_pairs, pair_logprobs
from ikirere.tokens.batch import IGNORE, Batch

PAD = 99


def pair(number: int, chosen: int = 5, rejected: int = 4, start: int = 2) -> EncodedPair:
    """The pair's number is its first id."""
    ids = [np.array([number, *range(10, 9 + n)], np.int32) for n in (chosen, rejected)]
    return EncodedPair(ids[0], ids[1], start, str(number))


PAIRS = [pair(i) for i in range(7)]
REFERENCE = torch.arange(14, dtype=torch.float32).view(7, 2)


def source(
    batch_size: int = 3, seed: int = 5, rank: int = 0, world: int = 1, pairs: list[EncodedPair] = PAIRS
) -> PairSource:
    return PairSource(pairs, REFERENCE, 64, batch_size, PAD, seed, rank, world)


def numbers(batch: Batch) -> list[int]:
    """The pairs of a batch, by the first id of their rows."""
    assert batch.tokens[0::2, 0].tolist() == batch.tokens[1::2, 0].tolist()
    return batch.tokens[0::2, 0].tolist()


def sequence(found: PairSource, batches: int) -> list[int]:
    return [number for _ in range(batches) for number in numbers(found.next())]


def test_each_epoch_has_every_pair_once_in_an_order_of_its_own() -> None:
    """28 pairs in batches of 4 are four epochs of 7: three batches reach into two epochs."""
    taken = sequence(source(4), 7)
    epochs = [taken[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert all(a != b for a, b in pairwise([list(range(7)), *epochs]))
    assert taken == sequence(source(4), 7), "an order of the seed"
    assert taken == sequence(source(1), 28), "and not of the batch size"
    assert taken[:7] != sequence(source(4, seed=6), 7)[:7]


def test_the_order_is_the_one_that_continued_runs_depend_on() -> None:
    """A shuffle by (seed, epoch), from its first pair on."""
    expected = []
    for epoch in range(3):
        order = list(range(7))
        random.Random(f"dpo/5/{epoch}").shuffle(order)
        expected += order
    assert sequence(source(3), 7) == expected


def test_all_orders_of_three_pairs_come_about_equally_often() -> None:
    orders = [tuple(sequence(source(3, seed, pairs=PAIRS[:3]), 1)) for seed in range(600)]
    assert all(60 < orders.count(order) < 140 for order in set(orders)) and len(set(orders)) == 6


def test_the_reference_stays_with_its_pair() -> None:
    found = source(4)
    for _ in range(5):
        batch = found.next()
        expected = [value for number in numbers(batch) for value in REFERENCE[number].tolist()]
        assert batch.extras["reference"].tolist() == expected


@pytest.mark.parametrize("done", range(8))
def test_training_continues_with_the_very_next_pair(done: int) -> None:
    whole = sequence(source(), 8)
    first, second = source(), source()
    sequence(first, done)
    second.load_state_dict(first.state_dict())
    assert sequence(second, 8 - done) == whole[3 * done :]


def test_a_state_counts_epochs_and_pairs_within_them() -> None:
    found = source()
    states = []
    for _ in range(5):
        found.next()
        states.append(found.state_dict())
    assert states == [
        {"epoch": e, "position": p, "pairs": found.fingerprint}
        for e, p in ((0, 3), (0, 6), (1, 2), (1, 5), (2, 1))
    ]


def test_a_state_of_other_pairs_is_refused_and_one_of_another_batch_size_is_not() -> None:
    whole, first = sequence(source(1), 9), source(3)
    taken = sequence(first, 1)
    wider = source(2)
    wider.load_state_dict(first.state_dict())
    assert taken + sequence(wider, 3) == whole
    for other in (source(seed=6), source(pairs=PAIRS[:6]), source(pairs=[*PAIRS[:6], pair(6, chosen=6)])):
        with pytest.raises(UserError, match="trained on other pairs"):
            other.load_state_dict(first.state_dict())


def test_ranks_share_the_batch_in_order() -> None:
    whole, parts = source(6), [source(6, rank=rank, world=3) for rank in range(3)]
    for _ in range(4):
        assert [number for part in parts for number in numbers(part.next())] == numbers(whole.next())
    with pytest.raises(UserError, match=r"dpo\.batch_size: 6 is not divisible by the 4 ranks"):
        source(6, world=4)


@pytest.mark.parametrize(
    ("longest", "limit", "width"),
    [(3, 64, 16), (17, 64, 16), (18, 64, 32), (60, 64, 64), (60, 59, 59), (49, 64, 48)],
)
def test_batches_are_as_wide_as_the_longest_pair_needs_in_steps_of_16(
    longest: int, limit: int, width: int
) -> None:
    for pairs in ([pair(0, longest, 2), pair(1)], [pair(0), pair(1, 2, longest)]):
        assert pairs[0].length == max(len(pairs[0].chosen), len(pairs[0].rejected)) - 1
        found = PairSource(pairs[: 2 if longest > 5 else 1], REFERENCE, limit, 2, PAD, 0)
        assert found.next().tokens.shape == (4, width)


def test_whatever_changes_the_order_of_pairs_changes_the_fingerprint() -> None:
    others = [
        source(seed=6), source(pairs=PAIRS[:6]), source(pairs=[*PAIRS[:6], pair(6, chosen=6)]),
        source(pairs=[*PAIRS[:6], pair(6, rejected=6)]), source(pairs=[*PAIRS[:6], pair(6, start=3)]),
        source(pairs=PAIRS[::-1]), PairSource(PAIRS, REFERENCE, 64, 3, 98, 5),
    ]  # fmt: skip
    assert source().fingerprint == source(2).fingerprint
    assert len({s.fingerprint for s in (source(), *others)}) == 1 + len(others)


def test_rows_are_inputs_and_labels_of_the_answers_padded_at_the_end() -> None:
    batch = collate_pairs([pair(1, 5, 3), pair(2, 2, 6, start=1)], 7, PAD)
    assert batch.tokens.tolist() == [
        [1, 10, 11, 12, PAD, PAD, PAD], [1, 10, PAD, PAD, PAD, PAD, PAD],
        [2, PAD, PAD, PAD, PAD, PAD, PAD], [2, 10, 11, 12, 13, PAD, PAD],
    ]  # fmt: skip
    i = IGNORE
    assert batch.labels.tolist() == [
        [i, 11, 12, 13, i, i, i], [i, 11, i, i, i, i, i], [10, i, i, i, i, i, i], [10, 11, 12, 13, 14, i, i],
    ]  # fmt: skip
    assert batch.positions is not None and batch.positions.tolist() == [list(range(7))] * 4
    assert batch.document_ids is None


def decoder() -> Decoder:
    model = Decoder(ModelConfig(100, 16, 1, 2, 1, 32, 64))
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model


def test_logprobs_of_pairs_stay_in_the_order_of_the_pairs() -> None:
    pairs = [pair(i, 3 + 5 * i % 11, 4 + 3 * i % 7) for i in range(11)]
    model, held = decoder(), []
    for training in (True, False):
        model.train(training)
        found = pair_logprobs(model, pairs, PAD, 4, held.append)
        assert model.training is training and not found.requires_grad
    assert held == [4, 4, 3] * 2
    for line, one in zip(found, pairs, strict=True):
        for value, ids in zip(line, (one.chosen, one.rejected), strict=True):
            logits = model(torch.from_numpy(ids[None, :-1]).long())[0].log_softmax(-1)
            answer = torch.from_numpy(ids[one.start :]).long()
            expected = logits[one.start - 1 :].gather(1, answer[:, None]).sum()
            assert float(value) == pytest.approx(float(expected.detach()), abs=1e-4)


def test_pairs_of_like_length_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [pair(i, 4 + (7 * i) % 12) for i in range(12)]
    widths = []
    real = collate_pairs

    def noting(some: list[EncodedPair], length: int, pad: int) -> Batch:
        widths.append((length, {p.length for p in some}))
        return real(some, length, pad)

    monkeypatch.setattr("ikirere.posttrain.dpo.collate_pairs", noting)
    pair_logprobs(decoder(), pairs, PAD)
    assert [max(lengths) for _, lengths in widths] == [length for length, _ in widths]
    assert len(widths) == 2 and max(widths[0][1]) <= min(widths[1][1]), "eight pairs, then the longer ones"


class Fixed:
    """A model whose label probabilities are given: `sequence_logprobs` of row r is values[r]."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


def test_reported_rewards_margins_and_accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pairs, of which the second is ranked wrongly and the third is a tie."""
    values = torch.tensor([-3.0, -9.0, -8.0, -4.0, -5.0, -5.0], requires_grad=True)
    reference = torch.tensor([-4.0, -8.0, -6.0, -6.0, -5.0, -5.0])
    monkeypatch.setattr("ikirere.posttrain.dpo.sequence_logprobs", lambda model, batch: model.values)
    labels = torch.full((6, 4), IGNORE)
    for row, n in enumerate((1, 3, 2, 4, 4, 1)):
        labels[row, :n] = 7
    batch = Batch(torch.zeros(6, 4, dtype=torch.long), labels, None)
    batch.extras["reference"] = reference
    objective = Preference(0.5)
    total, metrics = objective(Fixed(values), batch)
    rewards = [(0.5, -0.5), (-1.0, 1.0), (0.0, 0.0)]
    wanted = [np.log1p(np.exp(b - a)) for a, b in rewards]
    assert float(total.detach()) == pytest.approx(np.mean(wanted), rel=1e-6)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "rewards/chosen": -0.5 / 3, "rewards/rejected": 0.5 / 3, "rewards/margins": -1 / 3,
            "rewards/accuracies": 1 / 3,
        },
        abs=1e-6,
    )  # fmt: skip
    assert objective.weight(batch) == 3 and objective.rows == 2 and objective.sft_weight == 0
    added, more = Preference(0.5, sft_weight=0.2)(Fixed(values), batch)
    nll = (3.0 / 1 + 8.0 / 2 + 5.0 / 4) / 3
    assert float(more["nll_chosen"]) == pytest.approx(nll) and not more["nll_chosen"].requires_grad
    assert float((added - total).detach()) == pytest.approx(0.2 * nll, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_log_probabilities_are_taken_in_evaluation_mode_and_the_mode_is_put_back(
    monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    model = decoder()
    seen: list[bool] = []
    real = model.hidden

    def noting(*args: Any, **named: Any) -> Any:
        seen.append(model.training)
        return real(*args, **named)

    monkeypatch.setattr(model, "hidden", noting)
    model.train(training)
    pair_logprobs(model, [pair(i) for i in range(3)], PAD)
    assert seen and not any(seen)
    assert model.training is training
