"""Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, sections 6 and 7): a linear-time mixer with a state of fixed size per
head, which every token makes forget by a step of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ikirere.model.config import ModelConfig
from ikirere.model.layers.conv import ShortConv, next_tail, single
from ikirere.model.layers.decay import decay_rule
from ikirere.model.layers.mixer import ForwardContext, Linear, Mixer, settings_of
from ikirere.model.layers.norm import RMSNorm
from ikirere.model.layers.recurrent import RecurrentState, document_positions, padding
from ikirere.recipe import mixers as recipe

_RATE = (1.0, 16.0)  # e^A_log starts within
_STEP = (1e-3, 0.1)  # softplus(dt_bias) starts within


def mamba2_sizes(config: ModelConfig, settings: Mapping[str, Any]) -> recipe.Mamba2Sizes:
    """Raises UserError naming the key of a setting that cannot be."""
    return settings_of(recipe.Mamba2, "mamba2", settings).sizes(config.hidden_size)


class Mamba2(Mixer):
    """z, x, B, C, dt = W u; x, B and C through a short convolution; dt = softplus(dt + dt_bias). Per head

        S <- e^(A dt) S + B (dt x)^T;    y = S^T C + D x,    A = -e^A_log

    then RMSNorm(y silu(z)), over the heads of each group by themselves, and the output projection.

    B and C belong to groups of heads. Steps, decays, state and norm are fp32 whatever the weights are, and so are
    A_log, dt_bias and D [heads] themselves, also after `.to(bfloat16)`.
    """

    residual_projections = ("out_proj",)
    keep_fp32 = ("A_log", "dt_bias", "D")

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        self.sizes = s = mamba2_sizes(config, settings)
        self.in_proj = Linear(config.hidden_size, s.width + s.channels + s.heads)
        self.conv = ShortConv(s.channels, s.conv_size, bias=True)
        self.A_log = nn.Parameter(torch.empty(s.heads))
        self.dt_bias = nn.Parameter(torch.empty(s.heads))
        self.D = nn.Parameter(torch.empty(s.heads))
        self.norm = RMSNorm(s.width, config.rms_norm_eps)
        self.out_proj = Linear(s.width, config.hidden_size)

    def init_weights(self, generator: torch.Generator) -> None:
        """As the authors' code: rates uniform, steps log-uniform, D one, the convolution uniform."""
        self.conv.init_weights(generator)

        def drawn(low: float, high: float) -> Tensor:
            fresh = torch.empty(self.sizes.heads, dtype=torch.float32, device=generator.device)
            return fresh.uniform_(low, high, generator=generator)

        with torch.no_grad():
            self.A_log.copy_(drawn(*_RATE).log_())
            step = drawn(*(math.log(s) for s in _STEP)).exp_()
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is `step`
            self.D.fill_(1.0)

    def forward(self, x: Tensor, context: ForwardContext, state: RecurrentState | None = None) -> Tensor:
        s, step = self.sizes, context.step if state is not None else None
        begins = positions = tail = memory = None
        if context.document_ids is not None:
            begins, positions = document_positions(context.document_ids)
        gate, mixed, raw = self.in_proj(x).split((s.width, s.channels, s.heads), dim=-1)
        dt = F.softplus(single(raw) + single(self.dt_bias))
        if state is not None and step is not None:
            tail, memory = state.tail[step.rows], state.before(step)
            if (padded := padding(step, x.shape[1])) is not None:
                dt = dt.masked_fill(padded.unsqueeze(-1), 0.0)  # no decay, and nothing is written
        inner, b, c = self.conv(mixed, tail, positions).split(
            (s.width, s.groups * s.state, s.groups * s.state), dim=-1
        )
        inner = inner.unflatten(-1, (s.heads, s.head_dim))
        b, c = (t.unflatten(-1, (s.groups, s.state)) for t in (b, c))
        g = dt * -single(self.A_log).exp()
        y, memory = decay_rule(c, b, inner * dt.unsqueeze(-1), g, memory, begins, s.chunk)
        if state is not None and step is not None and tail is not None:
            state.memory[step.rows] = memory.detach().to(state.memory.dtype)
            state.tail[step.rows] = next_tail(mixed.detach(), tail, step.counts)
        y = torch.addcmul(y, inner, single(self.D).unsqueeze(-1)).flatten(2) * F.silu(single(gate))
        return self.out_proj(self._normed(y).to(x.dtype))

    def _normed(self, y: Tensor) -> Tensor:
        if self.sizes.groups == 1:
            return self.norm(y)
        grouped = y.unflatten(-1, (self.sizes.groups, -1))
        grouped = F.rms_norm(grouped, grouped.shape[-1:], None, self.norm.eps)
        return grouped.flatten(2) * single(self.norm.weight)

    @property
    def needs_mask(self) -> bool:
        return False

    @classmethod
    def unbounded(cls, config: ModelConfig, settings: Mapping[str, Any]) -> bool:
        return True

    @classmethod
    def new_state(
        cls, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> RecurrentState:
        s = mamba2_sizes(config, config.mixers.get("mamba2", {}))
        return RecurrentState(
            batch, (s.conv_size - 1, s.channels), (s.heads, s.state, s.head_dim), dtype, device
        )
