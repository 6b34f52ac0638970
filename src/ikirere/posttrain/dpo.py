"""Preference optimisation against a frozen reference: DPO (sigmoid) and IPO.

Sources: Rafailov et al. 2023, "Direct Preference Optimization", equation 7; Azar et al. 2023, "A General
Theoretical Paradigm to Understand Learning from Human Preferences", equation 17. The reference's
log-probabilities are computed once, before training, and travel with the pairs: no second model is held.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.decoder import Decoder
from ikirere.posttrain.checks import check_batch
from ikirere.tokens.batch import IGNORE, Batch
from ikirere.train.objective import sequence_logprobs

Loss = Literal["sigmoid", "ipo"]


@dataclass(frozen=True)
class EncodedPair:
    """Two conversations with one prompt. ids int32 [n]; `start` is the position of the answer's first id."""

    chosen: np.ndarray
    rejected: np.ndarray
    start: int
    name: str

    @property
    def length(self) -> int:
        """Positions of the longer of the two: each id but the last predicts the next."""
        return max(len(self.chosen), len(self.rejected)) - 1


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    loss: Loss,
    chosen_length: Tensor | None = None,
    rejected_length: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and implicit rewards of pairs: (loss, reward of chosen, reward of rejected), each [pairs].

    The first four are summed log-probabilities of the answers, [pairs]. The reward is beta times the log-ratio
    of policy and reference. sigmoid: -log sigmoid(difference of rewards). ipo: (h - 1/(2 beta))^2 with h the
    difference of log-ratios; each log-ratio is first divided by its answer's length in tokens where lengths are
    given, as the method's authors advise and TRL does (then beta is per token).
    """
    ratio_chosen, ratio_rejected = chosen - reference_chosen, rejected - reference_rejected
    if loss == "sigmoid":
        losses = -F.logsigmoid(beta * (ratio_chosen - ratio_rejected))
    else:
        a = ratio_chosen if chosen_length is None else ratio_chosen / chosen_length
        b = ratio_rejected if rejected_length is None else ratio_rejected / rejected_length
        losses = (a - b - 1 / (2 * beta)) ** 2
    return losses, beta * ratio_chosen.detach(), beta * ratio_rejected.detach()


class Preference:
    """The objective on batches of pairs: row 2i is the chosen, row 2i + 1 the rejected answer of pair i.

    `batch.extras["reference"]`, fp32 [rows], holds the reference's summed log-probabilities. `sft_weight` adds
    that many times the chosen answers' mean negative log-likelihood per token. The loss is a mean over pairs.
    """

    rows = 2

    def __init__(self, beta: float, loss: Loss = "sigmoid", sft_weight: float = 0.0) -> None:
        self.beta, self.loss, self.sft_weight = beta, loss, sft_weight

    def weight(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch.tokens) // 2

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        values = sequence_logprobs(model, batch)
        reference = batch.extras["reference"]
        lengths = (batch.labels != IGNORE).sum(1)
        losses, good, bad = preference_loss(
            values[0::2],
            values[1::2],
            reference[0::2],
            reference[1::2],
            self.beta,
            self.loss,
            lengths[0::2],
            lengths[1::2],
        )
        total = losses.mean()
        metrics = {
            "rewards/chosen": good.mean(),
            "rewards/rejected": bad.mean(),
            "rewards/margins": (good - bad).mean(),
            "rewards/accuracies": (good > bad).float().mean(),
        }
        if self.sft_weight:
            nll = -(values[0::2] / lengths[0::2]).mean()
            total = total + self.sft_weight * nll
            metrics["nll_chosen"] = nll.detach()
        return total, metrics


def collate_pairs(pairs: Sequence[EncodedPair], length: int, pad: int) -> Batch:
    """Rows chosen, rejected, chosen, ... of `length` positions, padded at the end; loss on the answers only.

    Padding comes after everything that is read, so causal attention alone keeps it out and there are no
    `document_ids`.
    """
    shape = (2 * len(pairs), length)
    tokens = np.full(shape, pad, np.int64)
    labels = np.full(shape, IGNORE, np.int64)
    for line, ids in enumerate(ids for pair in pairs for ids in (pair.chosen, pair.rejected)):
        start = pairs[line // 2].start
        tokens[line, : len(ids) - 1] = ids[:-1]
        labels[line, start - 1 : len(ids) - 1] = ids[start:]
    positions = torch.arange(length).expand(shape).contiguous()
    return Batch(torch.from_numpy(tokens), torch.from_numpy(labels), positions)


@torch.no_grad()
def pair_logprobs(
    model: Decoder,
    pairs: Sequence[EncodedPair],
    pad: int,
    batch_pairs: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Summed log-probabilities of both answers of each pair, fp32 [pairs, 2] on the CPU.

    Pairs of similar length share a batch; the values do not depend on the other pairs in it. on_batch: called
    with the number of pairs of each batch.
    """
    training = model.training
    model.eval()
    values = torch.empty(len(pairs), 2)
    order = sorted(range(len(pairs)), key=lambda i: pairs[i].length)
    for first in range(0, len(order), batch_pairs):
        some = order[first : first + batch_pairs]
        batch = collate_pairs([pairs[i] for i in some], max(pairs[i].length for i in some), pad)
        values[some] = sequence_logprobs(model, batch.to(model.device)).view(-1, 2).float().cpu()
        if on_batch is not None:
            on_batch(len(some))
    model.train(training)
    return values


class PairSource:
    """Batches of pairs with the reference's log-probabilities, without end.

    Every pair comes once per epoch, in an order of (seed, epoch); a batch that an epoch does not fill takes the
    first pairs of the next. All batches have one shape, [2 batch_size / world, length of the longest pair]. The
    state is exact, and holds the hash of the pairs: one of other pairs or another seed is refused.

    reference: fp32 [pairs, 2], of `pair_logprobs`. sequence_length: no pair is longer. batch_size in pairs over
    all ranks. Raises UserError for a batch that does not divide among the ranks.
    """

    def __init__(
        self,
        pairs: Sequence[EncodedPair],
        reference: Tensor,
        sequence_length: int,
        batch_size: int,
        pad: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_batch("dpo", batch_size, world)
        self.share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.pairs, self.reference = pairs, reference
        self.batch_size, self.pad, self.seed = batch_size, pad, seed
        self.length = min(-(-max(pair.length for pair in pairs) // 16) * 16, sequence_length)
        self.epoch = self.position = 0
        self._order = self._shuffled(0)
        digest = hashlib.sha256(f"{pad} {seed}".encode())
        for pair in pairs:
            digest.update(f"{pair.start} {len(pair.chosen)} ".encode())
            digest.update(pair.chosen.tobytes() + pair.rejected.tobytes())
        self.fingerprint = digest.hexdigest()

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self.pairs)))
        random.Random(f"dpo/{self.seed}/{epoch}").shuffle(order)
        return order

    def _index(self) -> int:
        if self.position >= len(self._order):
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._shuffled(self.epoch)
        self.position += 1
        return self._order[self.position - 1]

    def next(self) -> Batch:
        """This rank's pairs of the next batch, with extras["reference"]."""
        some = [self._index() for _ in range(self.batch_size)][self.share]
        batch = collate_pairs([self.pairs[i] for i in some], self.length, self.pad)
        batch.extras["reference"] = self.reference[some].reshape(-1)
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "pairs": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["pairs"] != self.fingerprint:
            raise UserError(
                "dpo: the checkpoint was trained on other pairs (dpo.pairs, on_policy, pairs_files, sequence_length or "
                "seed changed); it cannot be continued with these"
            )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._order = self._shuffled(self.epoch)
