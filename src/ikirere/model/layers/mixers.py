"""The mixers a layer pattern may name: one line each."""

from __future__ import annotations

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.layers.attention import FullAttention
from ikirere.model.layers.kda import KimiDeltaAttention
from ikirere.model.layers.mixer import Mixer, check_settings
from ikirere.model.layers.mla import LatentAttention
from ikirere.model.layers.window import WindowAttention

MIXERS: dict[str, type[Mixer]] = {
    "full": FullAttention,
    "window": WindowAttention,
    "kda": KimiDeltaAttention,
    "mla": LatentAttention,
}


def mixers_of(config: ModelConfig) -> list[type[Mixer]]:
    """The mixer of each layer. Raises UserError for names that `MIXERS` does not hold."""
    accepted = f"accepted are {', '.join(MIXERS)}"
    if unknown := sorted(set(config.layer_kinds) - set(MIXERS)):
        raise UserError(f"model.layer_pattern {config.layer_pattern!r}: no mixer {unknown[0]!r}; {accepted}")
    for name, settings in config.mixers.items():
        if name not in MIXERS:
            raise UserError(f"model.mixers.{name}: no such mixer; {accepted}")
        check_settings(name, settings, MIXERS[name].settings)
    return [MIXERS[kind] for kind in config.layer_kinds]
