"""What a puzzle generator is."""

from __future__ import annotations

import random
from typing import Any, ClassVar, Protocol


class Generator(Protocol):
    """Makes items family by family. A family is what items share that one of them could give away of another: the
    program, the board that others are turned copies of. All draws are from the `random.Random` handed in, so an item
    is a function of the seed, its family and its number."""

    name: ClassVar[str]
    items: ClassVar[int]  # of a family

    def key(self, draw: random.Random, number: str) -> str:
        """Names the family drawn: equal keys, equal families. number: unique to the draw, for families that are too
        many to meet twice."""

    def family(self, key: str, draw: random.Random) -> Any:
        """What the items of the family are made from."""

    def item(self, family: Any, number: int, draw: random.Random) -> str:
        """The text of the family's item `number`, verified. Raises RuntimeError where the verification fails, which is
        a defect."""


def verify(holds: bool, what: str) -> None:
    """Raises RuntimeError unless it holds."""
    if not holds:
        raise RuntimeError(f"a generated puzzle is wrong: {what}")
