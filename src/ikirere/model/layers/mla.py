"""Multi-head latent attention without positions (DeepSeek-V2, arXiv 2405.04434, section 2.1; NoPE as in Kimi
Linear, arXiv 2510.26692, section 4): keys and values of all heads come from one short latent vector per
token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.layers.attention import attend
from ikirere.model.layers.mixer import CacheStep, ForwardContext, Linear, Mixer, settings_of
from ikirere.model.layers.norm import RMSNorm
from ikirere.recipe import mixers as recipe

_NORM_EPS = 1e-6  # of the latent norms, as DeepSeek's and Kimi's classes have it whatever rms_norm_eps is


def mla_sizes(config: ModelConfig, settings: Mapping[str, Any]) -> recipe.MlaSizes:
    """The settings with their defaults filled in. Raises UserError naming the key of one that cannot be."""
    return settings_of(recipe.Mla, "mla", settings).sizes(config.head_dim)


class LatentState:
    """What one layer holds of each row: [batch, capacity, kv_lora_rank + qk_rope_head_dim], the normed latent
    vector of each token, followed by the part of the key that all heads share."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.latents = torch.zeros(shape, dtype=dtype, device=device)

    def reset(self, row: int) -> None:
        """Nothing to do: positions beyond a row's length are never read."""

    def copy(self, source: int, target: int, length: int) -> None:
        self.latents[target, :length] = self.latents[source, :length]

    @property
    def bytes(self) -> int:
        return self.latents.numel() * self.latents.element_size()

    def append(self, new: Tensor, step: CacheStep) -> Tensor:
        """Stores [B, T, width] and returns all that the rows hold, [B, step.end, width]."""
        kept = new.detach().to(self.latents.dtype)
        if isinstance(step.rows, slice) and step.start is not None and step.counts is None:
            self.latents[step.rows, step.start : step.end] = kept
        else:
            # Padding repeats its row's last real token, so it writes the values that are there anyway.
            order = step.cache_positions - step.starts.unsqueeze(1)
            self.latents[step.column, step.cache_positions] = kept.gather(
                1, order.unsqueeze(-1).expand_as(kept)
            )
        return self.latents[step.rows, : step.end].to(new.dtype)


class LatentAttention(Mixer):
    """Causal attention within each document over latent vectors. Every head's key is its part of the expanded
    latent vector and, as they are, `qk_rope_head_dim` channels that all heads share; nothing is rotated by
    position.

    Decoding leaves the latents as they are: a query is carried into the latent space once instead of every
    held token out of it. Longer passes expand, where that takes fewer operations.
    """

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        if config.qk_norm:
            raise UserError("model.qk_norm is true; 'mla' layers have no norm on heads, so it must be false")
        self.heads, self.sizes = config.num_attention_heads, mla_sizes(config, settings)
        hidden, s = config.hidden_size, self.sizes
        queries = self.heads * (s.nope + s.shared)
        self.q_proj = None if s.query_rank else Linear(hidden, queries)
        self.q_a_proj = Linear(hidden, s.query_rank) if s.query_rank else None
        self.q_a_norm = RMSNorm(s.query_rank, _NORM_EPS) if s.query_rank else None
        self.q_b_proj = Linear(s.query_rank, queries) if s.query_rank else None
        self.kv_a_proj = Linear(hidden, s.rank + s.shared)
        self.kv_a_norm = RMSNorm(s.rank, _NORM_EPS)
        self.kv_b_proj = Linear(s.rank, self.heads * (s.nope + s.value))
        self.o_proj = Linear(self.heads * s.value, hidden)

    def forward(self, x: Tensor, context: ForwardContext, state: LatentState | None = None) -> Tensor:
        s, length = self.sizes, x.shape[1]
        q = self._queries(x).unflatten(-1, (self.heads, s.nope + s.shared))
        latent, shared = self.kv_a_proj(x).split((s.rank, s.shared), dim=-1)
        held = torch.cat((self.kv_a_norm(latent), shared), dim=-1)
        if state is not None and context.step is not None:
            held = state.append(held, context.step)
        # Per pair and head: 2 * rank + shared, or nope + shared + value once the held tokens are expanded.
        more, expanding = length * (2 * s.rank - s.nope - s.value), s.rank * (s.nope + s.value)
        if not context.causal and more < expanding:
            y = self._in_latent_space(q, held, context)
        else:
            y = self._expanded(q, held, context)
        return self.o_proj(y.flatten(2))

    def _queries(self, x: Tensor) -> Tensor:
        if self.q_a_proj is None or self.q_a_norm is None or self.q_b_proj is None:
            assert self.q_proj is not None
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))

    def _expanded(self, q: Tensor, held: Tensor, context: ForwardContext) -> Tensor:
        """q [B, T, heads, nope + shared], held [B, S, rank + shared] -> [B, T, heads, value]."""
        s = self.sizes
        latent, shared = held.split((s.rank, s.shared), dim=-1)
        k, v = self.kv_b_proj(latent).unflatten(-1, (self.heads, -1)).split((s.nope, s.value), dim=-1)
        k = torch.cat((k, shared.unsqueeze(2).expand(-1, -1, self.heads, -1)), dim=-1)
        # Kernels that hold no [T, S] scores need keys and values of one width: zeros change nothing.
        wider = s.value - (s.nope + s.shared)
        if wider > 0:
            scale = (s.value / (s.nope + s.shared)) ** 0.5  # `attend` divides by the root of the padded width
            q, k = F.pad(q * scale, (0, wider)), F.pad(k, (0, wider))
        elif wider < 0:
            v = F.pad(v, (0, -wider))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return attend(q, k, v, context.mask, context.causal)[..., : s.value]

    def _in_latent_space(self, q: Tensor, held: Tensor, context: ForwardContext) -> Tensor:
        """The same, since (W c) . q = c . (W^T q): the latents serve all heads as keys and values."""
        s = self.sizes
        up = self.kv_b_proj.weight.view(self.heads, s.nope + s.value, s.rank)
        nope, shared = q.split((s.nope, s.shared), dim=-1)
        carried = torch.einsum("bthn,hnr->bthr", nope, up[:, : s.nope])
        q = torch.cat((carried, shared), dim=-1).transpose(1, 2)
        q = q * ((s.rank + s.shared) / (s.nope + s.shared)) ** 0.5
        held = held.unsqueeze(1)
        y = attend(q, held, held, context.mask, context.causal)[..., : s.rank]
        return torch.einsum("bthr,hvr->bthv", y, up[:, s.nope :])

    @classmethod
    def new_state(
        cls, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> LatentState:
        sizes = mla_sizes(config, config.mixers.get("mla", {}))
        return LatentState((batch, capacity, sizes.rank + sizes.shared), dtype, device)
