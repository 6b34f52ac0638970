"""Reading a recipe: YAML, `extends`, overrides; every mistake is one line that names the key.

    recipe = load_recipe("recipes/demo.yaml", ["pretrain.phases.0.steps=50", "seed=1"])

`extends: other.yaml` (relative to the file that contains it) starts from another recipe: mappings are merged
key by key, everything else is replaced, and `key: null` takes the other recipe's key away.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ikirere.errors import UserError
from ikirere.recipe.explain import Explainer
from ikirere.recipe.schema import Recipe
from ikirere.recipe.yamlio import KeyPath, dotted, dump_yaml, parse

EXTENDS = "extends"


@dataclass
class _Draft:
    """Values not yet checked, and for each key path the origin that set it."""

    value: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath, default: str) -> str:
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return default


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe. Overrides are `key.path=value` with the value in YAML; list entries go by
    index. Raises UserError; several mistakes are several lines of one message."""
    path = Path(path)
    draft = _read(path, ())
    for override in overrides:
        _override(draft, override)
    return _check(draft, str(path))


def parse_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check plain values (as `to_plain` gives them). Raises UserError like `load_recipe`."""
    return _check(_Draft(values), where)


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe, defaults included, as mappings, lists and scalars."""
    return recipe.model_dump(mode="json")


def dump(recipe: Recipe) -> str:
    """YAML text of the whole recipe; loading it gives an equal recipe."""
    return dump_yaml(to_plain(recipe))


def _read(path: Path, above: tuple[Path, ...]) -> _Draft:
    resolved = path.resolve()
    if resolved in above:
        raise UserError(f"{above[-1]}: {EXTENDS}: {path} extends itself; cut the circle")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); a recipe is a YAML file") from None
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror).lower()
        raise UserError(f"{path}: {reason}; give the path of a recipe's YAML file") from None
    parsed = parse(text, str(path))
    if not isinstance(parsed.value, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys, this file holds {_kind(parsed.value)}")
    draft = _Draft(parsed.value, {p: f"{path}:{line}" for p, line in parsed.lines.items()})
    if EXTENDS not in draft.value:
        return draft
    base = draft.value.pop(EXTENDS)
    if not isinstance(base, str):
        raise UserError(f"{draft.origin((EXTENDS,), str(path))}: {EXTENDS}: give the path of another recipe")
    return _merge(_read(path.parent / base, (*above, resolved)), draft)


def _merge(base: _Draft, top: _Draft) -> _Draft:
    origins = {p: origin for p, origin in base.origins.items() if p}

    def join(under: dict[str, Any], over: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        result = dict(under)
        for key, value in over.items():
            here = (*path, key)
            if value is None and key in result:
                del result[key]
            elif isinstance(value, dict) and isinstance(result.get(key), dict):
                result[key] = join(result[key], value, here)
            else:
                result[key] = value
                for old in [p for p in origins if p[: len(here)] == here]:
                    del origins[old]
        return result

    value = join(base.value, top.value, ())
    return _Draft(value, {**origins, **{p: origin for p, origin in top.origins.items() if p != (EXTENDS,)}})


def _override(draft: _Draft, override: str) -> None:
    label = f"override {override!r}"
    key, sign, text = override.partition("=")
    parts = key.strip().split(".")
    if not sign or not all(parts):
        raise UserError(f"{label}: accepted form is key.path=value, for example seed=3")
    target: Any = draft.value
    path: KeyPath = ()
    for part in parts[:-1]:
        step = _step(target, part, path, label)
        path = (*path, step)
        if isinstance(target, dict) and target.get(step) is None:
            target[step] = {}
        target = target[step]
    last = _step(target, parts[-1], path, label)
    target[last] = parse(text, label).value
    path = (*path, last)
    for old in [p for p in draft.origins if p[: len(path)] == path]:
        del draft.origins[old]
    draft.origins[path] = label


def _step(target: Any, part: str, path: KeyPath, label: str) -> str | int:
    if isinstance(target, dict):
        return part
    if isinstance(target, list):
        if part.isdecimal() and int(part) < len(target):
            return int(part)
        raise UserError(
            f"{label}: {dotted(path)} is a list of {len(target)}; give an index from 0 to {len(target) - 1}"
        )
    raise UserError(f"{label}: {dotted(path)} holds {_kind(target)}, it has no keys below it")


def _check(draft: _Draft, where: str) -> Recipe:
    try:
        text = json.dumps(draft.value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: holds a value that is not plain YAML ({error})") from None
    try:
        return Recipe.model_validate_json(text, strict=True)
    except ValidationError as error:
        explained = [
            one for detail in error.errors(include_url=False) for one in _explainer().explain(detail)
        ]
    lines = []
    for path, message in dict.fromkeys(explained):
        if any(len(other) > len(path) > 0 and other[: len(path)] == path for other, _ in explained):
            continue  # the error below it is more exact
        key = f"{dotted(path)}: " if path else ""
        lines.append(f"{draft.origin(path, where) if path else where}: {key}{message}")
    raise UserError("\n".join(lines))


@cache
def _explainer() -> Explainer:
    return Explainer(Recipe.model_json_schema(), (EXTENDS,))


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return {dict: "a mapping", list: "a list", str: "text", bool: "true or false"}.get(
        type(value), "a number"
    )
