"""Grouped-query softmax attention over all earlier tokens (Ainslie et al. 2023, arXiv 2305.13245)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ikirere.model.config import ModelConfig
from ikirere.model.layers.mixer import CacheStep, ForwardContext, Linear, Mixer
from ikirere.model.layers.norm import RMSNorm
from ikirere.model.layers.rope import RopeSpec, rotate

_BLOCK = 128
"""Fewest queries of a block on the CPU: smaller ones cost more in calls than they save."""
_MOST_BLOCKS = 8


class KVState:
    """Keys and values of one layer: two tensors [batch, kv_heads, capacity, head_dim]."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def reset(self, row: int) -> None:
        """Nothing to do: positions beyond a row's length are never read."""

    def copy(self, source: int, target: int, length: int) -> None:
        for store in (self.keys, self.values):
            store[target, :, :length] = store[source, :, :length]

    @property
    def bytes(self) -> int:
        return sum(store.numel() * store.element_size() for store in (self.keys, self.values))

    def append(self, keys: Tensor, values: Tensor, step: CacheStep) -> tuple[Tensor, Tensor]:
        """Stores [B, kv_heads, T, head_dim] and returns all that the rows hold, [B, kv_heads, step.end, head_dim]."""
        return self._append(self.keys, keys, step), self._append(self.values, values, step)

    @classmethod
    def _append(cls, store: Tensor, new: Tensor, step: CacheStep) -> Tensor:
        cls.write(store, new, step)
        return store[step.rows, :, : step.end].to(new.dtype)

    @staticmethod
    def write(store: Tensor, new: Tensor, step: CacheStep) -> None:
        """Stores [B, kv_heads, T, head_dim] at the step's `cache_positions` of one of the two tensors."""
        if isinstance(step.rows, slice) and step.start is not None and step.counts is None:
            store[step.rows, :, step.start : step.end] = new.detach()
        else:
            moved = new.detach().transpose(1, 2).to(store.dtype)
            if step.counts is not None:
                # Padding repeats its row's last real token, so it writes the values that are there anyway.
                order = step.cache_positions - step.starts[:, None]
                moved = moved.gather(1, order[:, :, None, None].expand_as(moved))
            store[step.column, :, step.cache_positions] = moved


class Attention(Mixer):
    """What full and windowed attention share: projections, with or without RoPE, optional RMSNorm on queries and keys,
    an optional learned sink."""

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        self.uses_rope = self.rope(config, settings) is not None
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = Linear(config.hidden_size, self.heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = Linear(self.heads * self.head_dim, config.hidden_size)
        # A logit per head that takes part in the softmax and brings no value (gpt-oss, arXiv 2508.10925, section 2.2).
        learned = settings.get("learned_sinks", False)
        self.sink_logits = nn.Parameter(torch.empty(self.heads)) if learned else None
        self.norm_heads = config.qk_norm_width == "head"
        widths = (1, 1) if self.norm_heads else (self.heads, self.kv_heads)
        self.q_norm, self.k_norm = (
            RMSNorm(n * self.head_dim, config.rms_norm_eps) if config.qk_norm else None for n in widths
        )

    @classmethod
    def rope(cls, config: ModelConfig, settings: Mapping[str, Any]) -> RopeSpec | None:
        if not settings.get("rope", True):
            return None
        scaling, original = (
            settings.get("rope_scaling", "none"),
            settings.get("original_max_position_embeddings") or 0,
        )
        factor = config.max_position_embeddings / original if original else 1.0
        return RopeSpec(config.head_dim, settings.get("rope_theta"), scaling, factor, original)

    def init_weights(self, generator: torch.Generator) -> None:
        if self.sink_logits is not None:
            self.sink_logits.fill_(0.0)

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, heads, head_dim], keys and values [B, T, kv_heads, head_dim], normed and not yet rotated."""
        batch, length, _ = x.shape
        q, k = self.q_proj(x), self.k_proj(x)
        if self.q_norm is not None and self.k_norm is not None and not self.norm_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.view(batch, length, self.heads, self.head_dim)
        k = k.view(batch, length, self.kv_heads, self.head_dim)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None and self.norm_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def project(self, x: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, heads, T, head_dim], keys and values [B, kv_heads, T, head_dim], normed and rotated."""
        q, k, v = self.heads_of(x)
        if self.uses_rope:
            cos, sin = context.rope_tables[self.rope_index]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class FullAttention(Attention):
    """Causal attention over all earlier tokens of the document."""

    def forward(self, x: Tensor, context: ForwardContext, state: KVState | None = None) -> Tensor:
        q, k, v = self.project(x, context)
        if state is not None and context.step is not None:
            k, v = state.append(k, v, context.step)
        y = attend(q, k, v, context.mask, context.causal, self.sink_logits)
        return self.o_proj(y.flatten(2))

    @classmethod
    def new_state(
        cls, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> KVState:
        return KVState((batch, config.num_key_value_heads, capacity, config.head_dim), dtype, device)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, sink_logits: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v. q [B, heads, T, Dh], k and v [B, kv_heads, S, Dh] -> [B, T, heads, Dh].

    mask: bool [B, 1, T, S], True where a query may look. causal: T = S and query i looks at keys j <= i only; a mask
    given with it must already be causal.
    sink_logits: [heads], one more logit of each head's softmax whose value is zero.
    """
    batch, heads, length, head_dim = q.shape
    if sink_logits is not None:
        return _attend_with_sinks(q, k, v, mask, causal, sink_logits)
    shared = heads > k.shape[1]
    if length == 1 and not causal:
        # One query per head: a group's queries share keys, so they are the rows of one matrix.
        grouped = q.reshape(batch, k.shape[1], heads // k.shape[1], head_dim)
        return F.scaled_dot_product_attention(grouped, k, v, mask).reshape(batch, 1, heads, head_dim)
    if causal and mask is not None and q.is_cpu:
        return _attend_in_blocks(q, k, v, mask)
    alone = causal and mask is None
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=alone, enable_gqa=shared)
    return y.transpose(1, 2)


def _attend_with_sinks(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, sink_logits: Tensor
) -> Tensor:
    """The sink as a key in front of the others: queries get a coordinate that holds the logit, which this key alone
    reads. So every kernel for plain attention computes it, gradients included."""
    batch, heads, length, head_dim = q.shape
    held, scale = k.shape[2], head_dim**-0.5
    if mask is None:
        mask = torch.ones(length, held, dtype=torch.bool, device=q.device)
        mask = (mask.tril() if causal else mask)[None, None]
    mask = F.pad(mask, (1, 0), value=True)
    logits = sink_logits.to(q.dtype).view(1, heads, 1, 1).expand(batch, heads, length, 1)
    q, k = torch.cat((q, logits), dim=-1), F.pad(k, (0, 1, 1, 0))
    reader = torch.zeros_like(k[:, :, :1])
    reader[..., -1] = 1 / scale
    k = torch.cat((reader, k[:, :, 1:]), dim=2)
    v = F.pad(v, (0, 1, 1, 0))
    shared = heads > k.shape[1]
    size = length if not (causal and q.is_cpu) else max(_BLOCK, -(-length // _MOST_BLOCKS))
    done, end = [], 0
    for block in q.split(size, dim=2):
        start, end = end, end + block.shape[2]
        last = end + 1 if causal else held + 1
        y = F.scaled_dot_product_attention(
            block,
            k[:, :, :last],
            v[:, :, :last],
            mask[:, :, start:end, :last],
            scale=scale,
            enable_gqa=shared,
        )
        done.append(y[..., :head_dim].transpose(1, 2))
    return torch.cat(done, dim=1) if len(done) > 1 else done[0]


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """`attend` under a causal mask by blocks of queries, each over the keys up to its end.

    The CPU kernel works through keys that a mask forbids; this leaves out most of those above the diagonal.
    """
    size = max(_BLOCK, -(-q.shape[2] // _MOST_BLOCKS))
    done, end = [], 0
    for block in q.split(size, dim=2):
        start, end = end, end + block.shape[2]
        seen = mask[:, :, start:end, :end]
        y = F.scaled_dot_product_attention(
            block, k[:, :, :end], v[:, :, :end], seen, enable_gqa=q.shape[1] > k.shape[1]
        )
        done.append(y.transpose(1, 2))
    return torch.cat(done, dim=1) if len(done) > 1 else done[0]
