"""Feed-forward network with a SiLU gate (SwiGLU: Shazeer 2020, arXiv 2002.05202, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ikirere.model.config import ModelConfig
from ikirere.model.layers.mixer import ForwardContext, Linear


class FeedForward(nn.Module):
    """Base of all feed-forward kinds: x [B, T, hidden_size] -> the same shape, each position by itself."""

    residual_projections: ClassVar[tuple[str, ...]] = ("down_proj",)
    """Matrices that write into the residual stream; they start smaller."""
    auxiliary: Tensor | None = None
    """What the last forward pass in training adds to the loss."""
    auxiliary_name: ClassVar[str] = "auxiliary_loss"
    """As what the log has it."""

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__()

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        raise TypeError(f"{type(self).__name__} computes nothing; write its forward")

    def init_weights(self, generator: torch.Generator) -> None:
        """Sets what is neither a normal matrix nor a norm, after all else is drawn."""


class SwiGLU(FeedForward):
    """down(silu(gate(x)) * up(x)). x [B, T, hidden_size] -> the same shape and dtype."""

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
