"""Families of models: what surrounds their layers, and how often a token passes through them."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field

from ikirere.recipe.section import Fraction, Positive, Section
from ikirere.recipe.shape import ModelShape


class DecoderFamily(Section):
    """Each token passes through the layers once and sees earlier tokens only. It has no settings."""

    whole_row: ClassVar[bool] = False
    """Whether attention sees later tokens too."""

    @property
    def both_directions(self) -> bool:
        """Whether mixers of one direction run forward and reversed."""
        return False

    @property
    def extra_positions(self) -> int:
        """Positions before the first token."""
        return 0

    @property
    def answer_passes(self) -> int:
        """Passes of a token through the layers for one answer."""
        return 1

    @property
    def training_passes(self) -> tuple[int, int]:
        """(forward, backward) passes of a token through the layers in one optimiser step."""
        return 1, 1

    def parameters(self, model: ModelShape) -> tuple[int, int, int]:
        """Weights of (tables besides the tokens', norms of one layer, what follows the last layer)."""
        return 0, 2 * model.hidden_size, model.hidden_size

    def training_elements(self, model: ModelShape, parameters: int, rows: int, length: int) -> int:
        """fp32 elements besides weights, gradients, moments and activations, for `rows` sequences of `length` tokens."""
        return 0

    def shrunk(self) -> Self:
        """The settings in a rehearsal."""
        return self

    def for_fewer_steps(self, times: float) -> Self:
        """The settings in a run of `times` fewer steps."""
        return self


class Recursive(DecoderFamily):
    """Recursion over depth of a `recursive` model (arXiv 2510.04871): T cycles of n updates of the latent and one of the
    answer per supervision step, the last cycle with gradient. An optimiser step makes one supervision step."""

    whole_row: ClassVar[bool] = True

    inner_updates: Positive = Field(default=6, description="n: updates of the latent per cycle")
    cycles: Positive = Field(
        default=3, description="T: cycles per supervision step, the last one with gradient"
    )
    supervision_steps: Positive = 16
    halt_exploration: Fraction = 0.1
    puzzle_tokens: Positive = 16
    puzzles: int = Field(
        default=0, ge=0, description="rows of the table of puzzle embeddings; 0: no table, zeros in front"
    )
    ema: Fraction = 0.999
    bidirectional: bool = Field(default=True, description="causal mixers run forward and time-reversed")

    @property
    def both_directions(self) -> bool:
        return self.bidirectional

    @property
    def extra_positions(self) -> int:
        return self.puzzle_tokens

    @property
    def answer_passes(self) -> int:
        return self.cycles * (self.inner_updates + 1) * self.supervision_steps

    @property
    def training_passes(self) -> tuple[int, int]:
        return self.cycles * (self.inner_updates + 1), self.inner_updates + 1

    def parameters(self, model: ModelShape) -> tuple[int, int, int]:
        """Puzzle embeddings; norms without weights; the halting head with its bias."""
        return self.puzzles * model.hidden_size, 0, model.hidden_size + 1

    def training_elements(self, model: ModelShape, parameters: int, rows: int, length: int) -> int:
        """The average of the weights, and answer and latent of every row that is carried to the next step."""
        return parameters + 2 * rows * (length + self.puzzle_tokens) * model.hidden_size

    def shrunk(self) -> Self:
        """Two cycles keep one without gradient before the one with."""
        few = {"inner_updates": 1, "cycles": 2, "supervision_steps": 3, "puzzle_tokens": 4}
        return self.model_copy(update={key: min(most, getattr(self, key)) for key, most in few.items()})

    def for_fewer_steps(self, times: float) -> Self:
        """The average reaches back over the same share of the steps."""
        return self.model_copy(update={"ema": round(max(0.0, 1 - (1 - self.ema) * times), 4)})


FAMILIES: dict[str, type[DecoderFamily]] = {"decoder": DecoderFamily, "recursive": Recursive}


def family_of(model: ModelShape) -> DecoderFamily:
    """The settings of the model's family, defaults where the recipe gives none."""
    return FAMILIES[model.family].model_validate(model.mixers.get(model.family, {}))
