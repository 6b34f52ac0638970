"""What a stage is, what it is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ikirere.common.files import write_rows
from ikirere.programme.metrics import Kind, Metric, measure
from ikirere.recipe.schema import Recipe


class GateStop(Exception):
    """The decision of a gate judged in the middle of a stage is stop. The stage leaves its state on the disk and passes
    it on; the same command judges again and continues only where the gate no longer stops."""


class Progress(Protocol):
    """A bar with rate and time left."""

    def advance(self, amount: float = 1, **shown: object) -> None:
        """Move on by `amount` units; `shown` are short values beside the bar (loss=2.31)."""


@dataclass(frozen=True)
class Continued:
    """A `--go-on`: training continued from `step` with settings that differ from `config`, those used until then."""

    step: int
    config: Mapping[str, Any]  # what `Stage.config` gave before the change


@dataclass
class StageContext:
    """All that a stage may touch: it reads `inputs`, writes below `folder` and nowhere else.

    key: of this stage's settings and inputs; checkpoints carry it. accepted: keys of earlier settings from whose
    checkpoints this training continues (`--go-on`). continued: the changes made that way, oldest first.
    judge: judges the gates that name these metrics, in the middle of the stage; raises GateStop where a decision is stop.
    """

    recipe: Recipe
    recipe_folder: Path  # relative source paths start here
    folder: Path  # runs/NAME/STAGE, exists; keeps partial work between kills
    inputs: Mapping[str, Path]  # stage name -> its folder, for the stages in `needs` that are in the recipe
    rehearsal: bool
    progress: Callable[[str, float, str], AbstractContextManager[Progress]]  # (label, total, unit)
    say: Callable[[str], None]  # one line for the user, kept in the stage's log
    track: Callable[[Mapping[str, float], int], None]  # metrics at a step, for the tracker
    run_folder: Path = field(default_factory=Path)
    key: str = ""
    accepted: frozenset[str] = frozenset()
    continued: tuple[Continued, ...] = ()
    judge: Callable[[Iterable[Metric]], None] = lambda metrics: None

    @property
    def seed(self) -> int:
        return self.recipe.seed

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> str:
        """Write raw results as `folder/name` (JSONL), whole or not at all; returns `name`."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, rows)
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


class Stage:
    """One link of the chain. Deterministic for a seed; killed at any point, `run` is called again with the folder as it
    was left and must end with the same outputs. `run` is also called again on a finished folder, where only
    `measuring` changed or a file is damaged: it then repeats no work whose result is there.
    """

    name: ClassVar[str]
    needs: ClassVar[
        tuple[str, ...]
    ] = ()  # stages whose folders it reads; those not in the recipe are left out
    makes: ClassVar[tuple[str, ...]] = ()
    """Patterns of the names of its metrics, such as `bits_per_byte/{domain}@{milestone}`. `{domain}`, `{milestone}`
    and `{kind}` stand for the names that the recipe gives; any other placeholder for one or more characters without
    `/` and `@`."""
    outputs: ClassVar[tuple[str, ...]] = ()
    """Artifacts (files or folders) that later stages read. Their bytes, not the stage's settings, are what outdates
    those. Empty: nothing that it makes outdates a later stage."""
    trains: ClassVar[bool] = (
        False  # has checkpoints: damage and changes are mended from them, `--go-on` is possible
    )
    always: ClassVar[bool] = False  # also runs after a gate has stopped the run, on what there is then
    reads_results: ClassVar[bool] = (
        False  # reads result.json of every stage before it: rebuilt where one changed
    )

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        """The settings that the outputs depend on, under the recipe's own key paths: {"sft": {...}}. JSON-able."""
        raise TypeError(f"{type(self).__name__} has no config")

    def measuring(self, recipe: Recipe) -> Mapping[str, Any]:
        """Settings that change what is measured, not what is made. A change calls `run` on the finished folder."""
        return {}

    def external(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        """Label -> hash of the content of each thing it reads from outside the run folder and the recipe."""
        return {}

    def surroundings(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        """Label -> hash of what it reads of the machine (installed packages). A change marks a finished result and
        does not outdate it."""
        return {}

    def check(self, recipe: Recipe, recipe_folder: Path) -> None:
        """Raises UserError, naming the key, for everything that can be refused before the stage's inputs exist."""

    def can_go_on(self, changed: Iterable[str]) -> list[str]:
        """The changed key paths with which a training that has begun cannot continue."""
        return list(changed)

    def run(self, context: StageContext) -> StageResult:
        raise TypeError(f"{type(self).__name__} has no run")
