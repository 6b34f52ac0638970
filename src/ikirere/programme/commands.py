"""The `run` and `report` verbs: from a recipe file to a finished run and what stands at its end."""

from __future__ import annotations

from pathlib import Path

from ikirere.programme.console import report_pages, show_end
from ikirere.programme.progress import Reporter, console
from ikirere.programme.runner import Loader, remake, run
from ikirere.recipe.load import load_recipe


def run_recipe(
    path: Path,
    overrides: list[str],
    rehearsal: bool,
    run_folder: Path | None,
    until: str | None,
    load_stage: Loader,
) -> int:
    """Run a recipe file, shrunk for a rehearsal, and show gates, times and where to look; the exit code."""
    recipe = load_recipe(path, overrides)
    folder = run_folder or Path("runs") / (f"{recipe.name}-rehearsal" if rehearsal else recipe.name)
    if rehearsal:
        from ikirere.recipe.rehearse import shrink

        recipe = shrink(recipe)
    reporter = Reporter(console())
    code = run(
        recipe, path.resolve().parent, folder, load_stage, rehearsal=rehearsal, until=until, reporter=reporter
    )  # fmt: skip
    show_end(folder, reporter.console)
    return code


def remake_report(run_folder: Path, load_stage: Loader) -> int:
    """Make the report of a run again and say where it is; the exit code."""
    reporter = Reporter(console())
    code = remake(run_folder, "report", load_stage, reporter)
    for page in report_pages(run_folder):
        reporter.say(f"report: {page}")
    return code
