"""What pretraining has to know of a family of models: one file per family, one line each in `families`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ikirere.model.build import Model, build_model
from ikirere.model.config import ModelConfig
from ikirere.pretrain.curriculum import CurriculumPhase
from ikirere.recipe.schema import Recipe
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokens.shards import Shard
from ikirere.train.callbacks import Source
from ikirere.train.objective import Objective
from ikirere.train.parallel import World

EVALUATION_ROWS = 8  # sequences per pass when measuring
Row = dict[str, Any]
Advance = Callable[[float], None]


def paired(rows: Sequence[Row], before: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pairs of rows of the documents that both have, in the order of `rows`; a document's n-th row with its n-th."""
    seen: Counter[tuple[str, str]] = Counter()
    old = {}
    for row in before:
        document = row["domain"], row["document"]
        old[document, seen[document]] = row
        seen[document] += 1
    seen.clear()
    pairs = []
    for row in rows:
        document = row["domain"], row["document"]
        if (document, seen[document]) in old:
            pairs.append((row, old[document, seen[document]]))
        seen[document] += 1
    return pairs


@dataclass(frozen=True)
class Figure:
    """A metric that is computed from held-out rows; kind, field and over as in `programme.metrics`."""

    name: str
    kind: Literal["ratio", "exp-ratio", "proportion"]
    field: str
    over: str | None = None
    domain: str | None = None  # its rows only


class Family(ABC):
    """How models of one kind are built, trained and measured on held-out text.

    What the loop trains is called the trainer: the model itself, or a module around it.
    """

    name: ClassVar[str]
    label: ClassVar[str]  # of held-out measuring, for people
    figure: ClassVar[str]  # the name of `overall`
    unit: ClassVar[str]  # of `overall`, for people
    makes: ClassVar[tuple[str, ...]]  # patterns of its figures' names, without milestone
    ratios: ClassVar[tuple[Figure, ...]] = ()  # of `compared` rows

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer

    @staticmethod
    @abstractmethod
    def check(recipe: Recipe) -> None:
        """Raises UserError for settings that training does not support for this family."""

    # ------------------------------------------------------------ training

    def build(self) -> Model:
        """The recipe's model with weights drawn from its seed, on the device of the recipe where there is one."""
        model = build_model(ModelConfig.from_recipe(self.recipe.model))
        model.reset_parameters(torch.Generator().manual_seed(self.recipe.seed))
        cuda = self.recipe.hardware.device != "cpu" and torch.cuda.is_available()
        return model.to("cuda" if cuda else "cpu")

    @abstractmethod
    def trainer(
        self,
        model: Any,
        phases: Sequence[CurriculumPhase],
        world: World,
        begun_with: Sequence[CurriculumPhase],
    ) -> nn.Module:
        """What the loop trains. begun_with: the phases as they were when training began."""

    @abstractmethod
    def source(
        self, trainer: Any, shards: Mapping[str, Shard], phases: Sequence[CurriculumPhase], world: World
    ) -> tuple[Source, list[str]]:
        """Batches, and lines for the user."""

    @abstractmethod
    def objective(self) -> Objective: ...

    def before(self, phases: Sequence[CurriculumPhase]) -> Callable[[int, Any], None]:
        """`Callbacks.before`: brings the trainer into the state of the step after `done` steps."""
        return lambda done, trainer: None

    @abstractmethod
    def finish(self, trainer: Any) -> None:
        """After the last step: the trainer becomes what is saved and measured."""

    @abstractmethod
    def measured(self, trainer: Any) -> Any:
        """The model of a trainer that is measured and saved."""

    # ------------------------------------------------------------ measuring

    @abstractmethod
    def heldout_rows(
        self, model: Any, heldout: Mapping[str, Shard], length: int, advance: Advance | None = None
    ) -> list[Row]:
        """Rows of figures on held-out documents, each with domain, document and sequence_length.

        length: tokens that the model sees at once. advance: called after each domain.
        """

    @abstractmethod
    def figures(self, domains: Sequence[str]) -> list[Figure]:
        """The metrics of rows that hold these domains."""

    @abstractmethod
    def overall(self, rows: Sequence[Row]) -> float:
        """One figure of all rows."""

    def compared(self, rows: Sequence[Row], before: Sequence[Row]) -> list[Row]:
        """Rows {domain, document, ...} of the figures `ratios`, of documents in both; [] where a family has none."""
        return []

    def compressors(self, heldout: Mapping[str, Shard]) -> list[Row]:
        """Rows {domain, compressor, bits, bytes} to compare with the model's; [] where they cannot be compared."""
        return []

    @abstractmethod
    def samples(self, model: Any, heldout: Mapping[str, Shard]) -> list[Row]:
        """A few held-out beginnings with the model's continuation or filling: rows {domain, prompt, continuation}."""
