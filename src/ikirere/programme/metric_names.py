"""The names of metrics that stages declare, as patterns: who makes what, and what nobody makes.

`{domain}`, `{milestone}` and `{kind}` in a pattern of `Stage.makes` stand for the names that the recipe gives; any other
placeholder for one or more characters without `/` and `@`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from ikirere.programme.stage import Stage
from ikirere.recipe.data import PythonEnvironment
from ikirere.recipe.schema import Recipe

PLACEHOLDER = re.compile(r"\{(\w+)\}")


def known_names(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Placeholder -> what the recipe gives for it."""
    domains: dict[str, None] = {}
    for source in recipe.data.sources:
        if source.domain:
            domains[source.domain] = None
        elif isinstance(source, PythonEnvironment):
            domains |= dict.fromkeys(source.include)
    kinds = [*(recipe.sft.mixture if recipe.sft else ()), *recipe.evaluate.questions]
    return {
        "domain": tuple(domains),
        "milestone": tuple(milestone.name for milestone in recipe.pretrain.milestones),
        "kind": tuple(dict.fromkeys(kinds)),
    }


def makes(patterns: Iterable[str], name: str, recipe: Recipe) -> bool:
    """Whether one of the patterns stands for the metric's name."""
    known = known_names(recipe)

    def expression(pattern: str) -> str:
        parts = PLACEHOLDER.split(pattern)
        for i in range(1, len(parts), 2):
            names = known.get(parts[i])
            parts[i] = "[^/@]+" if names is None else f"(?:{'|'.join(map(re.escape, names)) or '(?!)'})"
        parts[::2] = [re.escape(text) for text in parts[::2]]
        return "".join(parts)

    return any(re.fullmatch(expression(pattern), name) for pattern in patterns)


def _spelled(pattern: str, known: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The names that a pattern stands for, as far as the recipe gives them."""
    names = PLACEHOLDER.findall(pattern)
    options = [known.get(name, (f"{{{name}}}",)) for name in names]
    parts = PLACEHOLDER.split(pattern)[::2]
    found = []
    for chosen in product(*options):
        found.append("".join(a + b for a, b in zip(parts, (*chosen, ""), strict=True)))
    return found


@dataclass(frozen=True)
class Unmade:
    """A gate whose metric no code makes."""

    stage: str
    gate: str
    metric: str
    nearest: str | None

    def __str__(self) -> str:
        hint = f"; the nearest it makes is {self.nearest}" if self.nearest else ""
        return (
            f"gates.{self.stage}: {self.gate!r} asks for {self.metric}, which the stage does not make{hint}"
        )


def unmade(recipe: Recipe, stages: Mapping[str, Stage | None]) -> list[Unmade]:
    """Gates of built stages whose metric the stage does not declare. Gates of stages that are not built are not among
    them: these are NOT RUN and block as such."""
    known = known_names(recipe)
    found = []
    for name, gates in recipe.gates.items():
        stage = stages.get(name)
        if stage is None:
            continue
        spelled = [metric for pattern in stage.makes for metric in _spelled(pattern, known)]
        for gate in gates:
            if not makes(stage.makes, gate.metric, recipe):
                close = difflib.get_close_matches(gate.metric, spelled, n=1, cutoff=0.4)
                found.append(Unmade(name, gate.name, gate.metric, close[0] if close else None))
    return found


def undeclared(stage: Stage, recipe: Recipe, names: Iterable[str]) -> list[str]:
    """Names of metrics that a stage made and does not declare."""
    return [name for name in names if not makes(stage.makes, name, recipe)]
