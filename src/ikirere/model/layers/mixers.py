"""The mixers a layer pattern may name: one line each."""

from __future__ import annotations

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.layers.attention import FullAttention
from ikirere.model.layers.hybrid import HybridAttention
from ikirere.model.layers.kda import KimiDeltaAttention
from ikirere.model.layers.mamba2 import Mamba2
from ikirere.model.layers.mixer import Mixer, check_settings
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
BOTH_WAYS = frozenset({"full", "kda", "mlp"})
"""What a recursive core may be made of; decoders take all but `mlp`, which sees later tokens."""


def mixers_of(config: ModelConfig) -> list[type[Mixer]]:
    """The mixer of each layer. Raises UserError for names that `MIXERS` does not hold or the family cannot use."""
    recursive = config.family == "recursive"
    names = [name for name in MIXERS if (name in BOTH_WAYS if recursive else name != "mlp")]
    accepted = f"accepted are {', '.join(names)}" + f" in family {config.family}" * recursive
    if unknown := sorted(set(config.layer_kinds) - set(names)):
        raise UserError(f"model.layer_pattern {config.layer_pattern!r}: no mixer {unknown[0]!r}; {accepted}")
    for name, settings in config.mixers.items():
        if recursive and name == "recursive":
            continue
        if name not in names:
            raise UserError(f"model.mixers.{name}: no such mixer; {accepted}")
        check_settings(name, settings, MIXERS[name].settings)
    return [MIXERS[kind] for kind in config.layer_kinds]
