"""The feed-forward kinds a pattern may name: one line each."""

from __future__ import annotations

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.layers.ffn import FeedForward, SwiGLU
from ikirere.model.layers.mixer import check_settings
from ikirere.model.layers.moe import MixtureOfExperts

FFNS: dict[str, type[FeedForward]] = {
    "dense": SwiGLU,
    "moe": MixtureOfExperts,
}


def ffns_of(config: ModelConfig) -> list[type[FeedForward]]:
    """The feed-forward kind of each layer. Raises UserError for names that `FFNS` does not hold."""
    accepted = f"accepted are {', '.join(FFNS)}"
    if unknown := sorted(set(config.ffn_kinds) - set(FFNS)):
        raise UserError(
            f"model.ffn_pattern {config.ffn_pattern!r}: no feed-forward {unknown[0]!r}; {accepted}"
        )
    for name, settings in config.ffns.items():
        if name not in FFNS:
            raise UserError(f"model.ffns.{name}: no such feed-forward; {accepted}")
        check_settings(name, settings, FFNS[name].settings, "ffns")
    return [FFNS[kind] for kind in config.ffn_kinds]
