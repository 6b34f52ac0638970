"""Kimi Delta Attention (Kimi Team 2025, arXiv 2510.26692, sections 3 and 4): a linear-time mixer with a state
of fixed size per head, which forgets each key channel at its own rate and corrects what it holds by the delta
rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ikirere.model.config import ModelConfig
from ikirere.model.layers.conv import ShortConv, next_tail, single
from ikirere.model.layers.delta import delta_rule
from ikirere.model.layers.mixer import ForwardContext, Linear, Mixer, settings_of
from ikirere.model.layers.norm import RMSNorm
from ikirere.model.layers.recurrent import document_positions, padding
from ikirere.recipe import mixers as recipe

_LENGTH_EPS = 1e-6  # added to the squared length of queries and keys, as fla's kernels do
_RATE = (1.0, 16.0)  # e^A_log starts within
_STEP = (1e-3, 0.1)  # softplus(dt_bias) starts within


class Sizes(NamedTuple):
    """The settings of a layer with their defaults filled in."""

    heads: int
    head_dim: int
    conv_size: int
    gate_rank: int
    chunk: int


def kda_sizes(config: ModelConfig, settings: Mapping[str, Any]) -> Sizes:
    """Raises UserError naming the key of a setting that cannot be."""
    k = settings_of(recipe.Kda, "kda", settings)
    heads = k.num_heads or config.num_attention_heads
    return Sizes(heads, k.head_dim, k.conv_size, k.gate_rank or k.head_dim, k.chunk_size)


class KdaState:
    """What one layer holds of `batch` rows: the last inputs of its convolutions, and the state of each head.

    tails: [3 (queries, keys, values), batch, conv_size - 1, heads * head_dim] in the cache's dtype.
    memory: fp32 [batch, heads, head_dim of keys, head_dim of values].
    """

    def __init__(self, batch: int, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> None:
        heads, head_dim = sizes.heads, sizes.head_dim
        self.tails = torch.zeros(3, batch, sizes.conv_size - 1, heads * head_dim, dtype=dtype, device=device)
        self.memory = torch.zeros(batch, heads, head_dim, head_dim, dtype=torch.float32, device=device)

    def reset(self, row: int) -> None:
        self.tails[:, row] = 0
        self.memory[row] = 0

    def copy(self, source: int, target: int, length: int) -> None:
        self.tails[:, target] = self.tails[:, source]
        self.memory[target] = self.memory[source]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.tails, self.memory))


class KimiDeltaAttention(Mixer):
    """Queries, keys and values each through a short convolution, queries and keys of length one, then the
    delta rule with a decay e^g per head and key channel, g = -e^A_log softplus(W x + dt_bias); RMSNorm of
    each head, a sigmoid gate, and the output projection.

    Decays, state and norms are fp32 whatever the weights are. So are A_log [heads] and dt_bias [heads *
    head_dim] themselves, also after `.to(bfloat16)`: their rounding would add up over every token.
    """

    keep_fp32 = ("A_log", "dt_bias")

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        self.sizes = kda_sizes(config, settings)
        hidden, (heads, head_dim, conv_size, rank, _) = config.hidden_size, self.sizes
        width = heads * head_dim
        self.q_proj, self.k_proj, self.v_proj = (Linear(hidden, width) for _ in range(3))
        self.q_conv, self.k_conv, self.v_conv = (ShortConv(width, conv_size) for _ in range(3))
        self.f_a_proj, self.f_b_proj = Linear(hidden, rank), Linear(rank, width)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(width))
        self.b_proj = Linear(hidden, heads)
        self.g_a_proj, self.g_b_proj = Linear(hidden, rank), Linear(rank, width)
        self.o_norm = RMSNorm(head_dim, config.rms_norm_eps)
        self.o_proj = Linear(width, hidden)

    def init_weights(self, generator: torch.Generator) -> None:
        for conv in (self.q_conv, self.k_conv, self.v_conv):
            conv.init_weights(generator)

        def drawn(like: Tensor, low: float, high: float) -> Tensor:
            fresh = torch.empty(like.shape, dtype=torch.float32, device=generator.device)
            return fresh.uniform_(low, high, generator=generator)

        with torch.no_grad():
            self.A_log.copy_(drawn(self.A_log, *_RATE).log_())
            step = drawn(self.dt_bias, *(math.log(s) for s in _STEP)).exp_()
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is `step`

    def forward(self, x: Tensor, context: ForwardContext, state: KdaState | None = None) -> Tensor:
        heads, head_dim = self.sizes.heads, self.sizes.head_dim
        step = context.step if state is not None else None
        begins = positions = None
        if context.document_ids is not None:
            begins, positions = document_positions(context.document_ids)
        mixed = [self.q_proj(x), self.k_proj(x), self.v_proj(x)]
        tails = state.tails[:, step.rows] if state is not None and step is not None else (None,) * 3
        q, k, v = (
            conv(t, tail, positions).unflatten(-1, (heads, head_dim))
            for conv, t, tail in zip((self.q_conv, self.k_conv, self.v_conv), mixed, tails, strict=True)
        )
        q, k = unit(q) * head_dim**-0.5, unit(k)
        g, beta = self.decay(x), single(self.b_proj(x)).sigmoid()
        memory = None
        if state is not None and step is not None:
            memory = state.memory[step.rows]
            # A slice is a view, which is written below; autograd must not find it changed.
            memory = memory.clone() if torch.is_grad_enabled() else memory
            if (padded := padding(step, x.shape[1])) is not None:
                g = g.masked_fill(padded[:, :, None, None], 0.0)
                beta = beta.masked_fill(padded.unsqueeze(-1), 0.0)
        y, memory = delta_rule(q, k, v, g, beta, memory, begins, self.sizes.chunk)
        if state is not None and step is not None:
            state.memory[step.rows] = memory.detach()
            for store, t, tail in zip(state.tails, mixed, tails, strict=True):
                store[step.rows] = next_tail(t.detach(), tail, step.counts)
        gate = single(self.g_b_proj(self.g_a_proj(x))).sigmoid()
        y = self.o_norm(y).flatten(2) * gate
        return self.o_proj(y.to(x.dtype))

    def decay(self, x: Tensor) -> Tensor:
        """The logarithm of each key channel's decay, fp32 [B, T, heads, head_dim], at most 0."""
        step = F.softplus(single(self.f_b_proj(self.f_a_proj(x))) + single(self.dt_bias))
        return step.unflatten(-1, (self.sizes.heads, -1)) * -single(self.A_log).exp().unsqueeze(-1)

    @property
    def needs_mask(self) -> bool:
        return False

    @classmethod
    def unbounded(cls, config: ModelConfig, settings: Mapping[str, Any]) -> bool:
        return True

    @classmethod
    def new_state(
        cls, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> KdaState:
        return KdaState(batch, kda_sizes(config, config.mixers.get("kda", {})), dtype, device)


def unit(x: Tensor) -> Tensor:
    """x / sqrt(sum x^2 + 1e-6) over the last axis."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _LENGTH_EPS)
