"""`run`: from a recipe to a finished run folder, and its exit code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ikirere.common.files import as_json, write_text
from ikirere.errors import UserError
from ikirere.programme import environment, preflight
from ikirere.programme.failures import Failure, disk_full, unexpected, unwritable
from ikirere.programme.ledger import NAME as LEDGER
from ikirere.programme.ledger import Ledger, damaged_lines, read_events
from ikirere.programme.lock import NAME as LOCK
from ikirere.programme.lock import RunLock
from ikirere.programme.preflight import Loader
from ikirere.programme.progress import Reporter
from ikirere.programme.run_folder import reopen, resolved
from ikirere.programme.runner import Options, Run
from ikirere.programme.stage import Stage
from ikirere.programme.status import verdict
from ikirere.programme.tracker import Tracker, check
from ikirere.recipe.schema import Recipe

DO_NOT_SHIP = 3


def _claim(folder: Path, recipe: Recipe, rehearsal: bool) -> None:
    """Refuse a folder that holds something else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; give another --run-folder")
    inside = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if inside and LEDGER not in inside:
        raise UserError(f"{folder}: holds {inside[0]} and is not a run folder; give another --run-folder")
    for event in read_events(folder / LEDGER):
        if event["event"] != "run-started":
            continue
        if (event.get("recipe"), event.get("rehearsal")) != (recipe.name, rehearsal):
            kind = "a rehearsal" if event.get("rehearsal") else "a run"
            raise UserError(f"{folder}: holds {kind} of {event.get('recipe')}; give another --run-folder")
        return


def _describe(run: Run) -> None:
    """Write what describes the run. Every question is settled by then."""
    texts = {
        "recipe.yaml": resolved(run.recipe),
        "environment.json": as_json(environment.describe(run.recipe.seed)),
    }
    # The ledger comes first: it is what makes the folder a run folder.
    run.ledger.append(
        "run-started", recipe=run.recipe.name, rehearsal=run.rehearsal,
        recipe_folder=str(run.recipe_folder.resolve()),
        files={name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
    )  # fmt: skip
    for name, text in texts.items():
        write_text(run.folder / name, text)
    settings = run.recipe.model_dump(mode="json", include={"name", "seed", "model", "pretrain", "sft", "dpo"})
    run.tracker = Tracker(
        run.recipe.tracker, run.folder / "tracker", run.recipe.name, settings, run.reporter.say
    )


@contextmanager
def _opened(
    recipe: Recipe, recipe_folder: Path, folder: Path, rehearsal: bool, reporter: Reporter, options: Options
) -> Iterator[Run]:
    """The run, locked; a disk that is full, or a folder that cannot be written, is reported in one line."""
    check(recipe.tracker)
    _claim(folder, recipe, rehearsal)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with RunLock(folder):
            ledger = Ledger(folder / LEDGER)
            if ledger.repaired:
                reporter.say("ledger: a torn last line, left by a kill, was removed")
            for number in damaged_lines(folder / LEDGER):
                reporter.say(
                    f"{folder / LEDGER}:{number}: not an event, passed over; each stage's folder records what it is, so "
                    "nothing is lost (`ikirere verify` reports the line)"
                )
            current = Run(recipe, recipe_folder, folder, rehearsal, reporter, ledger, options=options)
            try:
                yield current
            finally:
                if current.tracker is not None:
                    current.tracker.close()
    except (UserError, Failure):
        raise
    except PermissionError as error:
        raise UserError(unwritable(error, folder)) from None
    except Exception as error:
        raise Failure(disk_full(error, folder) or unexpected(error, folder)) from None


def run(
    recipe: Recipe,
    recipe_folder: Path,
    run_folder: Path,
    load_stage: Loader,
    *,
    rehearsal: bool = False,
    until: str | None = None,
    reporter: Reporter | None = None,
    options: Options | None = None,
) -> int:
    """Run a recipe; exit code 0, or 3 where the verdict is DO NOT SHIP.

    Stages marked `always` also run after a stop, on what there is. A rehearsal is not stopped by gates, whose targets
    are for the full size, and ends with 0 when it went through; so does `until` where no gate stopped it. Raises
    UserError before anything is written where the recipe or the folder cannot be run; Failure where a stage failed.
    """
    reporter, options = reporter or Reporter(), options or Options()
    stages = preflight.load_stages(recipe, load_stage, until)
    if unknown := sorted(options.rebuild - set(stages)):
        raise UserError(f"--rebuild {unknown[0]}: no such stage; stages are {', '.join(stages)}")
    preflight.check(recipe, recipe_folder, stages, rehearsal)
    with _opened(recipe, recipe_folder, run_folder, rehearsal, reporter, options) as current:
        current.foresee(stage for stage in stages.values() if stage is not None)
        _describe(current)
        _all(current, stages)
        if current.stopped:
            names = list(dict.fromkeys(gate.name for gate in current.stopped))
            current.ledger.append("run-stopped", gates=names)
            reporter.say(f"stopped: {'; '.join(names)}")
        else:
            current.ledger.append("run-finished", until=until)
    if rehearsal:
        return 0
    if until is not None:
        return DO_NOT_SHIP if current.stopped else 0
    return 0 if verdict(run_folder).ship else DO_NOT_SHIP


def _all(current: Run, stages: Mapping[str, Stage | None]) -> None:
    for name, stage in stages.items():
        if stage is None:
            current.ledger.append("stage-not-built", stage=name)
            current.reporter.say(f"{name}: NOT BUILT")
        elif not current.stopped or stage.always:
            current.stage(stage)


def remake(run_folder: Path, name: str, load_stage: Loader, reporter: Reporter | None = None) -> int:
    """Run one stage of an existing run again, on what the others left, whatever their code is now."""
    recipe, recipe_folder, rehearsal = reopen(run_folder)
    stage = load_stage(name) if name in recipe.stages else None
    if stage is None:
        raise UserError(f"{run_folder}: has no stage {name}; its stages are {', '.join(recipe.stages)}")
    reporter = reporter or Reporter()
    with _opened(recipe, recipe_folder, run_folder, rehearsal, reporter, Options()) as current:
        current.note_done(
            s for other in recipe.stages if other != name and (s := load_stage(other)) is not None
        )
        current.stage(stage, force=True)
    return 0
