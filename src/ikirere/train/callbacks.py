"""What a stage hands to the training loop and gets back from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ikirere.tokens.batch import Batch


class Source(Protocol):
    """Where batches come from; `tokens.loader.PackedLoader` is one."""

    def next(self) -> Batch:
        """This rank's rows of the next optimiser step, on the CPU."""

    def state_dict(self) -> dict[str, Any]:
        """The position, JSON-able."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a position."""


class Bar(Protocol):
    """A progress bar in use."""

    def advance(self, amount: float = 1, **shown: object) -> None: ...


Every = tuple[int | set[int] | frozenset[int], Callable[[int, Any], None]]


@dataclass
class Callbacks:
    """What a stage observes and does while training.

    progress: (label, total, unit) -> a progress bar. say: a line for the user. track: scalars at a step.
    every: (n, f) calls f(step, model) after each n-th step, (set, f) after the steps of the set; steps count
    from 1. They run before the checkpoint of that step, so what they write is there when it is; randomness and
    training mode are restored afterwards. Not called again for steps before the one that a run resumes from.
    before: called with the number of steps done ahead of every step, also of the first after a resume; for what
    must hold from some step on. It must depend on its arguments only.
    resumed: called once with the number of steps done, 0 at a fresh start, before any step is made.
    milestones: step -> name; a checkpoint is written after these steps and kept. stops: what `every` may raise to end
    training after a step; its checkpoint is written first.
    go_on: the settings that differ from those of the checkpoint, key -> [old, new]; written into the log where training
    continues from a checkpoint of another key.
    """

    progress: Callable[[str, float, str], AbstractContextManager[Bar]] | None = None
    say: Callable[[str], None] = lambda line: None
    track: Callable[[Mapping[str, float], int], None] = lambda values, step: None
    every: list[Every] = field(default_factory=list)
    before: Callable[[int, Any], None] = lambda done, model: None
    resumed: Callable[[int], None] = lambda done: None
    milestones: Mapping[int, str] = field(default_factory=dict)
    stops: tuple[type[BaseException], ...] = ()
    go_on: Mapping[str, Any] = field(default_factory=dict)
    label: str = "training"


@dataclass(frozen=True)
class TrainSummary:
    """What a run did. Times are of training steps (data, forward, backward, optimiser) over all resumes."""

    steps: int
    tokens: int  # positions in all batches, with or without loss
    seconds: float
    tokens_per_second: float
    final_loss: float  # mean over the steps of the log's last row
    peak_rss_bytes: int  # of the process (on a card: of the card) while training, since the last resume
    start_rss_bytes: int  # held when training began
    wait_seconds: float  # waiting for data
    log: Path
    precision: str = "fp32"
    compiled: bool = False
    resumed_from: int = 0


class NoBar:
    """A bar that shows nothing."""

    def advance(self, amount: float = 1, **shown: object) -> None:
        """Nothing."""
