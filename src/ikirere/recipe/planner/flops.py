"""Floating point operations: 6 per matrix weight and token, and attention on top.

A multiply-add is two operations; the backward pass costs twice the forward one. Causal attention reads
half of the square, a window only its band. Packing documents in one row makes attention cheaper still,
so the figures are upper bounds there.
"""

from __future__ import annotations

from dataclasses import dataclass

from ikirere.recipe.mixers import Hybrid, Kda, Mamba2, Mla, Recursive, Retention, Window, layers
from ikirere.recipe.planner.counts import count, mixer_parameters
from ikirere.recipe.schema import Model, Recipe

FORWARD, BACKWARD = 1, 2


def mean_context(length: int, window: int | None = None) -> float:
    """Mean number of tokens that a token sees in causal attention over `length` tokens."""
    if window is None or window >= length:
        return (length + 1) / 2
    return window - window * (window - 1) / (2 * length)


def mean_blocks(length: int, chunk: int, stride: int, most: int | None = None) -> float:
    """Mean number of blocks of `stride` tokens before a token's window of `chunk`, each token's cut at `most`."""
    beyond = max(
        0, length - chunk + 1
    )  # tokens whose windows begin later than the sequence, the first one's too
    whole, rest = divmod(beyond, stride)
    if most is not None and whole > most:
        return (stride * most * (most - 1) / 2 + most * (beyond - stride * most)) / length
    return (stride * whole * (whole - 1) / 2 + whole * rest) / length


def mixer_forward(m: Model, name: str, length: int) -> float:
    """Operations per token of the mixing itself (projections are matrix weights and counted there)."""
    if name == "kda":
        k = m.mixer("kda")
        assert isinstance(k, Kda)
        heads = k.num_heads or m.num_attention_heads
        # Decay, read (S^T k), write (outer product) and output (S^T q) touch dk * dv state entries each.
        return 7.0 * heads * k.head_dim * k.head_dim
    # Decay, write and output of states that have one decay per head and correct nothing.
    if name == "mamba2":
        state = m.mixer("mamba2")
        assert isinstance(state, Mamba2)
        inner = state.sizes(m.hidden_size)
        return 5.0 * inner.width * inner.state
    if name == "retention":
        kept = m.mixer("retention")
        assert isinstance(kept, Retention)
        r = kept.sizes(m.num_attention_heads, m.head_size)
        return 5.0 * r.heads * r.key * r.value
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
        summaries = mean_blocks(length, h.window, h.block_size)
        chosen = mean_blocks(length, h.window, h.block_size, h.top_k)
        # The window reaches back to a block's beginning. Summaries are read, and asked once per group of heads.
        seen += summaries + h.block_size * (chosen - summaries)
        asked = 2.0 * m.num_key_value_heads * m.head_size * summaries
        return 4.0 * m.num_attention_heads * m.head_size * seen + asked
    return 4.0 * m.num_attention_heads * m.head_size * seen  # scores, and the weighted sum of values


def forward_per_token(m: Model, length: int, pattern: str | None = None) -> float:
    """Operations of one forward pass per token, at sequences of `length` tokens."""
    names = layers(pattern, m.num_hidden_layers) if pattern else m.layers
    if m.family == "recursive":
        r = m.mixer("recursive")
        assert isinstance(r, Recursive)
        return _core_forward(m, length, names, r) * r.cycles * (r.inner_updates + 1) * r.supervision_steps
    mixing = sum(mixer_forward(m, name, length) for name in names)
    return 2.0 * count(m).matmul + mixing


def _core_forward(m: Model, length: int, names: tuple[str, ...], r: Recursive) -> float:
    """Operations per token of one call of a recursive core, which sees both ways: attention reads the whole square, and
    KDA runs twice. The head runs once per supervision step and counts in every call, which is a bound."""
    once = 2.0 * count(m).matmul
    for name in names:
        matrices, _ = mixer_parameters(m, name)
        if name == "kda":
            again = mixer_forward(m, name, length)
            once += 2 * again + 2.0 * matrices if r.bidirectional else again
        elif name == "mlp":  # a position's share of products over positions, made for every channel
            positions = m.max_position_embeddings + r.puzzle_tokens
            once += 2.0 * matrices * (m.hidden_size / positions - 1)
        else:
            once += 4.0 * m.num_attention_heads * m.head_size * length
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
