"""The layers of the feed-forward kinds that `recipe.ffns` knows: one line each."""

from __future__ import annotations

from ikirere.model.config import ModelConfig
from ikirere.model.layers.ffn import FeedForward, SwiGLU
from ikirere.model.layers.moe import MixtureOfExperts

FFNS: dict[str, type[FeedForward]] = {
    "dense": SwiGLU,
    "moe": MixtureOfExperts,
}


def ffns_of(config: ModelConfig) -> list[type[FeedForward]]:
    """The feed-forward kind of each layer. Raises UserError for names and settings that are not known."""
    config.check_settings()
    return [FFNS[kind] for kind in config.ffn_kinds]
