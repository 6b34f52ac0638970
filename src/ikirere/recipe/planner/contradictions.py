"""What in a recipe contradicts itself: one small function per rule, each finding with its two keys and the
arithmetic in one line.

A rule is a function of `Facts` decorated with `@rule`, in `stated_checks.py` (what is stated) or
`feasibility.py` (what is asked for).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ikirere.recipe.planner.counts import Counts
from ikirere.recipe.planner.decode import Decode, decode_floor
from ikirere.recipe.planner.hardware import Device
from ikirere.recipe.planner.memory import Cache, Memory
from ikirere.recipe.schema import Recipe


@dataclass(frozen=True)
class Finding:
    """`contradiction`: it cannot be so as written. `refusal`: this machine or this version cannot run it so. `note`: worth
    knowing, the run does something sensible."""

    rule: str
    keys: tuple[str, ...]
    text: str
    severity: Literal["contradiction", "refusal", "note"] = "contradiction"


@dataclass(frozen=True)
class Facts:
    """The recipe and what was counted of it. built: names of the stages that are built, None where nobody knows."""

    recipe: Recipe
    counts: Counts
    device: Device
    memory: tuple[Memory, ...]
    cache: Cache
    seconds: dict[str, float]
    built: frozenset[str] | None = None

    @property
    def decode(self) -> Decode:
        return decode_floor(self.recipe, self.counts, self.device)


Rule = Callable[[Facts], Iterator[Finding]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


def short(number: float) -> str:
    """1100048384 -> 1.100B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"


def gb(amount: float) -> str:
    return f"{amount / 1e9:.3g}"
