"""Attention for long contexts: a local window, one learned summary per block, exact attention to chosen blocks.

A document is cut into blocks of `block_size` tokens. A token attends, under one softmax, to
- every token from the beginning of the block that holds the position window - 1 before it;
- one summary (a key and a value) of each earlier block;
- every token of the `top_k` of those blocks whose summary keys fit its queries best.

A learned vector per key-value head weighs a block's tokens in its summary by their keys before rotation. The keys are
averaged after rotation, which damps fast pairs and leaves slow ones. `summaries.py` and `split_attention.py` name the
sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.layers.attention import Attention, KVState, attend
from ikirere.model.layers.conv import single
from ikirere.model.layers.mixer import CacheStep, ForwardContext, settings_of
from ikirere.model.layers.rope import RopeSpec, rotate
from ikirere.model.layers.selection import selection_loss
from ikirere.model.layers.split_attention import hybrid_attention
from ikirere.model.layers.summaries import best, block_tokens, layout_of, pooled, summaries
from ikirere.recipe import mixers as recipe


def hybrid_settings(settings: Mapping[str, Any]) -> recipe.Hybrid:
    """The settings with their defaults filled in. Raises UserError naming the key of one that cannot be."""
    return settings_of(recipe.Hybrid, "hybrid", settings)


class HybridState(KVState):
    """Keys and values of all tokens, the summaries of whole blocks, and the logits of the block that is not whole yet.

    keys, values: [batch, kv_heads, capacity, head_dim]. summary_keys, summary_values: [batch, kv_heads,
    ceil(capacity / stride), head_dim]. logits: fp32 [batch, kv_heads, stride], token p at index p mod stride.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], stride: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(shape, dtype, device)
        self.stride = stride
        batch, heads, capacity, width = shape
        blocks = (batch, heads, -(-capacity // stride), width)
        self.summary_keys, self.summary_values = (
            torch.zeros(blocks, dtype=dtype, device=device) for _ in range(2)
        )
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        self.logits = torch.zeros(batch, heads, min(stride, capacity), dtype=kind, device=device)

    def copy(self, source: int, target: int, length: int) -> None:
        super().copy(source, target, length)
        for store in (self.summary_keys, self.summary_values):
            whole = length // self.stride
            store[target, :, :whole] = store[source, :, :whole]
        self.logits[target] = self.logits[source]

    @property
    def bytes(self) -> int:
        stores = (self.summary_keys, self.summary_values, self.logits)
        return super().bytes + sum(store.numel() * store.element_size() for store in stores)

    def store(self, k: Tensor, v: Tensor, logits: Tensor, step: CacheStep, counts: list[int]) -> None:
        """Keeps the real tokens of [B, kv_heads, T, head_dim] and their logits [B, kv_heads, T], and pools the blocks
        that they make whole. counts: real tokens of each row."""
        self.write(self.keys, k, step)
        self.write(self.values, v, step)
        stride, logits = self.stride, logits.detach()
        for row, (slot, end, count) in enumerate(zip(step.picked, step.ends.tolist(), counts)):
            begin = end - count
            low, high = begin // stride, end // stride
            if high > low:
                # The beginning of the first of them may have come in earlier passes.
                known = torch.cat((self.logits[slot, :, : begin % stride], logits[row, :, :count]), 1)
                tokens = slice(low * stride, high * stride)
                shape = (high - low, stride)
                keys, values, _ = pooled(
                    known[None, :, : (high - low) * stride].unflatten(2, shape),
                    self.keys[slot, None, :, tokens].unflatten(2, shape),
                    self.values[slot, None, :, tokens].unflatten(2, shape),
                )
                self.summary_keys[slot, :, low:high] = keys[0]
                self.summary_values[slot, :, low:high] = values[0]
            rest = min(count, end - high * stride)
            if rest:
                filled = end % stride
                self.logits[slot, :, filled - rest : filled] = logits[row, :, count - rest : count]


class HybridAttention(Attention):
    """`mode` "hybrid": attention as the module's docstring describes it. "full": plain causal attention with the same
    weights and unscaled positions, for phases of training at shorter lengths. The weights are those of full attention
    and `summary_query` [kv_heads * head_dim]."""

    runs_as: ClassVar[tuple[str, ...]] = ("full",)
    mode = "hybrid"
    auxiliary_name = "selection_loss"

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        h = hybrid_settings(settings)
        self.chunk, self.stride, self.top_k = h.window, h.block_size, h.top_k
        self.selection_weight = h.selection_weight
        self.summary_query = nn.Parameter(torch.empty(self.kv_heads * self.head_dim))

    @classmethod
    def rope(cls, config: ModelConfig, settings: Mapping[str, Any]) -> RopeSpec | None:
        h = hybrid_settings(settings)
        if not h.rope:
            return None
        original = h.original_max_position_embeddings or config.max_position_embeddings
        if h.rope_scaling == "none" or original == config.max_position_embeddings:
            return cls.rope_as("full", config, settings)
        if original > config.max_position_embeddings:
            raise UserError(
                f"model.mixers.hybrid.original_max_position_embeddings {original} is beyond "
                f"model.max_position_embeddings {config.max_position_embeddings}; accepted are 1 to that"
            )
        factor = config.max_position_embeddings / original
        return RopeSpec(config.head_dim, None, h.rope_scaling, factor, original)

    @classmethod
    def rope_as(cls, mode: str, config: ModelConfig, settings: Mapping[str, Any]) -> RopeSpec | None:
        return RopeSpec(config.head_dim) if hybrid_settings(settings).rope else None

    @property
    def needs_mask(self) -> bool:
        return self.mode == "full"

    def init_weights(self, generator: torch.Generator) -> None:
        self.summary_query.fill_(0.0)  # a mean

    def forward(self, x: Tensor, context: ForwardContext, state: HybridState | None = None) -> Tensor:
        q, k, v = self.heads_of(x)
        # Also 0 where a row is too short for a choice: ranks that train together log the same names.
        asked = self.training and self.selection_weight > 0 and self.mode == "hybrid"
        self.auxiliary = torch.zeros((), device=x.device) if asked else None
        logits = self._logits(k) if self.mode == "hybrid" else None
        if self.uses_rope:
            cos, sin = context.rope_tables[self.rope_index]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if logits is None:
            y = attend(q.transpose(1, 2), k, v, context.mask, context.causal)
        elif state is not None and context.step is not None:
            y = self._continue(q, k, v, logits, context, state)
        elif x.shape[1] <= self.chunk and context.document_ids is None:
            y = attend(q.transpose(1, 2), k, v, None, True)  # windows hold everything
        else:
            y = self._whole(q, k, v, logits, context.document_ids)
        y = self.o_proj(y.flatten(2))
        if torch.is_grad_enabled():
            # It takes part in every pass: ranks that train together wait for each weight's gradient.
            y = y + 0.0 * self.summary_query.sum().to(y.dtype)
        return y

    def _logits(self, k: Tensor) -> Tensor:
        """How much each token weighs in its block's summary: [B, kv_heads, T] from k [B, T, kv_heads, head_dim] before
        rotation, fp32 at least."""
        kind = torch.float64 if k.dtype == torch.float64 else torch.float32
        w = self.summary_query.view(self.kv_heads, self.head_dim).to(kind)
        return (k * w).sum(3).transpose(1, 2) * self.head_dim**-0.5

    @torch.compiler.disable
    def _whole(self, q: Tensor, k: Tensor, v: Tensor, logits: Tensor, document_ids: Tensor | None) -> Tensor:
        """Attention of whole rows. Which blocks are read depends on the data, so a compiler has nothing to trace."""
        layout = layout_of(document_ids, q.shape[1], self.chunk, self.stride, device=q.device)
        keys, values = summaries(logits, k, v, layout)
        if self.auxiliary is not None:
            real = None if document_ids is None else document_ids >= 0
            self.auxiliary = self.selection_weight * selection_loss(q, k, keys, layout, real)
        return hybrid_attention(q, k, v, keys, values, layout, self.top_k)

    def _continue(
        self, q: Tensor, k: Tensor, v: Tensor, logits: Tensor, context: ForwardContext, state: HybridState
    ) -> Tensor:
        step, length = context.step, q.shape[1]
        assert step is not None
        counts = [length] * len(step.picked) if step.counts is None else step.counts.tolist()
        state.store(k, v, logits, step, counts)
        if step.start is not None and step.counts is None and isinstance(step.rows, slice):
            return self._read(q, state, step.rows, step.start)
        if length == 1:
            return self._read_last(q, state, step)
        y = torch.zeros_like(q)
        for row, (slot, end, count) in enumerate(zip(step.picked, step.ends.tolist(), counts)):
            one = slice(row, row + 1)
            y[one, :count] = self._read(q[one, :count], state, slice(slot, slot + 1), end - count)
        return y

    def _read(self, q: Tensor, state: HybridState, slots: slice, start: int) -> Tensor:
        """q [B, T, heads, Dh] of rows that held `start` tokens before -> the same shape."""
        end = start + q.shape[1]
        k, v = (store[slots, :, :end] for store in (state.keys, state.values))
        if end <= self.chunk and (start == 0 or q.shape[1] == 1):
            return attend(q.transpose(1, 2), k.to(q.dtype), v.to(q.dtype), None, start == 0)
        layout = layout_of(None, q.shape[1], self.chunk, self.stride, start, q.device)
        number = layout.starts.shape[1]
        keys, values = (store[slots, :, :number] for store in (state.summary_keys, state.summary_values))
        return hybrid_attention(q, k, v, keys, values, layout, self.top_k)

    def _read_last(self, q: Tensor, state: HybridState, step: CacheStep) -> Tensor:
        """One query each of rows of different lengths, q [B, 1, heads, Dh]: all keys that it sees are gathered side by
        side, shorter rows padded."""
        stride, position, device = self.stride, step.starts, q.device
        blocks = (position - (self.chunk - 1)).clamp_min(0) // stride
        low = blocks * stride
        window = low[:, None] + torch.arange(int((position - low).max()) + 1, device=device)
        number = int(blocks.max())
        order = torch.arange(number, device=device)
        seen = (order < blocks[:, None]).unsqueeze(1).expand(-1, self.kv_heads, -1)
        keys, values = (
            store[step.column[:, 0], :, :number] for store in (state.summary_keys, state.summary_values)
        )
        summed = single(q).view(len(q), self.kv_heads, -1, self.head_dim).sum(2)
        with torch.autocast(q.device.type, enabled=False):
            scores = (single(keys) @ summed.unsqueeze(3)).squeeze(3).masked_fill(~seen, float("-inf"))
        picked = best(scores, seen, self.top_k) if number > self.top_k else seen
        chosen = torch.where(picked, order, number).sort(-1).values[..., : self.top_k]
        tokens = block_tokens(chosen * stride, stride).flatten(2)
        known = (chosen < number).repeat_interleave(stride, 2)
        # Masked positions are read all the same, so they must exist.
        near, last = window.clamp_max(step.end - 1), state.keys.shape[2] - 1
        at = torch.cat((near.unsqueeze(1).expand(-1, self.kv_heads, -1), tokens.clamp_max(last)), 2)
        visible = torch.cat(
            ((window <= position[:, None]).unsqueeze(1).expand(-1, self.kv_heads, -1), known, seen), 2
        )
        head = torch.arange(self.kv_heads, device=device).view(1, -1, 1)
        k, v = (
            torch.cat((store[step.column.unsqueeze(2), head, at], pooled_store), 2).to(q.dtype)
            for store, pooled_store in ((state.keys, keys), (state.values, values))
        )
        grouped = q.reshape(len(q), self.kv_heads, -1, self.head_dim)
        y = F.scaled_dot_product_attention(grouped, k, v, visible.unsqueeze(2))
        return y.reshape(q.shape)

    @classmethod
    def new_state(
        cls, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> HybridState:
        stride = hybrid_settings(config.mixers.get("hybrid", {})).block_size
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        return HybridState(shape, stride, dtype, device)
