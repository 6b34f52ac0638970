"""Floating point operations: 6 per matrix weight and token, and attention on top.

A multiply-add is two operations; the backward pass costs twice the forward one. Causal attention reads
half of the square, a window only its band. Packing documents in one row makes attention cheaper still,
so the figures are upper bounds there.
"""

from __future__ import annotations

from dataclasses import dataclass

from ikirere.recipe.mixers import Hybrid, Kda, Mla, Recursive, Window, layers
from ikirere.recipe.planner.counts import count
from ikirere.recipe.schema import Model, Recipe

FORWARD, BACKWARD = 1, 2


def mean_context(length: int, window: int | None = None) -> float:
    """Mean number of tokens that a token sees in causal attention over `length` tokens."""
    if window is None or window >= length:
        return (length + 1) / 2
    return window - window * (window - 1) / (2 * length)


def mixer_forward(m: Model, name: str, length: int) -> float:
    """Operations per token of the mixing itself (projections are matrix weights and counted there)."""
    if name == "kda":
        k = m.mixer("kda")
        assert isinstance(k, Kda)
        heads = k.num_heads or m.num_attention_heads
        # Decay, read (S^T k), write (outer product) and output (S^T q) touch dk * dv state entries each.
        return 7.0 * heads * k.head_dim * k.head_dim
    seen = mean_context(length)
    if name == "mla":
        latent = m.mixer("mla")
        assert isinstance(latent, Mla)
        s = latent.sizes(m.head_size)
        return 2.0 * m.num_attention_heads * (s.nope + s.shared + s.value) * seen
    if name == "window":
        w = m.mixer("window")
        assert isinstance(w, Window)
        seen = mean_context(length, w.window) + min(w.sinks, length)
    elif name == "hybrid":
        h = m.mixer("hybrid")
        assert isinstance(h, Hybrid)
        summaries = mean_context(length) / h.global_stride
        chosen = min(h.top_k * h.global_stride, max(0.0, mean_context(length) - h.local_chunk))
        seen = min(seen, mean_context(length, h.local_chunk) + summaries + chosen)
    return 4.0 * m.num_attention_heads * m.head_size * seen  # scores, and the weighted sum of values


def forward_per_token(m: Model, length: int, pattern: str | None = None) -> float:
    """Operations of one forward pass per token, at sequences of `length` tokens."""
    names = layers(pattern, m.num_hidden_layers) if pattern else m.layers
    mixing = sum(mixer_forward(m, name, length) for name in names)
    once = 2.0 * count(m).matmul + mixing
    if m.family == "recursive":
        r = m.mixer("recursive")
        assert isinstance(r, Recursive)
        return once * r.cycles * (r.inner_updates + 1) * r.supervision_steps
    return once


def training_per_token(m: Model, length: int, pattern: str | None = None) -> float:
    """Operations per token and optimiser step. A recursive model makes one supervision step per optimiser
    step: T-1 cycles forward only and one with gradient, n+1 calls each (arXiv 2510.04871)."""
    if m.family != "recursive":
        return (FORWARD + BACKWARD) * forward_per_token(m, length, pattern)
    r = m.mixer("recursive")
    assert isinstance(r, Recursive)
    once = forward_per_token(m, length, pattern) / (r.cycles * (r.inner_updates + 1) * r.supervision_steps)
    calls = (r.inner_updates + 1) * ((r.cycles - 1) * FORWARD + FORWARD + BACKWARD)
    return calls * once


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
