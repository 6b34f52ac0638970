"""A gated network over all positions, the same for every channel: what the Tiny Recursive Model uses instead of
attention where sequences are short and of one length (Jolicoeur-Martineau 2025, arXiv 2510.04871, section 4.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.layers.mixer import ForwardContext, Linear, Mixer
from ikirere.recipe import mixers as recipe


class PositionMlp(Mixer):
    """down(silu(gate(x^T)) * up(x^T))^T: x [B, P, hidden_size] -> the same shape, P the one length it was built for.

    P is max_position_embeddings and the positions in front. Padding counts as zeros; rows of several documents raise
    UserError, as other lengths do: a weight belongs to a position.
    """

    residual_projections = ("down_proj",)

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        front = recipe.Recursive.model_validate(dict(config.mixers.get("recursive", {}))).puzzle_tokens
        self.front, self.positions = front, config.max_position_embeddings + front
        width = recipe.Mlp.model_validate(dict(settings)).width(self.positions)
        self.gate_proj, self.up_proj = (Linear(self.positions, width) for _ in range(2))
        self.down_proj = Linear(width, self.positions)

    def forward(self, x: Tensor, context: ForwardContext, state: Any = None) -> Tensor:
        if x.shape[1] != self.positions:
            raise UserError(
                f"a row of {x.shape[1] - self.front} tokens; a core with the mixer mlp takes rows of "
                f"model.max_position_embeddings {self.positions - self.front} tokens only"
            )
        if context.document_ids is not None:
            if context.document_ids.amax() > 0:
                raise UserError("the mixer mlp takes one document per row")
            x = x.masked_fill((context.document_ids < 0).unsqueeze(-1), 0.0)
        x = x.mT
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)).mT
