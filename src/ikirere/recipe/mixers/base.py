"""What the settings of every mixer know of it: what one layer weighs, computes and keeps."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Self

from ikirere.recipe.section import Section
from ikirere.recipe.shape import ModelShape, SmallShape

STATE_BYTES = 4  # of an element of a recurrent state, which is fp32 whatever the cache is


class MixerSection(Section):
    """Settings of a mixer below `model.mixers.NAME`. The methods count one layer of a given model."""

    families: ClassVar[tuple[str, ...]] = ("decoder",)
    """Families of models whose layers may be of this kind."""
    one_direction: ClassVar[bool] = False
    """Whether a layer can only look back, so that a bidirectional core runs it forward and reversed in time."""

    @abstractmethod
    def parameters(self, model: ModelShape) -> tuple[int, int]:
        """(weights of matrices, all other weights)."""

    @abstractmethod
    def forward_flops(self, model: ModelShape, length: int) -> float:
        """Floating point operations per token, mean over a sequence of `length` tokens: `product_flops`, and the mixing."""

    def product_flops(self, model: ModelShape) -> float:
        """Operations per token of the products with all matrices: a multiplication and an addition per weight."""
        return 2.0 * self.parameters(model)[0]

    @abstractmethod
    def activation_elements(self, model: ModelShape, length: int, packed: bool) -> tuple[float, float]:
        """(fp32 elements, elements in the working precision) per token that autograd keeps for the backward pass, without
        the layer's norms. packed: rows hold several documents and attention needs a mask."""

    @abstractmethod
    def state_bytes(self, model: ModelShape, context: int, bits: int) -> float:
        """Bytes of the decode state of one sequence after `context` tokens, keys and values in `bits` per element."""

    def read_bytes(self, model: ModelShape, context: int, bits: int) -> float:
        """Bytes of that state that decoding one more token reads: all of it where nothing is chosen."""
        return self.state_bytes(model, context, bits)

    def shrunk(self, model: ModelShape, small: SmallShape) -> Self:
        """The settings in a rehearsal, where `model` has the shape `small`."""
        return self
