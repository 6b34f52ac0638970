"""What the networks of all families have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ikirere.model.config import ModelConfig
from ikirere.model.layers.mixer import Linear


class Network(nn.Module):
    """A table of embeddings, a head that may be tied to it, and a shape."""

    config: ModelConfig
    embed_tokens: nn.Embedding
    lm_head: Linear | None

    @property
    def output_weight(self) -> Tensor:
        """The matrix [vocab_size, hidden_size] that turns hidden states into logits, tied or not."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in."""
        return self.embed_tokens.weight.dtype

    def num_parameters(self) -> int:
        """Trainable numbers, a tied matrix counted once. Works on the meta device."""
        return sum(p.numel() for p in self.parameters())
