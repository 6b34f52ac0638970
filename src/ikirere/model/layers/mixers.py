"""The layers of the mixers that `recipe.mixers` knows: one line each."""

from __future__ import annotations

from ikirere.model.config import ModelConfig
from ikirere.model.layers.attention import FullAttention
from ikirere.model.layers.hybrid import HybridAttention
from ikirere.model.layers.kda import KimiDeltaAttention
from ikirere.model.layers.mamba2 import Mamba2
from ikirere.model.layers.mixer import Mixer
from ikirere.model.layers.mla import LatentAttention
from ikirere.model.layers.mlp import PositionMlp
from ikirere.model.layers.retention import Retention
from ikirere.model.layers.window import WindowAttention

MIXERS: dict[str, type[Mixer]] = {
    "full": FullAttention,
    "window": WindowAttention,
    "hybrid": HybridAttention,
    "kda": KimiDeltaAttention,
    "mla": LatentAttention,
    "mlp": PositionMlp,
    "mamba2": Mamba2,
    "retention": Retention,
}


def mixers_of(config: ModelConfig) -> list[type[Mixer]]:
    """The mixer of each layer. Raises UserError for names and settings that the family does not take."""
    config.check_settings()
    return [MIXERS[kind] for kind in config.layer_kinds]
