"""The verbs that work on run folders: `run`, `report`, `clean`, `prune`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ikirere.common.checkpoints import CheckpointInfo
from ikirere.errors import UserError
from ikirere.programme import set_aside
from ikirere.programme.console import report_pages, show_end
from ikirere.programme.decisions import Decision, question
from ikirere.programme.execute import remake, run
from ikirere.programme.lock import RunLock
from ikirere.programme.preflight import Loader
from ikirere.programme.progress import Reporter, amount, console
from ikirere.programme.run_folder import read_recipe
from ikirere.programme.runner import Options
from ikirere.programme.status import checkpoints_of
from ikirere.recipe.load import load_recipe


def run_recipe(
    path: Path,
    overrides: list[str],
    rehearsal: bool,
    run_folder: Path | None,
    until: str | None,
    load_stage: Loader,
    options: Options | None = None,
    modules: Mapping[str, str] | None = None,
) -> int:
    """Run a recipe file, shrunk for a rehearsal, and show gates, times and where to look; the exit code."""
    recipe = load_recipe(path, overrides)
    folder = run_folder or Path("runs") / (f"{recipe.name}-rehearsal" if rehearsal else recipe.name)
    if rehearsal:
        from ikirere.recipe.rehearse import shrink

        recipe = shrink(recipe)
    reporter = Reporter(console())
    options = options or Options()
    if sys.stdin is not None and sys.stdin.isatty() and reporter.console.is_terminal:
        options = replace(options, ask=ask_about)
    code = run(
        recipe, path.resolve().parent, folder, load_stage, rehearsal=rehearsal, until=until, reporter=reporter,
        options=options,
    )  # fmt: skip
    show_end(folder, reporter.console, modules)
    return code


def ask_about(stage: str, decision: Decision) -> str:
    """Ask in the terminal what becomes of an expensive stage: 'rebuild', 'go on' or 'stop'."""
    print(question(stage, decision))
    choices = {"r": "rebuild", "s": "stop"} | ({"g": "go on"} if decision.can_go_on else {})
    wording = ", ".join(f"[{letter}] {choice}" for letter, choice in choices.items())
    while True:
        answer = input(f"{wording}? ").strip().lower()[:1] or "s"
        if answer in choices:
            return choices[answer]


def remake_report(run_folder: Path, load_stage: Loader) -> int:
    """Rebuild the report of a run and print where it is; the exit code."""
    reporter = Reporter(console())
    code = remake(run_folder, "report", load_stage, reporter)
    for page in report_pages(run_folder):
        reporter.say(f"report: {page}")
    return code


def _agreed(lines: list[str], total: int, what: str, yes: bool, say: Callable[[str], None]) -> bool:
    """Show what would be deleted, and whether the user agrees."""
    for line in lines:
        say(line)
    say(f"{amount(total, 'B')} in {len(lines)} {what}")
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError("nothing was deleted: nobody can be asked here; --yes deletes without asking")
    return input("delete them? [y/N] ").strip().lower().startswith("y")


def clean(run_folder: Path, yes: bool, say: Callable[[str], None] = print) -> int:
    """Delete what a run has set aside, after asking; the exit code."""
    read_recipe(run_folder)
    with RunLock(run_folder):
        found = set_aside.entries(run_folder)
        if not found:
            say(f"{run_folder}: nothing is set aside")
            return 0
        lines = []
        for aside in found:
            step = "" if aside.step is None else f", step {aside.step:,}"
            state = "finished" if aside.finished else "not finished"
            lines.append(f"{aside.path.name}: {amount(aside.bytes, 'B')}{step}, {state}")
        if _agreed(lines, sum(aside.bytes for aside in found), "folders that were set aside", yes, say):
            set_aside.remove(found)
            say("deleted")
    return 0


def prune(run_folder: Path, yes: bool, say: Callable[[str], None] = print) -> int:
    """Delete all checkpoints of a run but the newest of each stage, those of milestones too, after asking."""
    with RunLock(run_folder):
        old: list[CheckpointInfo] = [
            info for found in checkpoints_of(run_folder).values() for info in found[:-1]
        ]
        if not old:
            say(f"{run_folder}: no stage has more than one checkpoint")
            return 0
        lines = [
            f"{info.path.parent.name}/{info.path.name}: {amount(info.bytes, 'B')} {info.purpose}".rstrip()
            for info in old
        ]
        if _agreed(lines, sum(info.bytes for info in old), "checkpoints", yes, say):
            for info in old:
                shutil.rmtree(info.path)
            say("deleted")
    return 0
