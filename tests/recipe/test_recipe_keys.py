"""No key is decoration: each leaf of the schema has a reader, and each leaf of each recipe changes something."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from ikirere.errors import UserError
from ikirere.model.layers.attention import Attention
from ikirere.recipe.ffns import FFNS
from ikirere.recipe.load import load_recipe, parse_recipe, to_plain
from ikirere.recipe.mixers import FAMILIES, MIXERS
from ikirere.recipe.planner import plan
from ikirere.recipe.schema import Model, Recipe
from ikirere.recipe.section import Section
from ikirere.recipe.sections import Serve
from ikirere.recipe.yamlio import KeyPath, dotted, parse
from ikirere.stages import STAGES, load_stage

sys.path.insert(0, str(Path(__file__).parent))
from key_readers import Readers, held, sections, sources

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
# `settings` is a plain mapping where a layer is built; the function reads these by their names in quotes.
BY_NAME = {
    (owner, key): Attention.rope
    for owner in ("Full", "Window")
    for key in ("rope_theta", "rope_scaling", "original_max_position_embeddings")
}


def every_section() -> list[type[Section]]:
    return [cls for cls in dict.fromkeys(sections()) if cls.__module__.startswith("ikirere.recipe.")]


@cache
def readers() -> Readers:
    found = Readers(every_section(), {"ModelConfig": Model, "ModelShape": Model})
    found.read(sources(ROOT / "src" / "ikirere"))
    return found


def unread(found: Readers, owners: list[type[Section]]) -> list[str]:
    return [
        f"{owner.__name__}.{field}"
        for owner in owners
        for field in owner.model_fields
        if not found.found(owner, field) and (owner.__name__, field) not in BY_NAME
    ]


def test_every_key_of_the_schema_is_read() -> None:
    assert unread(readers(), every_section()) == []


@pytest.mark.parametrize("owner, key", BY_NAME)
def test_what_is_listed_is_read_by_name_and_nowhere_else(owner: str, key: str) -> None:
    assert f'"{key}"' in inspect.getsource(BY_NAME[owner, key])
    assert not readers().found(MIXERS[owner.lower()], key)


def test_a_key_that_loses_its_reader_is_found() -> None:
    """The planner's files alone read the wanted latency; without those lines it is dead, and host and port with it."""
    files = {f"recipe/{name}": text for name, text in sources(ROOT / "src" / "ikirere" / "recipe").items()}
    for read, dead in (
        (".latency_p95_ms", ["host", "port", "latency_p95_ms"]),
        (".nothing", ["host", "port"]),
    ):
        found = Readers(every_section())
        found.read({name: text.replace(read, ".name") for name, text in files.items()})
        assert unread(found, [Serve]) == [f"Serve.{key}" for key in dead]


PLANTED = """
class Box(Section):
    size: int
    dead: int
    checked: int

    @model_validator(mode="after")
    def _fits(self) -> Box:
        return self if self.checked else None

class Shelf(Section):
    boxes: tuple[Box, ...]
    dead: int

def total(shelf: Shelf) -> int:
    return sum(box.size for box in shelf.boxes) + shelf.dead
"""


def test_reads_belong_to_the_section_that_is_read() -> None:
    """Two sections have a key of one name and one of them is read; a validator reads nothing."""
    Box = type("Box", (Section,), {"__annotations__": {"size": int, "dead": int, "checked": int}})
    Shelf = type("Shelf", (Section,), {"__annotations__": {"boxes": tuple[Box, ...], "dead": int}})
    found = Readers([Box, Shelf])
    found.read({"recipe/planted.py": PLANTED})
    assert unread(found, [Box, Shelf]) == ["Box.dead", "Box.checked"]


# ---------------------------------------------------------------- leaves of the recipes


def leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Paths and values of all scalars but null, which takes a key away."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    elif value is not None:
        yield path, value


def owners(path: KeyPath) -> tuple[set[type[Section]], str]:
    """The sections that may hold the last key of a path, and that key; none where the schema leaves it open."""
    inside: set[type[Section]] = {Recipe}
    named: dict[str, dict[str, type[Section]]] = {"mixers": {**MIXERS, **FAMILIES}, "ffns": dict(FFNS)}
    keys = [part for part in path if isinstance(part, str)]
    position = 0
    while position < len(keys) - 1:
        key = keys[position]
        annotations = [cls.model_fields[key].annotation for cls in inside if key in cls.model_fields]
        inside = set().union(*(held(annotation) for annotation in annotations))
        if any(get_origin(annotation) is dict for annotation in annotations):
            position += 1  # a key of the mapping's own
            if key in named:
                inside = {named[key][keys[position]]}
        position += 1
    return {cls for cls in inside if position < len(keys) and keys[-1] in cls.model_fields}, keys[-1]


def others(path: KeyPath, value: Any) -> Iterator[Any]:
    """Other values for a leaf: of its type, or of those that its key accepts."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (
            value + 1,
            value * 2,
            value / 2,
            value * 0.9,
            0,
            value // 2,
            max(1, value // 2 // 64 * 64),
        )
    else:
        holders, key = owners(path)
        yield from (
            word for cls in holders for word in literals(cls.model_fields[key].annotation) if word != value
        )
        yield from (f"{value}x", "full", "a100-80gb", "v9", "1/2", "other:test", "dense*2", "bits_per_byte")


def literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for inner in get_args(annotation) for word in literals(inner)]


def shown(recipe: Recipe) -> str:
    """What the planner says of a recipe, and the settings of each stage's results; the report repeats all keys."""
    built = frozenset(STAGES)
    names = [name for name in recipe.stages if name != "report"]
    stages = [stage for name in names if (stage := load_stage(name)) is not None]
    settings = [[stage.config(recipe), stage.measuring(recipe)] for stage in stages]
    return json.dumps([plan(recipe, built=built).to_json(), settings], sort_keys=True, default=str)


def is_read(path: KeyPath) -> bool:
    """Whether the leaf's key has a reader outside of the schema and the planner: the run, or the rehearsal."""
    holders, key = owners(path)
    found = [where for cls in holders for where in readers().found(cls, key)]
    return any(not where.startswith("recipe/") or where.startswith("recipe/rehearse/") for where in found)


def changes(values: str, path: KeyPath, value: Any, before: str) -> bool:
    """Whether some other value of the leaf changes what is planned or what a stage depends on. values: JSON."""
    for other in others(path, value):
        changed = json.loads(values)
        holder = changed
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = other
        try:
            if shown(parse_recipe(changed)) != before:
                return True
        except UserError:
            continue
    return False


def dead_leaves(files: list[Path]) -> tuple[list[str], int]:
    """Leaves that nothing reads in any of the recipes, with where they are first; and how many there are. List entries
    count as one: what holds of an entry holds of the others."""
    dead: dict[tuple[str, ...], str] = {}
    alive: set[tuple[str, ...]] = set()
    for file in files:
        recipe = load_recipe(file)
        values, before = json.dumps(to_plain(recipe)), shown(recipe)
        for path, value in leaves(parse(file.read_text(encoding="utf-8"), str(file)).value):
            kind = tuple("*" if isinstance(part, int) else part for part in path)
            if kind in alive or path == ("extends",):
                continue
            if is_read(path) or changes(values, path, value, before):
                alive.add(kind)
                dead.pop(kind, None)
            else:
                dead.setdefault(kind, f"{file.name}: {dotted(path)}")
    return list(dead.values()), len(dead) + len(alive)


def test_every_leaf_of_every_recipe_changes_something() -> None:
    dead, count = dead_leaves(RECIPES)
    assert dead == []
    assert count > 300


def test_a_leaf_that_changes_nothing_is_found(tmp_path: Path) -> None:
    """What is stated after a step is checked, what is stated after a night is not; settings of built stages are dead."""
    small = Path(__file__).with_name("small.yaml")
    text = f"extends: {small}\nstated: {{checkpoints: {{step_9: 36864, night: 3}}}}\nplanned: {{dpo: {{a: 1}}, report: {{}}}}\n"
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    dead, _ = dead_leaves([tmp_path / "r.yaml"])
    assert dead == ["r.yaml: stated.checkpoints.night", "r.yaml: planned.dpo.a"]
