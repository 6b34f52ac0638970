"""The one sampler: logits of a batch to one token id per row.

Each row has its own settings and its own uniform number, and every operation is row by row, so that a
row's token does not depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class TokenLogprob(NamedTuple):
    """A token's natural log-probability under the unscaled distribution, and the most probable ids there."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass
class RowSettings:
    """How one row is sampled in this step.

    `uniform` is a number in [0, 1) from the request's own generator; it is not read when `temperature` is 0.
    `banned` ids have no probability; `bias` is added to the logits of its ids.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    uniform: float = 0.0
    banned: tuple[int, ...] = ()
    bias: Mapping[int, float] = field(default_factory=dict)


@lru_cache(maxsize=64)
def _ban(banned: tuple[int, ...], vocabulary: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What bans these ids when it is added to logits: [V]."""
    mask = torch.zeros(vocabulary, dtype=dtype, device=device)
    mask[list(banned)] = float("-inf")
    return mask


def constrain(logits: Tensor, rows: Sequence[RowSettings]) -> Tensor:
    """Apply each row's bans and biases to `logits` [B, V]; returns a new tensor where there are any."""
    kinds = [row.banned for row in rows]
    if any(kinds):
        masks = [_ban(kind, logits.shape[-1], logits.dtype, logits.device) for kind in kinds]
        logits = logits + (masks[0] if len(set(kinds)) == 1 else torch.stack(masks))
    biased = [(number, token) for number, row in enumerate(rows) for token in row.bias]
    if not biased:
        return logits
    index = torch.tensor(biased, device=logits.device)
    values = [value for row in rows for value in row.bias.values()]
    added = torch.tensor(values, device=logits.device, dtype=logits.dtype)
    return logits.index_put((index[:, 0], index[:, 1]), added, accumulate=True)


def sample(logits: Tensor, rows: Sequence[RowSettings]) -> list[int]:
    """One id per row of `logits` [B, V] (float32).

    Temperature 0 takes the most probable id. Otherwise the distribution is scaled by 1/temperature, cut to
    the `top_k` most probable ids (0: all), then to the smallest set whose probability reaches `top_p`
    (nucleus sampling, Holtzman et al. 2020), and the id is found by inverting the cumulative distribution
    at `uniform`.
    """
    logits = constrain(logits, rows)
    picked = logits.argmax(-1)
    drawn = [number for number, row in enumerate(rows) if row.temperature > 0.0]
    if drawn:
        chosen = picked.clone()
        index = torch.tensor(drawn, device=logits.device)
        chosen[index] = _draw(logits[index], [rows[number] for number in drawn])
        picked = chosen
    return picked.tolist()


def _draw(logits: Tensor, rows: Sequence[RowSettings]) -> Tensor:
    """Inverse-CDF draw for rows with a temperature above 0. float64, so that cuts are exact."""
    device = logits.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device).unsqueeze(1)

    temperature = column([row.temperature for row in rows])
    # Relative to the largest logit no temperature, however small, makes infinities of the others' difference.
    relative = logits.double() - logits.double().amax(-1, keepdim=True)
    ordered, ids = torch.sort(relative / temperature, dim=-1, descending=True, stable=True)
    vocabulary = logits.shape[-1]
    keep = column([float(row.top_k if 0 < row.top_k < vocabulary else vocabulary) for row in rows])
    rank = torch.arange(vocabulary, device=device).unsqueeze(0)
    probability = torch.softmax(ordered.masked_fill(rank >= keep, float("-inf")), dim=-1)
    before = probability.cumsum(-1) - probability
    probability = probability.masked_fill((before >= column([row.top_p for row in rows])) & (rank > 0), 0.0)
    cumulative = probability.cumsum(-1)
    target = column([row.uniform for row in rows]) * cumulative[:, -1:]
    position = torch.searchsorted(cumulative, target, right=True)
    possible = (probability > 0).sum(-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(position, possible)).squeeze(1)


def token_logprobs(
    logits: Tensor, ids: Sequence[int], top: Sequence[int | None]
) -> list[TokenLogprob | None]:
    """Log-probabilities of `ids` (one per row of `logits` [B, V]); `top[i]` alternatives, None: row not asked."""
    asked = [number for number, count in enumerate(top) if count is not None]
    result: list[TokenLogprob | None] = [None] * len(ids)
    if not asked:
        return result
    scores = torch.log_softmax(logits[asked].float(), dim=-1)
    widest = min(max(top[number] or 0 for number in asked), logits.shape[-1])
    values, alternatives = (
        torch.topk(scores, widest, dim=-1) if widest else (scores[:, :0], scores[:, :0].long())
    )
    own = scores.gather(1, torch.tensor([[ids[number]] for number in asked], device=scores.device))
    for row, number in enumerate(asked):
        count = top[number] or 0
        best = tuple(zip(alternatives[row, :count].tolist(), values[row, :count].tolist()))
        result[number] = TokenLogprob(ids[number], float(own[row, 0]), best)
    return result
