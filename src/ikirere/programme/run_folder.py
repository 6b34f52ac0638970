"""What describes a run folder as a whole: its resolved recipe, and how it was started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ikirere.errors import UserError
from ikirere.programme.ledger import NAME as LEDGER
from ikirere.programme.ledger import Event, read_events
from ikirere.recipe.load import to_plain
from ikirere.recipe.schema import Recipe
from ikirere.recipe.yamlio import dump_yaml, parse


def resolved(recipe: Recipe) -> str:
    """The recipe with all defaults as YAML. The tracker's key is a secret and stays out."""
    tree = to_plain(recipe)
    tree["tracker"]["key"] = None
    return dump_yaml(tree)


def read_recipe(run_folder: Path) -> dict[str, Any]:
    """The resolved recipe as a plain tree. Raises UserError where this is no run folder."""
    path = run_folder / "recipe.yaml"
    if not (run_folder / LEDGER).is_file() or not path.is_file():
        raise UserError(
            f"{run_folder}: not a run folder (no {LEDGER}, recipe.yaml); give the folder that `run` wrote"
        )
    try:
        tree = parse(path.read_text(encoding="utf-8"), str(path)).value
        if not isinstance(tree, dict) or "stages" not in tree:
            raise UserError(f"{path}: not a recipe")
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{str(error).splitlines()[0]}; the run command writes recipe.yaml again") from None
    return tree


def reopen(run_folder: Path) -> tuple[Recipe, Path, bool]:
    """(recipe, folder of the recipe file, rehearsal) of an existing run."""
    tree = read_recipe(run_folder)
    starts = [e for e in read_events(run_folder / LEDGER) if e["event"] == "run-started"]
    if not starts:
        raise UserError(f"{run_folder / LEDGER}: holds no start of a run; give the run command again")
    try:
        recipe = Recipe.model_validate(tree)
    except ValueError as error:
        raise UserError(f"{run_folder / 'recipe.yaml'}: {str(error).splitlines()[-1].strip()}") from None
    return recipe, Path(starts[-1]["recipe_folder"]), bool(starts[-1]["rehearsal"])


def is_rehearsal(events: list[Event]) -> bool:
    return any(event.get("rehearsal") for event in events if event["event"] == "run-started")
