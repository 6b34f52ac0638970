"""The formats: one line each. A model is written as the first that can hold it."""

from __future__ import annotations

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.hub.dense import Llama, Qwen3
from ikirere.model.hub.formats import Format
from ikirere.model.hub.kimi_linear import KimiLinear
from ikirere.model.hub.moe import Mixtral, Olmoe, Qwen3Moe
from ikirere.model.hub.windowed import GraniteSWA, Olmo3

FORMATS: tuple[Format, ...] = (
    Llama(),
    Qwen3(),
    GraniteSWA(),
    Olmo3(),
    KimiLinear(),
    Qwen3Moe(),
    Olmoe(),
    Mixtral(),
)


def format_for(config: ModelConfig) -> Format:
    """The format a model is written in. Raises UserError with each format's reason where none can hold it."""
    reasons = []
    for candidate in FORMATS:
        reason = candidate.refuses(config)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.architecture}: {reason}")
    raise UserError("no Hugging Face class can hold this model: " + "; ".join(reasons))


def format_named(name: str | None, model_type: str | None) -> Format | None:
    """The format of a config.json, by architecture, else by model_type."""
    for candidate in FORMATS:
        if candidate.architecture == name or (name is None and candidate.model_type == model_type):
            return candidate
    return None
