"""Causal attention over the last tokens only, with first tokens that stay visible (Beltagy et al. 2020, arXiv
2004.05150; sinks: Xiao et al. 2023, arXiv 2309.17453, section 3).

Memory is linear in length: queries are taken in blocks, each over the keys that its window reaches. A row's state is
a ring of `window` tokens and the sinks, however long the row grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.layers.attention import Attention, attend
from ikirere.model.layers.mixer import Context, Step

_BLOCK = 128
"""Fewest queries of a block: smaller ones cost more in calls than they save."""


class WindowState:
    """The last `window` keys and values of each row, token p at place p mod window, and its first `sinks`.

    keys, values: [batch, kv_heads, window + sinks, head_dim]; the sinks stand behind the ring.
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
        """Nothing to do: places of tokens that a row does not hold are never read."""

    def copy(self, source: int, target: int, length: int) -> None:
        for store in (self.keys, self.values):
            store[target] = store[source]

    @property
    def bytes(self) -> int:
        return sum(store.numel() * store.element_size() for store in (self.keys, self.values))

    def held(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values [B, kv_heads, sinks + window, head_dim] and the place of each token in its row, LongTensor
        [B, sinks + window], -1 where there is none (or where the ring holds a sink too)."""
        starts = step.starts[:, None]
        ring = starts - self.window + torch.arange(self.window, device=starts.device)
        first = torch.arange(self.sinks, device=starts.device).expand(len(starts), -1)
        first = torch.where(first < torch.minimum(starts, ring[:, :1].clamp_min(0)), first, -1)
        places = torch.cat((first, ring.clamp_min(-1)), dim=1)
        at = torch.cat(
            (
                self.window + torch.arange(self.sinks, device=starts.device).expand(len(starts), -1),
                ring % self.window,
            ),
            dim=1,
        )
        keys, values = (store[step.column, :, at].transpose(1, 2) for store in (self.keys, self.values))
        return keys, values, places

    def store(self, keys: Tensor, values: Tensor, step: Step) -> None:
        """Keeps the real tokens of [B, kv_heads, T, head_dim]: the last `window`, and those among the first."""
        length = keys.shape[2]
        counts = torch.full_like(step.starts, length) if step.counts is None else step.counts
        order = torch.arange(length, device=keys.device)
        places = step.starts[:, None] + order
        real = order < counts[:, None]
        newest = real & (places >= (step.starts + counts)[:, None] - self.window)
        for kept, at in (
            (newest, places % self.window),
            (real & (places < self.sinks), self.window + places),
        ):
            row, column = kept.nonzero(as_tuple=True)
            slots = step.column[row, 0]
            for store, new in ((self.keys, keys), (self.values, values)):
                store[slots, :, at[row, column]] = new.detach()[row, :, column].to(store.dtype)


class WindowAttention(Attention):
    """Token i sees token j of its document when i - window < j <= i, or j is one of the document's first `sinks`."""

    settings = ("window", "sinks", *Attention.settings)

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        self.window, self.sinks = window_of(settings)

    def forward(self, x: Tensor, context: Context, state: WindowState | None = None) -> Tensor:
        q, k, v = self.project(x, context)
        if state is None or context.step is None:
            y = window_attend(
                q, k, v, context.positions, context.document_ids, self.window, self.sinks, self.sink_logits
            )
            return self.o_proj(y.flatten(2))
        step = context.step
        keys, values, places = state.held(step)
        new = step.starts[:, None] + torch.arange(q.shape[2], device=q.device)
        y = self._continue(
            q, torch.cat((keys.to(k.dtype), k), 2), torch.cat((values.to(v.dtype), v), 2), places, new
        )
        state.store(k, v, step)
        return self.o_proj(y.flatten(2))

    def _continue(self, q: Tensor, k: Tensor, v: Tensor, held: Tensor, new: Tensor) -> Tensor:
        """Queries at places `new` [B, T] over held and new keys. Padding on the right is behind every real query."""
        places = torch.cat((held, new), dim=1)
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
            at, here = places[:, chosen][:, None, None], new[:, None, begin:end, None]
            seen = (at >= 0) & (at <= here) & ((here - at < self.window) | (at < self.sinks))
            done.append(
                attend(q[:, :, begin:end], k[:, :, chosen], v[:, :, chosen], seen, False, self.sink_logits)
            )
        return torch.cat(done, dim=1)

    @classmethod
    def new_state(
        cls, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> WindowState:
        window, sinks = window_of(config.mixers.get("window", {}))
        window, sinks = min(window, capacity), min(sinks, capacity)
        shape = (batch, config.num_key_value_heads, window + sinks, config.head_dim)
        return WindowState(shape, window, sinks, dtype, device)


def window_of(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Window and sinks in tokens. Raises UserError for a window below 1 and for negative sinks."""
    window, sinks = settings.get("window", 8192), settings.get("sinks", 0)
    if window < 1 or sinks < 0:
        raise UserError(
            f"model.mixers.window: window {window} and sinks {sinks}; at least 1 and 0 tokens are needed"
        )
    return window, sinks


def window_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    document_ids: Tensor | None,
    window: int,
    sinks: int = 0,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Windowed attention over whole rows. q [B, heads, T, Dh], k and v [B, kv_heads, T, Dh] -> [B, T, heads, Dh].

    positions, document_ids: LongTensor [B, T] as in `Context`; a document's first tokens are those at positions below
    `sinks`. Time is that of T * (window + sinks of the row) products, memory that of one block of queries.
    """
    length, size = q.shape[2], max(_BLOCK, window)
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
        done.append(
            attend(q[:, :, begin:end], k[:, :, part], v[:, :, part], seen[:, None], False, sink_logits)
        )
    return torch.cat(done, dim=1) if len(done) > 1 else done[0]
