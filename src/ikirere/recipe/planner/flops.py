"""Floating point operations: two per matrix weight and token, and the mixing of tokens.

A multiply-add is two operations; the backward pass costs twice the forward one. Packing documents in one row makes
attention cheaper, so the figures are upper bounds there.
"""

from __future__ import annotations

from dataclasses import dataclass

from ikirere.recipe.mixers import family_of
from ikirere.recipe.schema import Model, Recipe

FORWARD, BACKWARD = 1, 2


def pass_per_token(m: Model, length: int, pattern: str | None = None) -> float:
    """Operations per token of one pass through the layers and the head, at sequences of `length` tokens. A family that
    makes several passes for one use of the head counts the head in each, which is an upper bound."""
    family = family_of(m)
    total = 2.0 * m.vocab_size * m.hidden_size
    for name, kind in zip(m.run_as(pattern or m.layer_pattern), m.ffn_kinds):
        mixer = m.mixer(name)
        directions = 2 if mixer.one_direction and family.both_directions else 1
        total += directions * mixer.forward_flops(m, length) + m.ffn(kind).forward_flops(m, length)
    return total


def forward_per_token(m: Model, length: int, pattern: str | None = None) -> float:
    """Operations of one answer per token: one pass, or all of a recursive model's."""
    return family_of(m).answer_passes * pass_per_token(m, length, pattern)


def training_per_token(m: Model, length: int, pattern: str | None = None) -> float:
    """Operations per token and optimiser step."""
    forward, backward = family_of(m).training_passes
    return (forward * FORWARD + backward * BACKWARD) * pass_per_token(m, length, pattern)


@dataclass(frozen=True)
class Work:
    """Tokens and operations of one training stage or phase."""

    name: str
    tokens: float
    flops: float


def phases(recipe: Recipe) -> list[Work]:
    """Pretraining, phase by phase."""
    result = []
    for p in recipe.pretrain.phases:
        tokens = p.steps * p.batch_size * p.sequence_length
        result.append(
            Work(p.name, tokens, tokens * training_per_token(recipe.model, p.sequence_length, p.attention))
        )
    return result


def stages(recipe: Recipe) -> list[Work]:
    """Every training stage that the recipe lists and gives a section."""
    pre = phases(recipe)
    result = []
    if "pretrain" in recipe.stages:
        result.append(Work("pretrain", sum(p.tokens for p in pre), sum(p.flops for p in pre)))
    if recipe.sft is not None and "sft" in recipe.stages:
        s = recipe.sft
        tokens = s.steps * s.batch_size * s.sequence_length
        result.append(Work("sft", tokens, tokens * training_per_token(recipe.model, s.sequence_length)))
    if recipe.dpo is not None and "dpo" in recipe.stages:
        d = recipe.dpo
        tokens = d.steps * d.batch_size * d.sequence_length * 2  # chosen and rejected
        asked = (d.pairs + d.heldout_pairs) * d.sequence_length * 2  # by the reference, once
        train = tokens * training_per_token(recipe.model, d.sequence_length)
        reference = asked * forward_per_token(recipe.model, d.sequence_length)
        result.append(Work("dpo", tokens, train + reference))
    return result
