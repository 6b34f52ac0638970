"""Softmax attention: over all tokens, over a window, and the hybrid of a window with selected blocks.

Kept activations were counted exactly with torch.autograd.graph.saved_tensors_hooks over 24 shapes.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field

from ikirere.recipe.mixers.base import STATE_BYTES, MixerSection
from ikirere.recipe.mixers.family import family_of
from ikirere.recipe.section import Positive
from ikirere.recipe.shape import ModelShape, SmallShape

QUERY_COPIES = 2  # rotated query, output
KEY_VALUE_COPIES = 2  # rotated key, value
PER_HEAD = 1  # log-sum-exp
QK_NORM_COPIES = 1  # a further copy of query and key where they are normed, and one root per head
MASK_PER_PAIR = 1  # packed rows need a mask, kept as fp32 per layer: one element per token and token seen
# Hybrid, per key-value head: logit and weight in the block's summary; per token: where its window begins and which
# blocks lie before it.
HYBRID_PER_KEY_HEAD = 2
HYBRID_PER_TOKEN = 3


def widths(model: ModelShape) -> tuple[int, int]:
    """(width of all query heads, width of all key-value heads)."""
    return model.num_attention_heads * model.head_size, model.num_key_value_heads * model.head_size


def mean_context(length: int, window: int | None = None) -> float:
    """Mean number of tokens that a token sees in causal attention over `length` tokens."""
    if window is None or window >= length:
        return (length + 1) / 2
    return window - window * (window - 1) / (2 * length)


def mean_blocks(length: int, window: int, block: int, most: int | None = None) -> float:
    """Mean number of whole blocks before a token's window, for each token at most `most`."""
    beyond = max(0, length - window + 1)  # tokens whose window begins after the first token, and one
    whole, rest = divmod(beyond, block)
    if most is not None and whole > most:
        return (block * most * (most - 1) / 2 + most * (beyond - block * most)) / length
    return (block * whole * (whole - 1) / 2 + whole * rest) / length


class AttentionSection(MixerSection):
    """Grouped-query attention with projections of queries, keys, values and output."""

    def parameters(self, model: ModelShape) -> tuple[int, int]:
        q, kv = widths(model)
        per_head = model.num_attention_heads + model.num_key_value_heads
        normed = per_head if model.qk_norm_width == "full" else 2
        return 2 * model.hidden_size * (q + kv), normed * model.head_size * model.qk_norm

    def flops_over(self, model: ModelShape, seen: float) -> float:
        """Operations of a token that sees `seen` tokens: projections, scores, and the weighted sum of values."""
        return self.product_flops(model) + 4.0 * widths(model)[0] * seen

    def activation_elements(self, model: ModelShape, length: int, packed: bool) -> tuple[float, float]:
        q, kv = widths(model)
        single = float(PER_HEAD * model.num_attention_heads)
        if model.qk_norm:
            single += QK_NORM_COPIES * (q + kv) + model.num_attention_heads + model.num_key_value_heads
        if packed:
            single += MASK_PER_PAIR * length
        return single, QUERY_COPIES * q + KEY_VALUE_COPIES * kv

    def state_bytes(self, model: ModelShape, context: int, bits: int) -> float:
        return 2 * widths(model)[1] * bits / 8 * context


class Full(AttentionSection):
    """Causal attention over all tokens of the document; over the whole row in a recursive core."""

    families: ClassVar[tuple[str, ...]] = ("decoder", "recursive")

    rope: bool = Field(default=True, description="false: no positions (NoPE), as beside KDA layers")
    rope_theta: float | None = Field(
        default=None, gt=0, description="base of this kind of layer; default: the model's"
    )
    rope_scaling: Literal["none", "yarn", "ntk"] = "none"
    original_max_position_embeddings: Positive | None = Field(
        default=None, description="context before rope_scaling"
    )
    learned_sinks: bool = Field(
        default=False, description="one more logit per head, without a value (gpt-oss)"
    )

    def parameters(self, model: ModelShape) -> tuple[int, int]:
        matrices, vectors = super().parameters(model)
        return matrices, vectors + model.num_attention_heads * self.learned_sinks

    def forward_flops(self, model: ModelShape, length: int) -> float:
        seen = length if family_of(model).whole_row else mean_context(length)
        return self.flops_over(model, seen)

    def shrunk(self, model: ModelShape, small: SmallShape) -> Self:
        return self.model_copy(update=small.lengths(self, "original_max_position_embeddings"))


class Window(Full):
    """Causal attention over the last `window` tokens."""

    families: ClassVar[tuple[str, ...]] = ("decoder",)

    window: Positive = 8192
    sinks: int = Field(default=0, ge=0, description="first tokens that always stay visible")
    sink_positions: Literal["kept", "renumbered"] = Field(
        default="kept",
        description="renumbered: a sink is never farther away than its position in the cache, so rows may grow "
        "past max_position_embeddings (StreamingLLM)",
    )

    def forward_flops(self, model: ModelShape, length: int) -> float:
        seen = mean_context(length, self.window) + min(self.sinks, length)
        return self.flops_over(model, seen)

    def state_bytes(self, model: ModelShape, context: int, bits: int) -> float:
        return super().state_bytes(model, min(context, self.window + self.sinks), bits)

    def shrunk(self, model: ModelShape, small: SmallShape) -> Self:
        lengths = small.lengths(self, "window", "original_max_position_embeddings")
        return self.model_copy(update=lengths)


class Hybrid(AttentionSection):
    """Local window, one learned summary per block, exact attention to the blocks the summaries select."""

    window: Positive = Field(default=8192, description="tokens of the local window")
    block_size: Positive = Field(default=1024, description="tokens per block and summary")
    top_k: Positive = Field(default=8, description="blocks attended exactly")
    selection_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the loss that teaches summaries which blocks exact attention would read",
    )
    rope: bool = Field(default=True, description="false: no positions (NoPE), as beside window layers")
    rope_scaling: Literal["none", "yarn", "ntk"] = "yarn"
    original_max_position_embeddings: Positive | None = Field(
        default=None, description="context before rope_scaling"
    )

    def parameters(self, model: ModelShape) -> tuple[int, int]:
        matrices, vectors = super().parameters(model)
        return matrices, vectors + widths(model)[
            1
        ]  # a query per key-value head pools a block into its summary

    def forward_flops(self, model: ModelShape, length: int) -> float:
        """The window reaches back to a block's beginning. Summaries are read, and scored once per key-value head."""
        kv = widths(model)[1]
        summaries = mean_blocks(length, self.window, self.block_size)
        chosen = mean_blocks(length, self.window, self.block_size, self.top_k)
        seen = mean_context(length) + summaries + self.block_size * (chosen - summaries)
        return self.flops_over(model, seen) + 2.0 * kv * summaries

    def activation_elements(self, model: ModelShape, length: int, packed: bool) -> tuple[float, float]:
        single, working = super().activation_elements(
            model, length, packed=False
        )  # documents are numbers here
        kv, heads = widths(model)[1], model.num_key_value_heads
        single += HYBRID_PER_KEY_HEAD * heads + HYBRID_PER_TOKEN
        single += heads * mean_blocks(length, self.window, self.block_size, self.top_k)
        return single, working + kv + 2 * kv / self.block_size  # keys before rotation; summaries

    def state_bytes(self, model: ModelShape, context: int, bits: int) -> float:
        """Keys, values, summaries, and the logits of one block."""
        held = context + -(-context // self.block_size)
        logits = model.num_key_value_heads * min(self.block_size, context) * STATE_BYTES
        return super().state_bytes(model, held, bits) + logits

    def read_bytes(self, model: ModelShape, context: int, bits: int) -> float:
        """Bytes of the keys and values of the window, of the summaries and of the chosen blocks."""
        unread = max(0, context - self.window - self.top_k * self.block_size)
        return self.state_bytes(model, context, bits) - super().state_bytes(model, unread, bits)

    def shrunk(self, model: ModelShape, small: SmallShape) -> Self:
        lengths = small.lengths(self, "window", "block_size", "original_max_position_embeddings")
        return self.model_copy(update=lengths)
