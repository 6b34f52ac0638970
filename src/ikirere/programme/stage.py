"""What a stage is, what it is given and what it gives back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ikirere.programme.metrics import Kind, Metric, measure
from ikirere.recipe.schema import Recipe


class Progress(Protocol):
    """A bar with rate and time left."""

    def advance(self, amount: float = 1, **shown: object) -> None:
        """Move on by `amount` units; `shown` are short values beside the bar (loss=2.31)."""


@dataclass
class StageContext:
    """All that a stage may touch: it reads `inputs`, writes below `folder` and nowhere else."""

    recipe: Recipe
    recipe_folder: Path  # relative source paths start here
    folder: Path  # runs/NAME/STAGE, exists; keeps partial work between kills
    inputs: Mapping[str, Path]  # stage name -> its folder, for the stages in `needs` that are in the recipe
    rehearsal: bool
    progress: Callable[[str, float, str], AbstractContextManager[Progress]]  # (label, total, unit)
    say: Callable[[str], None]  # one line for the user, kept in the stage's log
    track: Callable[[Mapping[str, float], int], None]  # metrics at a step, for the tracker
    run_folder: Path = field(default_factory=Path)

    @property
    def seed(self) -> int:
        return self.recipe.seed

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> str:
        """Write raw results as `folder/name` (JSONL), whole or not at all; returns `name`."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        with temporary.open("w", encoding="utf-8") as handle:
            for row in rows:
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
        temporary.replace(path)
        return name

    def metric(
        self,
        name: str,
        kind: Kind,
        raw: str,
        field: str,
        over: str | None = None,
        where: dict[str, Any] | None = None,
        confidence: float = 0.95,
    ) -> Metric:
        """Derive a metric from a raw file of this stage."""
        return measure(self.folder, name, kind, raw, field, over, where, confidence)


@dataclass
class StageResult:
    """Metrics with their origin, and the files that later stages and people read."""

    metrics: list[Metric] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)  # files or folders, relative to the stage's folder


class Stage(Protocol):
    """One link of the chain. Deterministic for a seed; killed at any point, `run` is called again with the
    folder as it was left and must end with the same artifacts.

    A class that says `always: ClassVar[bool] = True` also runs after a gate has stopped the run, on what
    there is then (a report of the run that failed).
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]  # stages whose folders it reads; those not in the recipe are left out

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        """The part of the recipe that this stage's result depends on (JSON-able; it is hashed)."""

    def external(self, recipe: Recipe, recipe_folder: Path) -> str:
        """Fingerprint of what it reads from outside the run folder; '' where there is nothing."""

    def run(self, context: StageContext) -> StageResult: ...
