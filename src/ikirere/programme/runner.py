"""Runs the stages of a recipe in order, each once for what it depends on.

A stage is kept when the ledger holds its key, its files are there with equal sizes, and no input was made
again since. The key is a hash of the stage's name, its part of the recipe, the fingerprint of what it reads
from outside, its code, its inputs' keys, the seed, and whether this is a rehearsal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ikirere.common import files
from ikirere.errors import UserError
from ikirere.programme import artifacts, environment, gates, result
from ikirere.programme.code_fingerprint import code_hash
from ikirere.programme.failures import Failure, disk_full, first_line, unexpected
from ikirere.programme.ledger import NAME as LEDGER
from ikirere.programme.ledger import Ledger, last, now, read_events
from ikirere.programme.lock import NAME as LOCK
from ikirere.programme.lock import RunLock
from ikirere.programme.progress import Reporter, clock
from ikirere.programme.resources import ResourceMeter
from ikirere.programme.stage import Stage, StageContext
from ikirere.programme.status import reopen
from ikirere.programme.tracker import Tracker, check
from ikirere.recipe.schema import Recipe

STOPPED = 3
Loader = Callable[[str], Stage | None]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass
class Run:
    """One call of `run`: the recipe, where it goes, and what happened so far."""

    recipe: Recipe
    recipe_folder: Path
    folder: Path
    rehearsal: bool
    reporter: Reporter
    ledger: Ledger
    tracker: Tracker
    keys: dict[str, str] = field(default_factory=dict)  # of the stages done so far
    missed: list[gates.GateResult] = field(default_factory=list)  # gates that stop the run

    # -------------------------------------------------------------- one stage

    def key_parts(self, stage: Stage) -> dict[str, Any]:
        """What the stage's result depends on; their hash is its key."""
        return {
            "stage": stage.name,
            "configuration": _hash(stage.config(self.recipe)),
            "sources": stage.external(self.recipe, self.recipe_folder),
            "code": code_hash(type(stage)),
            "inputs": {name: self.keys[name] for name in stage.needs if name in self.keys},
            "seed": self.recipe.seed,
            "rehearsal": self.rehearsal,
        }

    def why_run(self, name: str, parts: Mapping[str, Any], key: str) -> str | None:
        """Why the stage has to run, or None where what is there can be kept."""
        events = self.ledger.events
        done = result.finished(events, name)
        if done is None:
            return "continues" if self._partial(name, key) else "starts"
        if done["key"] != key:
            before = last(events, name, "stage-started")
            old = before[1]["parts"] if before else {}
            changed = [part for part in parts if old.get(part) != parts[part]]
            return f"runs again ({', '.join(changed) or 'key'} changed)"
        if broken := result.damage(self.folder / name, done["artifacts"]):
            return f"runs again ({broken} is gone or of another size)"
        if result.stale(events, name):
            return "runs again (an input was made again)"
        try:
            result.read(self.folder / name)
        except UserError:
            return f"runs again ({result.NAME} is gone or was altered)"
        return None

    def _partial(self, name: str, key: str) -> bool:
        path = self.folder / name / "key"
        return path.is_file() and path.read_text().strip() == key

    def _prepare(self, name: str, key: str) -> Path:
        """The stage's folder: as a kill left it where the key is the same and it never ended, else empty."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        if result.finished(self.ledger.events, name) is not None or not self._partial(name, key):
            artifacts.empty(folder)
            files.write_text(folder / "key", key + "\n")
        (folder / result.NAME).unlink(missing_ok=True)
        return folder

    def _outdate(self) -> None:
        """Take away the results that stand on inputs now being made again: nobody shall report them."""
        for name in self.recipe.stages:
            if result.stale(self.ledger.events, name):
                (self.folder / name / result.NAME).unlink(missing_ok=True)

    def _attempts(self, name: str, key: str) -> int:
        count = 1
        for event in reversed(self.ledger.events):
            if event.get("stage") != name:
                continue
            if event["event"] == "stage-finished" or (
                event["event"] == "stage-started" and event["key"] != key
            ):
                break
            count += event["event"] == "stage-started"
        return count

    def _context(self, stage: Stage, folder: Path) -> StageContext:
        log = folder / "stage.log"

        def say(text: str) -> None:
            with log.open("a", encoding="utf-8") as out:
                out.write(f"{now()} {text}\n")
            self.reporter.say(f"  {text}")

        def track(values: Mapping[str, float], step: int) -> None:
            self.tracker.log(stage.name, values, step)

        return StageContext(
            recipe=self.recipe,
            recipe_folder=self.recipe_folder,
            folder=folder,
            inputs={name: self.folder / name for name in stage.needs if name in self.keys},
            rehearsal=self.rehearsal,
            progress=self.reporter.progress,
            say=say,
            track=track,
            run_folder=self.folder,
        )

    def _execute(self, stage: Stage, key: str, parts: Mapping[str, Any]) -> None:
        attempts = self._attempts(stage.name, key)
        folder = self._prepare(stage.name, key)
        started = self.ledger.append(
            "stage-started", stage=stage.name, key=key, parts=dict(parts), inputs=dict(parts["inputs"])
        )["time"]
        self._outdate()
        with ResourceMeter() as gauge:
            made = stage.run(self._context(stage, folder))
        judged = gates.judge_all(self.recipe.gates.get(stage.name, ()), made.metrics)
        finding = result.StageTiming(
            stage.name, key, self.rehearsal, self.recipe.seed, started, now(), round(gauge.seconds, 3), attempts,
            gauge.peak_rss_bytes,
        )  # fmt: skip
        content = result.build(folder, finding, made, judged)
        files.write_json(folder / result.NAME, content)
        self.ledger.append(
            "stage-finished", stage=stage.name, key=key, seconds=finding.seconds,
            peak_rss_bytes=finding.peak_rss_bytes, artifacts=content["artifacts"], result=result.digest(folder),
        )  # fmt: skip
        self.reporter.say(
            f"{stage.name}: done in {clock(gauge.seconds)}, peak {gauge.peak_rss_bytes / 1e9:.2f} GB"
        )

    def _failed(self, stage: str, error: BaseException) -> None:
        """Write the failure down; where even that is impossible, the ledger simply lacks it."""
        kind = "stage-interrupted" if isinstance(error, KeyboardInterrupt) else "stage-failed"
        try:
            self.ledger.append(kind, stage=stage, error=first_line(error))
        except OSError:
            return

    def _judge(self, name: str) -> None:
        """Judge a kept result by the gates as they are now, and take note of those that stop the run."""
        folder = self.folder / name
        content = result.read(folder)
        judged = gates.judge_all(self.recipe.gates.get(name, ()), result.metrics_of(content))
        rows = [gate.to_json() for gate in judged]
        if rows != content["gates"]:
            files.write_json(folder / result.NAME, {**content, "gates": rows})
            self.ledger.append("stage-judged", stage=name, result=result.digest(folder))
        for gate in judged:
            if gate.verdict == "MISS" and gate.on_miss != "record":
                mark = "rehearsal " if self.rehearsal else ""
                self.reporter.say(
                    f"{name}: {mark}gate missed: {gate.name}: {gate.value:.6g}, wanted {gate.op} {gate.target:g}"
                )
            if gate.stops and not self.rehearsal:
                self.missed.append(gate)

    def stage(self, stage: Stage, force: bool = False) -> None:
        """Keep or run one stage. Raises Failure (one line) where it fails in a way the user cannot mend."""
        name = stage.name
        try:
            parts = self.key_parts(stage)
            key = _hash(parts)
            reason = "runs again" if force else self.why_run(name, parts, key)
            if reason is None:
                self.reporter.say(f"{name}: unchanged, kept")
            else:
                self.reporter.say(f"{name}: {reason}")
                self._execute(stage, key, parts)
            self.keys[name] = key
            self._judge(name)
        except (UserError, KeyboardInterrupt) as error:
            self._failed(name, error)
            if isinstance(error, UserError) and (line := disk_full(error, self.folder / name)):
                raise Failure(f"{name}: {line}") from None
            raise
        except Exception as error:
            self._failed(name, error)
            full = disk_full(error, self.folder / name)
            raise Failure(
                f"{name}: {full}" if full else unexpected(error, self.folder, f"{name}: ")
            ) from None


# ------------------------------------------------------------------ the whole run


def _load(recipe: Recipe, load_stage: Loader, rehearsal: bool, until: str | None) -> dict[str, Stage | None]:
    """The stages to run, in order; None for those that are not built (rehearsals only)."""
    names = list(recipe.stages)
    if until is not None:
        if until not in names:
            raise UserError(f"--until {until}: no such stage; stages of {recipe.name} are {', '.join(names)}")
        names = names[: names.index(until) + 1]
    stages = {name: load_stage(name) for name in names}
    missing = [name for name, stage in stages.items() if stage is None]
    if missing and not rehearsal:
        raise UserError(
            f"stages: {', '.join(missing)} of {recipe.name} not built yet; nothing was run. "
            f"`--rehearse` goes through the others, `ikirere plan` shows all"
        )
    for place, name in enumerate(names):
        stage = stages[name]
        late = [need for need in (stage.needs if stage else ()) if need in names[place:]]
        if late:
            raise UserError(f"stages: {name} needs {', '.join(late)}, which come after it in {recipe.name}")
    return stages


def _claim(folder: Path, recipe: Recipe, rehearsal: bool) -> None:
    """Refuse a folder that holds something else, since stages empty their folders."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; give another --run-folder")
    inside = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if inside and LEDGER not in inside:
        raise UserError(f"{folder}: holds {inside[0]} and is not a run folder; give another --run-folder")
    for event in read_events(folder / LEDGER)[:1]:
        if (event.get("recipe"), event.get("rehearsal")) != (recipe.name, rehearsal):
            kind = "a rehearsal" if event.get("rehearsal") else "a run"
            raise UserError(f"{folder}: holds {kind} of {event.get('recipe')}; give another --run-folder")


def resolved(recipe: Recipe) -> str:
    """The recipe with all defaults as YAML. The tracker's key is a secret and stays out."""
    tree = recipe.model_dump(mode="json")
    tree["tracker"]["key"] = None
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)


def _open(recipe: Recipe, recipe_folder: Path, folder: Path, rehearsal: bool, reporter: Reporter) -> Run:
    """Open the ledger and write what describes the run. The lock is held."""
    texts = {
        "recipe.yaml": resolved(recipe),
        "environment.json": files.as_json(environment.describe(recipe.seed)),
    }
    # The ledger comes first: it is what makes the folder a run folder.
    ledger = Ledger(folder / LEDGER)
    ledger.append(
        "run-started", recipe=recipe.name, rehearsal=rehearsal, recipe_folder=str(recipe_folder.resolve()),
        files={name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
    )  # fmt: skip
    if ledger.repaired:
        reporter.say("ledger: a torn last line, left by a kill, was removed")
    for name, text in texts.items():
        files.write_text(folder / name, text)
    settings = recipe.model_dump(mode="json", include={"name", "seed", "model", "pretrain", "sft", "dpo"})
    tracker = Tracker(recipe.tracker, folder / "tracker", recipe.name, settings, reporter.say)
    return Run(recipe, recipe_folder, folder, rehearsal, reporter, ledger, tracker)


@contextmanager
def _opened(
    recipe: Recipe, recipe_folder: Path, folder: Path, rehearsal: bool, reporter: Reporter
) -> Iterator[Run]:
    """The run, locked and open; a disk that is full around the stages is said in one line too."""
    check(recipe.tracker)
    _claim(folder, recipe, rehearsal)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with RunLock(folder):
            current = _open(recipe, recipe_folder, folder, rehearsal, reporter)
            try:
                yield current
            finally:
                current.tracker.close()
    except (UserError, Failure):
        raise
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
) -> int:
    """Run a recipe; exit code 0, or 3 where a gate stopped it.

    Stages marked `always = True` also run after a stop, on what there is. A rehearsal is not stopped by
    gates, whose targets are for the full size. Raises UserError before anything is written where the
    recipe or the folder cannot be run; Failure where a stage failed.
    """
    reporter = reporter or Reporter()
    stages = _load(recipe, load_stage, rehearsal, until)
    with _opened(recipe, recipe_folder, run_folder, rehearsal, reporter) as current:
        for name, stage in stages.items():
            if stage is None:
                current.ledger.append("stage-not-built", stage=name)
                reporter.say(f"{name}: NOT BUILT")
            elif not current.missed or getattr(stage, "always", False):
                current.stage(stage)
        if current.missed:
            names = [gate.name for gate in current.missed]
            current.ledger.append("run-stopped", gates=names)
            reporter.say(f"stopped: gate missed: {'; '.join(names)}")
            return STOPPED
        current.ledger.append("run-finished", until=until)
    return 0


def remake(run_folder: Path, name: str, load_stage: Loader, reporter: Reporter | None = None) -> int:
    """Run one stage of an existing run again, on what the others left, whatever their code is now."""
    recipe, recipe_folder, rehearsal = reopen(run_folder)
    stage = load_stage(name) if name in recipe.stages else None
    if stage is None:
        raise UserError(f"{run_folder}: has no stage {name}; its stages are {', '.join(recipe.stages)}")
    with _opened(recipe, recipe_folder, run_folder, rehearsal, reporter or Reporter()) as current:
        events = current.ledger.events
        for other in recipe.stages:
            done = result.finished(events, other)
            if other != name and done is not None and not result.stale(events, other):
                current.keys[other] = done["key"]
        current.stage(stage, force=True)
        current.ledger.append("run-finished", until=name)
    return 0
