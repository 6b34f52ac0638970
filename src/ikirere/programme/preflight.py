"""Everything that can refuse a run, before any folder changes. `plan` shows the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ikirere.errors import UserError
from ikirere.programme.metric_names import unmade
from ikirere.programme.stage import Stage
from ikirere.recipe.planner.contradictions import Finding
from ikirere.recipe.schema import Recipe

Loader = Callable[[str], Stage | None]


def load_stages(recipe: Recipe, load_stage: Loader, until: str | None = None) -> dict[str, Stage | None]:
    """The stages to run, in order; None for those that are not built.

    Raises UserError for an unknown `until` and for a stage that comes before one it needs.
    """
    names = list(recipe.stages)
    if until is not None:
        if until not in names:
            raise UserError(f"--until {until}: no such stage; stages of {recipe.name} are {', '.join(names)}")
        names = names[: names.index(until) + 1]
    stages = {name: load_stage(name) for name in names}
    for position, name in enumerate(names):
        stage = stages[name]
        late = [need for need in (stage.needs if stage else ()) if need in names[position:]]
        if late:
            raise UserError(f"stages: {name} needs {', '.join(late)}, which come after it in {recipe.name}")
    return stages


def refusals(recipe: Recipe, recipe_folder: Path, stages: Mapping[str, Stage | None]) -> list[Finding]:
    """What refuses the recipe: gates that nothing measures (contradictions), and what each stage's own check refuses
    (a file that is missing, a feature that is not built)."""
    found = [
        Finding("gate_without_maker", (f"gates.{gate.stage}",), str(gate)) for gate in unmade(recipe, stages)
    ]
    for name, stage in stages.items():
        if stage is None:
            continue
        try:
            stage.check(recipe, recipe_folder)
        except UserError as error:
            found += [Finding("refused", (name,), line, "refusal") for line in str(error).splitlines()]
    return found


def check(recipe: Recipe, recipe_folder: Path, stages: Mapping[str, Stage | None], rehearsal: bool) -> None:
    """Raises UserError, a line each, for everything that refuses the recipe. Nothing has been written by then.

    A rehearsal goes through the stages that are built; a run of a recipe with others is refused, since the money for
    the built ones would be spent on a programme that cannot end.
    """
    lines = [finding.text for finding in refusals(recipe, recipe_folder, stages)]
    missing = [name for name, stage in stages.items() if stage is None]
    if missing and not rehearsal:
        lines.insert(
            0,
            f"stages: {', '.join(missing)} of {recipe.name} not built yet; nothing was run. `--rehearse` goes "
            "through the others, `--until STAGE` runs those before, `ikirere plan` shows all",
        )
    if lines:
        raise UserError("\n".join(dict.fromkeys(lines)))
