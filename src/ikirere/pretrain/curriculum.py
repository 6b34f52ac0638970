"""The phases that a training really runs: those of its recipe, and what earlier versions of the recipe had done before
`--go-on` changed them."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ikirere.errors import UserError
from ikirere.recipe.sections import Phase
from ikirere.tokens.loader import LoaderPhase


@dataclass(frozen=True)
class CurriculumPhase(LoaderPhase):
    """A phase with nothing left to defaults. rope_theta: RoPE's base; attention: the layer pattern it runs as."""

    rope_theta: float = 10_000.0
    attention: str = "full"


def phases_of(
    phases: Sequence[Phase | Mapping[str, Any]], rope_theta: float, attention: str
) -> list[CurriculumPhase]:
    """A recipe's phases, or their plain values. A base that a phase does not name is that of the phase before it, at
    first the model's; attention that it does not name is the model's."""
    made: list[CurriculumPhase] = []
    for phase in phases:
        values = phase.model_dump() if isinstance(phase, Phase) else phase
        rope_theta = values.get("rope_theta") or rope_theta
        made.append(
            CurriculumPhase(
                values["steps"],
                values["sequence_length"],
                values["batch_size"],
                dict(values["mixture"]),
                values.get("long_fraction"),
                None,
                rope_theta,
                values.get("attention") or attention,
            )
        )
    return made


def spliced_phases(
    continued: Sequence[tuple[int, Sequence[CurriculumPhase]]], phases: Sequence[CurriculumPhase]
) -> list[CurriculumPhase]:
    """The phases that a training with changed settings runs, from its first step to its last.

    continued: (step of the change, phases until then), oldest first. phases: the recipe's. Up to each step of a change
    these are the phases before it, from there on those after it; the phase in which a change falls is cut, and
    neighbours that differ in nothing but steps are one. A cut or extended phase keeps the layout of rows it began with
    (`LoaderPhase.layout`), so that all batches up to the change are what they were.
    Raises UserError where the phases end before the step of a change.
    """
    versions = [list(before) for _, before in continued] + [list(phases)]
    run = versions[0]
    for (step, _), after in zip(continued, versions[1:]):
        if steps_of(after) < step:
            raise UserError(
                f"pretrain.phases: {steps_of(after)} steps in all, but {step} are made; give at least {step}"
            )
        run = _joined(_until(run, step), _after(after, step))
    return run


def steps_of(phases: Sequence[CurriculumPhase]) -> int:
    """All steps of some phases."""
    return sum(phase.steps for phase in phases)


def phase_at(phases: Sequence[CurriculumPhase], done: int) -> CurriculumPhase:
    """The phase of the step after `done` steps; after the end, the last one."""
    ends = list(itertools.accumulate(phase.steps for phase in phases))
    return phases[min(bisect.bisect_right(ends, done), len(phases) - 1)]


def theta_of(phases: Sequence[CurriculumPhase]) -> Callable[[int], float]:
    """RoPE's base of the step after `done` steps."""
    return lambda done: phase_at(phases, done).rope_theta


def attention_of(phases: Sequence[CurriculumPhase]) -> Callable[[int], str]:
    """The layer pattern as which the model runs in the step after `done` steps."""
    return lambda done: phase_at(phases, done).attention


def _layout(phase: CurriculumPhase) -> tuple[int, ...]:
    return phase.layout or (phase.steps,)


def _until(phases: Sequence[CurriculumPhase], step: int) -> list[CurriculumPhase]:
    """The first `step` steps."""
    made = []
    for phase in phases:
        if step > 0:
            made.append(replace(phase, steps=min(phase.steps, step), layout=_layout(phase)))
        step -= phase.steps
    return made


def _after(phases: Sequence[CurriculumPhase], step: int) -> list[CurriculumPhase]:
    """All but the first `step` steps."""
    made = []
    for phase in phases:
        if (left := phase.steps - max(0, step)) > 0:
            made.append(replace(phase, steps=left, layout=None))
        step -= phase.steps
    return made


def _joined(before: list[CurriculumPhase], after: list[CurriculumPhase]) -> list[CurriculumPhase]:
    """One list, in which a phase that ends the first and continues in the second is one."""
    if not (before and after) or _without_steps(before[-1]) != _without_steps(after[0]):
        return before + after
    last, steps = before[-1], before[-1].steps + after[0].steps
    layout = _layout(last)
    if (more := steps - sum(layout)) > 0:
        layout = (*layout, more)
    return [*before[:-1], replace(last, steps=steps, layout=layout), *after[1:]]


def _without_steps(phase: CurriculumPhase) -> CurriculumPhase:
    """The phase apart from its steps and layout, for comparison."""
    return replace(phase, steps=0, layout=None)
