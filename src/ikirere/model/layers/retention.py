"""Retention (Sun et al. 2023, RetNet, arXiv 2307.08621, section 2): a linear-time mixer with a state of fixed size per
head, which forgets at a rate of the head's own that never changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ikirere.model.config import ModelConfig
from ikirere.model.layers.conv import single
from ikirere.model.layers.decay import decay_rule
from ikirere.model.layers.mixer import ForwardContext, Linear, Mixer, settings_of
from ikirere.model.layers.norm import RMSNorm
from ikirere.model.layers.recurrent import RecurrentState, document_positions, padding
from ikirere.model.layers.rope import RopeSpec, rotate
from ikirere.recipe import mixers as recipe


def _checked(settings: Mapping[str, Any]) -> recipe.Retention:
    """Raises UserError naming the key of a setting that cannot be."""
    return settings_of(recipe.Retention, "retention", settings)


def log_decay(heads: int, device: torch.device) -> Tensor:
    """log(1 - 2^(-5 - h)) of heads h = 0, 1, ..., fp32 [heads]."""
    return torch.log1p(-torch.exp2(-5.0 - torch.arange(heads, dtype=torch.float32, device=device)))


class Retention(Mixer):
    """Per head h, with queries and keys rotated by RoPE (xPos's lengths are left out) and K the width of a key

        S <- (1 - 2^(-5 - h)) S + k v^T;    o = S^T q / sqrt(K)

    then RMSNorm of each head, a gate silu(W x), and the output projection. Nothing has a start of its own: decays are
    given, and all else is matrices and a norm. State and norm are fp32 whatever the weights are.
    """

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        self.sizes = s = _checked(settings).sizes(config.num_attention_heads, config.head_dim)
        self.uses_rope = self.rope(config, settings) is not None
        hidden = config.hidden_size
        self.q_proj, self.k_proj = (Linear(hidden, s.heads * s.key) for _ in range(2))
        self.v_proj, self.g_proj = (Linear(hidden, s.heads * s.value) for _ in range(2))
        self.o_norm = RMSNorm(s.value, config.rms_norm_eps)
        self.o_proj = Linear(s.heads * s.value, hidden)

    @classmethod
    def rope(cls, config: ModelConfig, settings: Mapping[str, Any]) -> RopeSpec | None:
        checked = _checked(settings)
        if not checked.rope:
            return None
        return RopeSpec(checked.sizes(config.num_attention_heads, config.head_dim).key, checked.rope_theta)

    def forward(self, x: Tensor, context: ForwardContext, state: RecurrentState | None = None) -> Tensor:
        s, step = self.sizes, context.step if state is not None else None
        q, k = (p(x).unflatten(-1, (s.heads, s.key)) for p in (self.q_proj, self.k_proj))
        v = self.v_proj(x).unflatten(-1, (s.heads, s.value))
        if self.uses_rope:
            cos, sin = context.rope_tables[self.rope_index]
            q, k = (rotate(single(t), cos, sin) for t in (q, k))
        g = log_decay(s.heads, x.device).expand(*x.shape[:2], -1)
        begins = memory = None
        if context.document_ids is not None:
            begins, _ = document_positions(context.document_ids)
        if state is not None and step is not None:
            memory = state.before(step)
            if (padded := padding(step, x.shape[1])) is not None:
                g = g.masked_fill(padded.unsqueeze(-1), 0.0)
                v = v.masked_fill(padded[:, :, None, None], 0.0)
        y, memory = decay_rule(single(q) * s.key**-0.5, k, v, g, memory, begins, s.chunk)
        if state is not None and step is not None:
            state.memory[step.rows] = memory.detach().to(state.memory.dtype)
        y = self.o_norm(y).flatten(2) * F.silu(single(self.g_proj(x)))
        return self.o_proj(y.to(x.dtype))

    @property
    def needs_mask(self) -> bool:
        return False

    @classmethod
    def unbounded(cls, config: ModelConfig, settings: Mapping[str, Any]) -> bool:
        return not _checked(settings).rope

    @classmethod
    def new_state(
        cls, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> RecurrentState:
        s = _checked(config.mixers.get("retention", {})).sizes(config.num_attention_heads, config.head_dim)
        return RecurrentState(batch, (0, 0), (s.heads, s.key, s.value), dtype, device)
