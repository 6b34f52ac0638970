"""What a run folder says of itself: the state of each stage, its metrics, its gates.

| state | meaning |
|---|---|
| waiting | not begun |
| running | a live process works on it |
| interrupted | begun, not ended, and nobody works on it: the run command continues it |
| failed | ended with an error |
| done | ended; its result holds |
| stale | ended, but an input was made again since |
| not built | named by the recipe, does not exist yet (rehearsals only) |

Only `done` has metrics and verdicts; the gates of all other states are NOT RUN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ikirere.errors import UserError
from ikirere.programme import result
from ikirere.programme.gates import judge
from ikirere.programme.ledger import NAME as LEDGER
from ikirere.programme.ledger import Event, last, read_events
from ikirere.programme.lock import holder_of
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Gate

GATE_KEYS = ("name", "metric", "op", "target", "value", "low", "high", "verdict")
ENDINGS = {
    "stage-finished": "done",
    "stage-failed": "failed",
    "stage-interrupted": "interrupted",
    "stage-not-built": "not built",
}


def read_recipe(run_folder: Path) -> dict[str, Any]:
    """The resolved recipe as a plain tree. Raises UserError where this is no run folder."""
    path = run_folder / "recipe.yaml"
    if not (run_folder / LEDGER).is_file() or not path.is_file():
        raise UserError(
            f"{run_folder}: not a run folder (no {LEDGER}, recipe.yaml); give the folder that `run` wrote"
        )
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict) or "stages" not in tree:
            raise ValueError("not a recipe")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
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


def state_of(events: list[Event], stage: str, held: bool) -> str:
    """State of one stage; `held` tells whether a live process holds the run folder."""
    newest = last(events, stage, "stage-started", *ENDINGS)
    if newest is None:
        return "waiting"
    kind = newest[1]["event"]
    if kind == "stage-started":
        return "running" if held else "interrupted"
    if kind == "stage-finished" and result.stale(events, stage):
        return "stale"
    return ENDINGS[kind]


def _stage(run_folder: Path, name: str, state: str, gates: list[dict[str, Any]]) -> dict[str, Any]:
    if state == "done":
        content = result.read(run_folder / name)
        judged = content["gates"]
        seconds = content["seconds"]
        metrics = {row["name"]: row["value"] for row in content["metrics"]}
    else:
        judged = [judge(Gate.model_validate(gate), None).to_json() for gate in gates]
        seconds, metrics = None, {}
    rows = [{key: gate[key] for key in GATE_KEYS} for gate in judged]
    return {"name": name, "state": state, "seconds": seconds, "metrics": metrics, "gates": rows}


def status(run_folder: Path) -> dict[str, Any]:
    """{"run", "stages": [{"name", "state", "seconds", "metrics": {name: value}, "gates": [{"name", "metric",
    "op", "target", "value", "low", "high", "verdict"}]}]}; a rehearsal also has "rehearsal": true.

    `seconds` is null where a stage is not done; `value`, `low`, `high` are null where not measured.
    """
    recipe = read_recipe(run_folder)
    events = read_events(run_folder / LEDGER)
    held = holder_of(run_folder) is not None
    stages = [
        _stage(run_folder, name, state_of(events, name, held), recipe.get("gates", {}).get(name, []))
        for name in recipe["stages"]
    ]
    shown: dict[str, Any] = {"run": run_folder.resolve().name, "stages": stages}
    if is_rehearsal(events):
        shown["rehearsal"] = True
    return shown
