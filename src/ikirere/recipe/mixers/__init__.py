"""The mixers that a layer pattern may name, one line each, and the families of models that they are part of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ikirere.recipe import pattern as _pattern
from ikirere.recipe.mixers.attention import Full, Hybrid, Window
from ikirere.recipe.mixers.base import MixerSection
from ikirere.recipe.mixers.decay import Mamba2, Mamba2Sizes, Retention, RetentionSizes
from ikirere.recipe.mixers.family import FAMILIES, DecoderFamily, Recursive, family_of
from ikirere.recipe.mixers.kda import Kda
from ikirere.recipe.mixers.mla import Mla, MlaSizes
from ikirere.recipe.mixers.mlp import Mlp
from ikirere.recipe.section import Section, checked

__all__ = [
    "FAMILIES", "MIXERS", "DecoderFamily", "Full", "Hybrid", "Kda", "Mamba2", "Mamba2Sizes", "MixerSection", "Mla",
    "MlaSizes", "Mlp", "Recursive", "Retention", "RetentionSizes", "Window", "check", "family_of", "layers", "period",
    "settings",
]  # fmt: skip

MIXERS: dict[str, type[MixerSection]] = {
    "full": Full,
    "window": Window,
    "hybrid": Hybrid,
    "kda": Kda,
    "mla": Mla,
    "mlp": Mlp,
    "mamba2": Mamba2,
    "retention": Retention,
}


def _names(family: str) -> tuple[str, ...]:
    return tuple(name for name, section in MIXERS.items() if family in section.families)


def period(pattern: str, family: str = "decoder") -> tuple[str, ...]:
    """The mixers of one period of a pattern. Raises ValueError."""
    return _pattern.period("layer_pattern", f"mixer of family {family}", pattern, _names(family))


def layers(pattern: str, depth: int, family: str = "decoder") -> tuple[str, ...]:
    """The mixer of each layer. Raises ValueError."""
    return _pattern.expand("layer_pattern", f"mixer of family {family}", pattern, _names(family), depth)


def settings(name: str, values: Mapping[str, Any]) -> MixerSection:
    """The checked settings of a mixer. Raises ValueError naming the key and the accepted ones."""
    return checked("mixers", MIXERS, name, values)


def check(given: Mapping[str, Mapping[str, Any]], family: str) -> None:
    """Raises ValueError for settings below `model.mixers` that no mixer of the family, nor the family itself, takes."""
    accepted: dict[str, type[Section]] = {name: MIXERS[name] for name in _names(family)}
    if FAMILIES[family].model_fields:
        accepted[family] = FAMILIES[family]
    for name, values in given.items():
        checked("mixers", accepted, name, values)
