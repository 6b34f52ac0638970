"""A recipe as a draft in which every change is noted with the rule that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ikirere.recipe.load import parse_recipe, to_plain
from ikirere.recipe.schema import Recipe


@dataclass(frozen=True)
class Change:
    """One key of the rehearsal that differs from the recipe."""

    key: str
    before: Any
    after: Any
    rule: str

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.after)} ({self.rule})"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


class RecipeDraft:
    """Plain values of a recipe; `set` changes one key and notes it."""

    def __init__(self, recipe: Recipe) -> None:
        self.values = to_plain(recipe)
        self.changes: list[Change] = []

    def _holder(self, key: str) -> tuple[Any, Any]:
        """The mapping or list that holds a key, and the key's last part as it indexes it."""
        holder: Any = self.values
        *above, last = key.split(".")
        for part in above:
            holder = holder[int(part)] if isinstance(holder, list) else holder[part]
        return holder, int(last) if isinstance(holder, list) else last

    def set(self, key: str, value: Any, rule: str) -> None:
        """Change a key; nothing happens where it already holds the value."""
        holder, last = self._holder(key)
        if holder[last] != value:
            self.changes.append(Change(key, holder[last], value, rule))
            holder[last] = value

    def recipe(self) -> Recipe:
        return parse_recipe(self.values, "rehearsal")
