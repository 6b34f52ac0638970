"""Runs the stages of a recipe in order, each once for what its outputs depend on.

First everything that can refuse the run is asked (`preflight`), then what becomes of each stage's folder is decided
(`decisions`), and only then a folder changes. Nothing that was made is deleted: what is outdated is set aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ikirere.common.files import write_json
from ikirere.errors import UserError
from ikirere.programme import artifacts, environment, gates, result, set_aside
from ikirere.programme.code_fingerprint import code_hash
from ikirere.programme.decisions import EXPENSIVE_SECONDS, Action, Decision, decide, question
from ikirere.programme.failures import Failure, disk_full, first_line, unexpected
from ikirere.programme.identity import Identity, Record, new_record, outputs_digest, read_record
from ikirere.programme.ledger import Ledger, newest_change, now, spent_seconds, unended
from ikirere.programme.metric_names import undeclared
from ikirere.programme.metrics import Metric
from ikirere.programme.progress import Reporter, clock
from ikirere.programme.resources import ResourceMeter
from ikirere.programme.stage import GateStop, Stage, StageContext
from ikirere.programme.tracker import Tracker
from ikirere.recipe.schema import Recipe

Ask = Callable[[str, Decision], str]
"""Asks the user about an expensive stage: 'rebuild', 'go on' or 'stop'."""


@dataclass(frozen=True)
class Options:
    """What the command line allows. rebuild: names of stages. ask: None where nobody can be asked."""

    rebuild: frozenset[str] = frozenset()
    go_on: bool = False
    ask: Ask | None = None
    expensive_seconds: float = EXPENSIVE_SECONDS


@dataclass
class Run:
    """One call of `run`: the recipe, where it goes, and what happened so far. The lock is held."""

    recipe: Recipe
    recipe_folder: Path
    folder: Path
    rehearsal: bool
    reporter: Reporter
    ledger: Ledger
    tracker: Tracker | None = None  # opened with the first write
    options: Options = field(default_factory=Options)
    choices: dict[str, str] = field(default_factory=dict)  # of expensive stages, as the user chose
    digests: dict[str, str] = field(default_factory=dict)  # of the outputs of the stages done so far
    stopped: list[gates.GateResult] = field(default_factory=list)  # gates that end the run
    _replaced: list[tuple[str, Path]] = field(
        default_factory=list
    )  # rebuilt stages, and where the old result is

    # -------------------------------------------------------------- deciding

    def identity(self, stage: Stage, inputs: Mapping[str, str]) -> Identity:
        recipe, above = self.recipe, self.recipe_folder
        return Identity(
            stage.name, stage.config(recipe), stage.external(recipe, above), inputs, recipe.seed, self.rehearsal,
            stage.measuring(recipe),
        )  # fmt: skip

    def inputs(self, stage: Stage) -> dict[str, str]:
        if not stage.reads_results:
            return {name: self.digests[name] for name in stage.needs if name in self.digests}
        before = self.recipe.stages[: self.recipe.stages.index(stage.name)]
        return {name: result.standing(self.ledger.events, name) for name in before}

    def decision(self, stage: Stage, inputs: Mapping[str, str], rebuild: bool) -> Decision:
        choice = self.choices.get(stage.name)
        return decide(
            stage,
            self.identity(stage, inputs),
            self.folder,
            self.ledger.events,
            rebuild=rebuild or choice == "rebuild",
            go_on=self.options.go_on or choice == "go on",
            expensive_seconds=self.options.expensive_seconds,
        )

    def foresee(self, stages: Iterable[Stage]) -> None:
        """Ask, or refuse, for every expensive stage whose own settings changed, before any folder does.

        Inputs are taken as they were: whether rebuilding them changes their bytes is not known yet.
        """
        for stage in stages:
            record = read_record(self.folder / stage.name)
            if record is not None and stage.name not in self.options.rebuild:
                before = record.parts.get("inputs", {})
                self._settle(stage, self.decision(stage, before, False))

    def _settle(self, stage: Stage, decision: Decision) -> None:
        if decision.action is not Action.ASK:
            return
        choice = self.options.ask(stage.name, decision) if self.options.ask else "stop"
        if choice == "stop":
            self._put_back()
            raise UserError(question(stage.name, decision))
        self.choices[stage.name] = choice

    def _put_back(self) -> None:
        """Undo what this call replaced: the new results are set aside, the old ones return."""
        for name, path in reversed(self._replaced):
            old = next((a for a in set_aside.entries(self.folder) if a.path == path), None)
            if old is not None:
                self._set_aside(name)
                self._restore(name, old)
                self.reporter.say(f"{name}: as it was; the new one is kept in {set_aside.FOLDER}/")
        self._replaced.clear()

    # -------------------------------------------------------------- moving folders

    def _set_aside(self, name: str) -> Path | None:
        folder = self.folder / name
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        self.ledger.append("stage-set-aside", stage=name, name=set_aside.name_of(folder))
        path = set_aside.put_aside(folder)
        self.reporter.say(f"{name}: what was there is kept as {set_aside.FOLDER}/{path.name}")
        return path

    def _restore(self, name: str, aside: set_aside.Aside) -> None:
        folder = self.folder / name
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        set_aside.restore(aside, folder)
        record = read_record(folder)
        if record is not None and record.finished is not None:
            self._adopt(record)

    def _adopt(self, record: Record) -> None:
        assert record.finished is not None
        self.ledger.append("stage-restored", stage=record.stage, key=record.key, **record.finished)

    # -------------------------------------------------------------- one stage

    def made_by(self, stage: Stage) -> dict[str, Any]:
        return {
            "code": code_hash(type(stage).__module__),
            "environment": environment.made_in(),
            "surroundings": dict(stage.surroundings(self.recipe, self.recipe_folder)),
        }

    def _begin(self, stage: Stage, identity: Identity, decision: Decision) -> Record | None:
        """Bring the stage's folder into the state from which `run` is called; None where it need not be."""
        folder, record = self.folder / stage.name, decision.record
        match decision.action:
            case Action.KEEP:
                return None
            case Action.ADOPT:
                assert record is not None
                self._adopt(record)
                return None
            case Action.RESTORE:
                assert decision.aside is not None
                replaced = self._set_aside(stage.name)
                self._restore(stage.name, decision.aside)
                if replaced is not None:
                    self._replaced.append((stage.name, replaced))
                record = read_record(folder)
                if record is not None and record.finished is not None:
                    return None
                return self._continued(record or new_record(identity, self.made_by(stage)), stage, decision)
            case Action.CONTINUE | Action.MEASURE:
                assert record is not None
                record.measuring = new_record(identity, {}).measuring
                return self._continued(record, stage, decision)
            case Action.GO_ON:
                assert record is not None
                return self._go_on(record, identity, stage, decision)
        if stage.reads_results:
            if folder.is_dir():
                artifacts.empty(folder)
        elif (replaced := self._set_aside(stage.name)) is not None and not stage.trains:
            self._replaced.append((stage.name, replaced))
        folder.mkdir(exist_ok=True)
        fresh = new_record(identity, self.made_by(stage))
        fresh.write(folder)
        self._started(stage, fresh, fresh=True)
        return fresh

    def _continued(self, record: Record, stage: Stage, decision: Decision) -> Record:
        made_by = self.made_by(stage)
        if made_by["code"] != record.made_by.get("code") and decision.step is not None:
            self.reporter.say(
                f"{stage.name}: continues from step {decision.step} with other code than it began with"
            )
        record.made_by, record.finished = made_by, None
        record.write(self.folder / stage.name)
        self._started(stage, record, step=decision.step)
        return record

    def _go_on(self, record: Record, identity: Identity, stage: Stage, decision: Decision) -> Record:
        folder = self.folder / stage.name
        if record.finished is not None:
            path = set_aside.copy_aside(folder)
            self.reporter.say(f"{stage.name}: the finished result is kept as {set_aside.FOLDER}/{path.name}")
        before = {"step": decision.step, "key": record.key, "config": record.parts["config"]}
        new = new_record(identity, self.made_by(stage), [*record.continued, before])
        new.write(folder)
        self.ledger.append(
            "stage-continued", stage=stage.name, step=decision.step, key=new.key, before=record.key,
            changes={change.key: [change.old, change.new] for change in decision.changes},
        )  # fmt: skip
        self._started(stage, new, step=decision.step)
        return new

    def _started(self, stage: Stage, record: Record, fresh: bool = False, step: int | None = None) -> None:
        if (open_ := unended(self.ledger.events, stage.name)) is not None:
            last_sign = newest_change(self.folder / stage.name)
            ended = datetime.fromtimestamp(last_sign, UTC).isoformat() if last_sign else open_["time"]
            self.ledger.append("stage-killed", stage=stage.name, ended=ended)
        self.ledger.append(
            "stage-started", stage=stage.name, key=record.key, base=record.base, fresh=fresh, step=step,
            code=record.made_by["code"], inputs=record.parts["inputs"],
        )  # fmt: skip

    def _attempts(self, name: str) -> int:
        count = 0
        for event in reversed(self.ledger.events):
            if event.get("stage") == name:
                count += event["event"] == "stage-started"
                if event["event"] == "stage-set-aside" or event.get("fresh"):
                    break
        return count

    def _context(self, stage: Stage, record: Record) -> StageContext:
        folder = self.folder / stage.name
        log = folder / "stage.log"

        def say(text: str) -> None:
            with log.open("a", encoding="utf-8") as out:
                out.write(f"{now()} {text}\n")
            self.reporter.say(f"  {text}")

        def track(values: Mapping[str, float], step: int) -> None:
            if self.tracker is not None:
                self.tracker.log(stage.name, values, step)

        return StageContext(
            recipe=self.recipe,
            recipe_folder=self.recipe_folder,
            folder=folder,
            inputs={name: self.folder / name for name in stage.needs if name in self.digests},
            rehearsal=self.rehearsal,
            progress=self.reporter.progress,
            say=say,
            track=track,
            run_folder=self.folder,
            key=record.key,
            accepted=frozenset(row["key"] for row in record.continued),
            continued=record.history(),
            judge=lambda metrics: self._judge_midway(stage.name, metrics),
        )

    def _execute(self, stage: Stage, record: Record) -> None:
        folder = self.folder / stage.name
        started = now()
        with ResourceMeter() as meter:
            made = stage.run(self._context(stage, record))
        for name in undeclared(stage, self.recipe, (metric.name for metric in made.metrics)):
            self.reporter.say(f"{stage.name}: made the metric {name}, which it does not declare")
        judged = gates.judge_all(self.recipe.gates.get(stage.name, ()), made.metrics)
        spent = round(spent_seconds(self.ledger.events, stage.name, folder), 3)
        timing = result.StageTiming(
            stage.name, record.key, self.rehearsal, self.recipe.seed, started, now(), round(meter.seconds, 3),
            max(spent, round(meter.seconds, 3)), self._attempts(stage.name), meter.peak_rss_bytes,
        )  # fmt: skip
        content = result.build(folder, timing, made, judged)
        write_json(folder / result.NAME, content)
        record.finished = {
            "artifacts": content["artifacts"],
            "outputs": outputs_digest(content["artifacts"], stage.outputs),
            "result": result.digest(folder),
            "seconds": timing.seconds,
            "spent": timing.spent,
            "peak_rss_bytes": timing.peak_rss_bytes,
        }
        record.write(folder)
        self.ledger.append("stage-finished", stage=stage.name, key=record.key, **record.finished)
        self.reporter.say(
            f"{stage.name}: done in {clock(meter.seconds)}, peak {meter.peak_rss_bytes / 1e9:.2f} GB"
        )

    # -------------------------------------------------------------- judging

    def _judge_midway(self, name: str, metrics: Iterable[Metric]) -> None:
        """Judge the gates that name these metrics; raises GateStop where a decision is stop, in a full run."""
        found = list(metrics)
        names = {metric.name for metric in found}
        judged = gates.judge_all((g for g in self.recipe.gates.get(name, ()) if g.metric in names), found)
        if not judged:
            return
        rows = [gate.to_json() for gate in judged]
        newest = next((e for e in reversed(self.ledger.events) if e["event"] == "milestone-judged"), {})
        if newest.get("gates") != rows:
            self.ledger.append("milestone-judged", stage=name, gates=rows)
        for gate in judged:
            mark = "rehearsal: " if self.rehearsal else ""
            self.reporter.say(f"{name}: {mark}{gate.decision}: {gate.line()}")
        stops = [gate for gate in judged if gate.stops and not self.rehearsal]
        if stops:
            self.stopped += stops
            raise GateStop("; ".join(gate.name for gate in stops))

    def _judge(self, name: str) -> None:
        """Judge a kept result by the gates as they are now, and take note of those that end the run."""
        folder = self.folder / name
        content = result.read(folder)
        judged = gates.judge_all(self.recipe.gates.get(name, ()), result.metrics_of(content))
        rows = [gate.to_json() for gate in judged]
        if rows != content["gates"]:
            write_json(folder / result.NAME, {**content, "gates": rows})
            digest = result.digest(folder)
            if (record := read_record(folder)) is not None and record.finished is not None:
                record.finished["result"] = digest
                record.write(folder)
            self.ledger.append("stage-judged", stage=name, result=digest)
        for gate in judged:
            if not gate.passed and gate.on_miss != "record":
                mark = "rehearsal " if self.rehearsal else ""
                self.reporter.say(f"{name}: {mark}gate not passed: {gate.line()}")
            if gate.stops and not self.rehearsal:
                self.stopped.append(gate)

    def stage(self, stage: Stage, force: bool = False) -> None:
        """Keep or run one stage. Raises Failure (one line) where it fails in a way the user cannot mend."""
        name = stage.name
        try:
            inputs = self.inputs(stage)
            rebuild = force or name in self.options.rebuild
            decision = self.decision(stage, inputs, rebuild)
            if decision.action is Action.ASK:
                self._settle(stage, decision)
                decision = self.decision(stage, inputs, rebuild)
            self.reporter.say(f"{name}: {decision.reason}")
            record = self._begin(stage, self.identity(stage, inputs), decision)
            if record is not None:
                self._execute(stage, record)
            self._done(stage)
        except GateStop as stop:
            self.ledger.append("stage-stopped", stage=name, gates=str(stop))
            self.reporter.say(f"{name}: stopped by {stop}; what was trained is kept")
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

    def _done(self, stage: Stage) -> None:
        self.digests[stage.name] = self._outputs(stage)
        self._judge(stage.name)

    def _outputs(self, stage: Stage) -> str:
        """Hash of a done stage's outputs, as it was recorded."""
        done = result.finished(self.ledger.events, stage.name)
        assert done is not None
        return str(done.get("outputs") or outputs_digest(done["artifacts"], stage.outputs))

    def note_done(self, stages: Iterable[Stage]) -> None:
        """Take note of what other stages left, for one that is run alone."""
        for stage in stages:
            if result.finished(self.ledger.events, stage.name) is not None:
                self.digests[stage.name] = self._outputs(stage)

    def _failed(self, stage: str, error: BaseException) -> None:
        """Write the failure down; where even that is impossible, the ledger simply lacks it."""
        if unended(self.ledger.events, stage) is None:
            return
        kind = "stage-interrupted" if isinstance(error, KeyboardInterrupt) else "stage-failed"
        try:
            self.ledger.append(kind, stage=stage, error=first_line(error))
        except OSError:
            return
