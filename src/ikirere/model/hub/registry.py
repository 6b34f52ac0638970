"""The formats: one line each. A model is written as the first public class that can hold it, else as our own."""

from __future__ import annotations

from ikirere.model.config import ModelConfig
from ikirere.model.hub.dense import Llama, Qwen3
from ikirere.model.hub.formats import Format
from ikirere.model.hub.kimi_linear import KimiLinear
from ikirere.model.hub.moe import Mixtral, Olmoe, Qwen3Moe
from ikirere.model.hub.own import OWN
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


def why_no_public_class(config: ModelConfig) -> str | None:
    """Each public class's reason for not holding this shape, in one line; None where one can hold it."""
    if config.family != "decoder":
        return f"model.family {config.family!r}: they hold decoders"
    reasons = []
    for candidate in FORMATS:
        reason = candidate.refuses(config)
        if reason is None:
            return None
        reasons.append(f"{candidate.architecture}: {reason}")
    return "; ".join(reasons)


def notice(config: ModelConfig) -> str | None:
    """What a user should know of a folder in our own format, in one line; None where a public class holds the model."""
    if why_no_public_class(config) is None:
        return None
    return (
        f"no public transformers class holds this model ({config.family}, {config.layer_pattern!r}, "
        f"{config.ffn_pattern!r}): its folder is our own and opens where ikirere is installed, in transformers after "
        "`import ikirere.model.hub.auto`"
    )


def format_for(config: ModelConfig) -> Format:
    """The format a model is written in: the first public class that can hold it, else our own."""
    public = FORMATS if config.family == "decoder" else ()
    return next(c for c in (*public, *OWN) if c.refuses(config) is None)


def format_named(name: str | None, model_type: str | None) -> Format | None:
    """The format of a config.json, by architecture, else by model_type."""
    for candidate in (*FORMATS, *OWN):
        if candidate.architecture == name or (name is None and candidate.model_type == model_type):
            return candidate
    return None
