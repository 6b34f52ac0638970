"""A network over positions instead of attention (TRM-MLP, arXiv 2510.04871, section 4.5)."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field

from ikirere.recipe.ffns import FEED_FORWARD_COPIES
from ikirere.recipe.mixers.base import MixerSection
from ikirere.recipe.mixers.family import family_of
from ikirere.recipe.section import Positive
from ikirere.recipe.shape import ModelShape, SmallShape


def _positions(model: ModelShape) -> int:
    return model.max_position_embeddings + family_of(model).extra_positions


class Mlp(MixerSection):
    """A gated network over all positions instead of attention, in `recursive` models of one sequence length."""

    families: ClassVar[tuple[str, ...]] = ("recursive",)

    intermediate_size: Positive | None = Field(
        default=None, description="default: 8/3 of the positions, rounded up to a multiple of 256"
    )

    def width(self, positions: int) -> int:
        """Width of the network between its matrices."""
        return self.intermediate_size or -(-round(positions * 8 / 3) // 256) * 256

    def parameters(self, model: ModelShape) -> tuple[int, int]:
        positions = _positions(model)
        return 3 * positions * self.width(positions), 0

    def forward_flops(self, model: ModelShape, length: int) -> float:
        """The products are made for every channel and not for every position: a position's share of them."""
        return self.product_flops(model) * model.hidden_size / _positions(model)

    def activation_elements(self, model: ModelShape, length: int, packed: bool) -> tuple[float, float]:
        positions = _positions(model)
        return 0.0, FEED_FORWARD_COPIES * self.width(positions) * model.hidden_size / positions

    def state_bytes(self, model: ModelShape, context: int, bits: int) -> float:
        """None: rows are computed whole."""
        return 0.0

    def shrunk(self, model: ModelShape, small: SmallShape) -> Self:
        return self.model_copy(update=small.lengths(self, "intermediate_size"))
