"""Causal attention over the last tokens only, with first tokens that stay visible (Beltagy et al. 2020, arXiv
2004.05150; sinks: Xiao et al. 2023, arXiv 2309.17453, section 3).

Sinks may keep their positions or be renumbered (Xiao et al., section 3.2: positions are indices in the cache). A full
cache holds the sinks at indices 0 to sinks - 1 and the window after them, its newest token at sinks + window - 1. So
with `sink_positions: renumbered` the distance from the query at position i to sink j is min(i, sinks + window - 1) - j,
to all other keys the ordinary one, and none is ever larger than sinks + window - 1. Training computes the same. As only
relative distance counts in RoPE, keys stay as they are, and a query that meets sinks is rotated a second time.

Memory is linear in length: queries are taken in blocks, each over the keys that its window reaches. A row's state is
a ring of `window` tokens and the sinks, however long the row grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ikirere.model.config import ModelConfig
from ikirere.model.layers.attention import Attention, attend
from ikirere.model.layers.conv import single
from ikirere.model.layers.mixer import CacheStep, ForwardContext, settings_of
from ikirere.model.layers.rope import RopeSpec, rotate
from ikirere.recipe import mixers as recipe

_BLOCK = 128
"""Fewest queries of a block: smaller ones cost more in calls than they save."""


class WindowState:
    """The last `window` keys and values of each row, token p at index p mod window, and its first `sinks`.

    keys, values: [batch, kv_heads, window + sinks, head_dim]; the sinks follow the ring.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        window: int,
        sinks: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.window, self.sinks = window, sinks
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def reset(self, row: int) -> None:
        """Nothing to do: entries of tokens that a row does not hold are never read."""

    def copy(self, source: int, target: int, length: int) -> None:
        for store in (self.keys, self.values):
            store[target] = store[source]

    @property
    def bytes(self) -> int:
        return sum(store.numel() * store.element_size() for store in (self.keys, self.values))

    def held(self, step: CacheStep) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values [B, kv_heads, sinks + window, head_dim] and the position of each token in its row, LongTensor
        [B, sinks + window], -1 where there is none (or where the ring holds a sink too)."""
        starts = step.starts[:, None]
        ring = starts - self.window + torch.arange(self.window, device=starts.device)
        first = torch.arange(self.sinks, device=starts.device).expand(len(starts), -1)
        first = torch.where(first < torch.minimum(starts, ring[:, :1].clamp_min(0)), first, -1)
        key_positions = torch.cat((first, ring.clamp_min(-1)), dim=1)
        at = torch.cat(
            (
                self.window + torch.arange(self.sinks, device=starts.device).expand(len(starts), -1),
                ring % self.window,
            ),
            dim=1,
        )
        keys, values = (store[step.column, :, at].transpose(1, 2) for store in (self.keys, self.values))
        return keys, values, key_positions

    def store(self, keys: Tensor, values: Tensor, step: CacheStep) -> None:
        """Keeps the real tokens of [B, kv_heads, T, head_dim]: the last `window`, and those among the first."""
        length = keys.shape[2]
        counts = torch.full_like(step.starts, length) if step.counts is None else step.counts
        order = torch.arange(length, device=keys.device)
        positions = step.starts[:, None] + order
        real = order < counts[:, None]
        newest = real & (positions >= (step.starts + counts)[:, None] - self.window)
        for kept, at in (
            (newest, positions % self.window),
            (real & (positions < self.sinks), self.window + positions),
        ):
            row, column = kept.nonzero(as_tuple=True)
            slots = step.column[row, 0]
            for store, new in ((self.keys, keys), (self.values, values)):
                store[slots, :, at[row, column]] = new.detach()[row, :, column].to(store.dtype)


class WindowAttention(Attention):
    """Token i sees token j of its document when i - window < j <= i, or j is one of the document's first `sinks`."""

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        w = window_settings(settings)
        self.window, self.sinks = w.window, w.sinks
        self.renumbered = self.uses_rope and w.sink_positions == "renumbered"

    @classmethod
    def rope(cls, config: ModelConfig, settings: Mapping[str, Any]) -> RopeSpec | None:
        spec = super().rope(config, settings)
        w = window_settings(settings)
        return (
            replace(spec, last=w.window + w.sinks - 1) if spec and w.sink_positions == "renumbered" else spec
        )

    @classmethod
    def unbounded(cls, config: ModelConfig, settings: Mapping[str, Any]) -> bool:
        w = window_settings(settings)
        fits = w.window + w.sinks <= config.max_position_embeddings
        return not w.rope or (w.sink_positions == "renumbered" and fits)

    @property
    def needs_mask(self) -> bool:
        return False

    def project_twice(
        self, x: Tensor, context: ForwardContext
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """As `project`, and the queries as they meet sinks where that differs, [B, heads, T, head_dim]."""
        if not self.renumbered:
            return *self.project(x, context), None
        q, k, v = self.heads_of(x)
        cos, sin = context.rope_tables[self.rope_index]
        far = rotate(q, cos[:, :, 1:], sin[:, :, 1:]).transpose(1, 2) if self.sinks else None
        q, k = (rotate(t, cos[:, :, :1], sin[:, :, :1]) for t in (q, k))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), far

    def forward(self, x: Tensor, context: ForwardContext, state: WindowState | None = None) -> Tensor:
        q, k, v, far = self.project_twice(x, context)
        if state is None or context.step is None:
            y = window_attend(
                q,
                k,
                v,
                context.positions,
                context.document_ids,
                self.window,
                self.sinks,
                self.sink_logits,
                far,
            )
            return self.o_proj(y.flatten(2))
        step = context.step
        keys, values, key_positions = state.held(step)
        new = step.starts[:, None] + torch.arange(q.shape[2], device=q.device)
        far = far if step.end > self.window else None
        y = self._continue(
            q,
            torch.cat((keys.to(k.dtype), k), 2),
            torch.cat((values.to(v.dtype), v), 2),
            key_positions,
            new,
            far,
        )
        state.store(k, v, step)
        return self.o_proj(y.flatten(2))

    def _continue(
        self, q: Tensor, k: Tensor, v: Tensor, held: Tensor, new: Tensor, far: Tensor | None
    ) -> Tensor:
        """Queries at positions `new` [B, T] over held and new keys. Padding on the right follows every real query.

        held: LongTensor [B, sinks + window], positions of the held keys; k and v hold these first, then the new ones.
        """
        key_positions = torch.cat((held, new), dim=1)
        done = []
        before = held.shape[1]
        for begin in range(0, new.shape[1], max(_BLOCK, self.window)):
            end = min(new.shape[1], begin + max(_BLOCK, self.window))
            # Keys: all that was held, and of the new ones those that the block's windows reach, and the sinks.
            low = max(0, begin - self.window + 1)
            lead = min(low, self.sinks)
            chosen = torch.cat(
                (
                    torch.arange(before + lead, device=q.device),
                    torch.arange(before + low, before + end, device=q.device),
                )
            )
            at, here = key_positions[:, chosen][:, None, None], new[:, None, begin:end, None]
            seen = (at >= 0) & (at <= here) & ((here - at < self.window) | (at < self.sinks))
            block = (q[:, :, begin:end], k[:, :, chosen], v[:, :, chosen])
            if far is not None:
                block = meeting_sinks(
                    *block, far[:, :, begin:end], seen[:, 0], key_positions[:, chosen], self.sinks
                )
            y = attend(*block, seen, False, self.sink_logits)
            done.append(y[..., : self.head_dim])
        return torch.cat(done, dim=1)

    @classmethod
    def new_state(
        cls, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> WindowState:
        w = window_settings(config.mixers.get("window", {}))
        window, sinks = min(w.window, capacity), min(w.sinks, capacity)
        shape = (batch, config.num_key_value_heads, window + sinks, config.head_dim)
        return WindowState(shape, window, sinks, dtype, device)


def window_settings(settings: Mapping[str, Any]) -> recipe.Window:
    """Raises UserError naming the key of a setting that cannot be."""
    return settings_of(recipe.Window, "window", settings)


def window_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    document_ids: Tensor | None,
    window: int,
    sinks: int = 0,
    sink_logits: Tensor | None = None,
    far: Tensor | None = None,
) -> Tensor:
    """Windowed attention over whole rows. q [B, heads, T, Dh], k and v [B, kv_heads, T, Dh] -> [B, T, heads, Dh].

    positions, document_ids: LongTensor [B, T] as in `ForwardContext`; a document's first tokens are those at positions below
    `sinks`. far: q as it meets sinks, where that differs. Time is that of T * (window + sinks of the row) products,
    memory that of one block of queries.
    """
    length, head_dim, size = q.shape[2], q.shape[3], max(_BLOCK, window)
    far = far if length > window else None
    order = torch.arange(length, device=q.device)
    first = (positions < sinks).any(dim=0).nonzero()[:, 0] if sinks else order[:0]
    done = []
    for begin in range(0, length, size):
        end = min(length, begin + size)
        low = max(0, begin - window + 1)
        chosen = torch.cat((first[first < low], order[low:end]))
        here, at = order[begin:end, None], chosen[None, :]
        near = (here - at) < window
        seen = (at <= here)[None] & near[None]
        if sinks:
            seen = (at <= here)[None] & (near[None] | (positions[:, chosen] < sinks)[:, None, :])
        if document_ids is not None:
            seen = seen & (document_ids[:, begin:end, None] == document_ids[:, None, chosen])
        part = slice(low, end) if len(chosen) == end - low else chosen
        block = (q[:, :, begin:end], k[:, :, part], v[:, :, part])
        if far is not None:
            block = meeting_sinks(*block, far[:, :, begin:end], seen, positions[:, chosen], sinks)
        y = attend(*block, seen[:, None], False, sink_logits)
        done.append(y[..., :head_dim])
    return torch.cat(done, dim=1) if len(done) > 1 else done[0]


def meeting_sinks(
    q: Tensor, k: Tensor, v: Tensor, far: Tensor, seen: Tensor, key_positions: Tensor, sinks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Wider queries, keys and values. Plain attention over them gives, in its first head_dim columns, attention in which
    sinks meet `far` and all other keys `q`.

    q, far: [B, heads, T, head_dim]. k, v: [B, kv_heads, S, head_dim]. seen: bool [B, T, S], with at most one sink of
    each position for a query. key_positions: LongTensor [B, S], those below `sinks` (and not -1) are sinks.

    A query gets a coordinate per sink which holds its product with that sink and which only that key reads. So one
    softmax covers all, every kernel for plain attention computes it, and gradients follow by themselves.
    """
    batch, heads, length, head_dim = q.shape
    shared, held = k.shape[1:3]
    sink = ((key_positions >= 0) & (key_positions < sinks)).expand(batch, held)
    columns = sink.any(0).nonzero()[:, 0]
    reader = F.one_hot(key_positions.expand(batch, held).clamp(0, sinks - 1), sinks) * sink.unsqueeze(-1)
    with torch.autocast(q.device.type, enabled=False):
        products = single(far).reshape(batch, shared, -1, head_dim) @ single(k[:, :, columns]).mT
        products = products.view(batch, heads, length, len(columns))
        hidden = ~seen[:, None, :, columns] | ~sink[:, None, None, columns]
        products = products.masked_fill(hidden, 0.0) @ reader[:, None, columns].to(products.dtype)
        # Beside half-precision queries a product goes in two parts: one alone would round it to three digits.
        parts = 1 if q.dtype == products.dtype else 2
        width = -(-(head_dim + parts * sinks) // 8) * 8  # what kernels like
        grown = (width / head_dim) ** 0.5  # attention divides by the root of the wider width
        first = (products * grown).to(q.dtype)
        rest = (products * grown - first.to(products.dtype)).to(q.dtype)
    coordinates = (first, rest)[:parts]
    readers = (reader.to(k.dtype).unsqueeze(1).expand(-1, shared, -1, -1),) * parts
    spare = width - head_dim - parts * sinks
    q = F.pad(torch.cat((q * grown, *coordinates), dim=-1), (0, spare))
    k = F.pad(torch.cat((k.masked_fill(sink[:, None, :, None], 0.0), *readers), dim=-1), (0, spare))
    return q, k, F.pad(v, (0, width - head_dim))
