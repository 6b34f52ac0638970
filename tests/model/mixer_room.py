"""What tests of mixers share: models far from their start, tokens, and what autograd keeps of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.recipe.schema import Model


def scattered(config: ModelConfig, by: float = 0.1) -> Decoder:
    """A decoder whose weights are far from their start, each kind within its own range."""
    model, r = Decoder(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=r) * by)
    return model


def tokens(seed: int, batch: int, length: int) -> Tensor:
    """[batch, length], from 0 to 49."""
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def kept_by_a_layer(model: Model, batch: int, length: int, packed: bool) -> int:
    """Bytes that autograd keeps of one more layer, weights apart."""

    def saved(depth: int) -> int:
        decoder = Decoder(ModelConfig.from_recipe(model.model_copy(update={"num_hidden_layers": depth})))
        weights = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
        seen: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                seen[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        documents = torch.zeros(batch, length, dtype=torch.long) if packed else None
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            decoder.hidden(torch.zeros(batch, length, dtype=torch.long), document_ids=documents).sum()
        return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())

    return saved(3) - saved(2)
