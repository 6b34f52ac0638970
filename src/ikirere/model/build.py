"""From a shape to its network."""

from __future__ import annotations

import torch

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.recursive import RecursiveModel

Model = Decoder | RecursiveModel
FAMILIES: dict[str, type[Decoder] | type[RecursiveModel]] = {"decoder": Decoder, "recursive": RecursiveModel}


def build_model(config: ModelConfig) -> Model:
    """The network of `config.family`, with weights drawn from seed 0 (none on the meta device).

    Raises UserError for an unknown family and for parts that the family does not have.
    """
    if config.family not in FAMILIES:
        raise UserError(f"model.family {config.family!r} is not known; accepted are {', '.join(FAMILIES)}")
    return FAMILIES[config.family](config)


def on_meta(config: ModelConfig) -> Model:
    """The same without memory: shapes, names and counts."""
    with torch.device("meta"):
        return build_model(config)
