"""What is in a run folder: the state of each stage, its metrics and gates, what was set aside, the verdict.

| state | meaning |
|---|---|
| waiting | not begun |
| running | a live process works on it |
| interrupted | begun, not ended, and nobody works on it: the run command continues it |
| failed | ended with an error |
| stopped | a milestone's gate ended it; what was trained is kept |
| done | ended; its result holds |
| stale | ended, but the outputs of a stage before it are others since, or that stage is stale |
| damaged | ended, but a file is gone or result.json was altered; the run command mends it from what is there |
| not built | named by the recipe, does not exist yet |

Only `done` has metrics. The gates of other states are NOT RUN, but for those that a milestone has judged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ikirere.common.checkpoints import CheckpointInfo, catalogue
from ikirere.programme import environment, result, set_aside
from ikirere.programme.code_fingerprint import code_hash
from ikirere.programme.gates import judge
from ikirere.programme.identity import Record, read_record
from ikirere.programme.ledger import NAME as LEDGER
from ikirere.programme.ledger import Event, last, read_events, spent_seconds
from ikirere.programme.lock import holder_of
from ikirere.programme.run_folder import is_rehearsal, read_recipe
from ikirere.programme.verdict import ShipVerdict, judge_run
from ikirere.recipe.sections import Gate

GATE_KEYS = (
    "name", "metric", "op", "target", "stop_beyond", "value", "low", "high", "verdict", "on_miss", "passed", "decision",
)  # fmt: skip
ENDINGS = {
    "stage-finished": "done",
    "stage-restored": "done",
    "stage-failed": "failed",
    "stage-interrupted": "interrupted",
    "stage-killed": "interrupted",
    "stage-stopped": "stopped",
    "stage-not-built": "not built",
    "stage-set-aside": "waiting",
}


def state_of(run_folder: Path, events: list[Event], stage: str, held: bool) -> str:
    """State of one stage by itself, whatever its inputs are; `held`: whether a live process holds the run folder."""
    newest = last(events, stage, "stage-started", *ENDINGS)
    if newest is None:
        return "waiting"
    kind = newest[1]["event"]
    if kind == "stage-started":
        return "running" if held else "interrupted"
    state = ENDINGS[kind]
    if state != "done":
        return state
    folder, digest = run_folder / stage, result.result_digest(events, stage)
    if result.damage(folder, newest[1]["artifacts"]) is not None or result.fault(folder, str(digest)):
        return "damaged"
    return "done"


def stale_inputs(events: list[Event], record: Record, stale: Collection[str] = ()) -> list[str]:
    """The stages before it whose outputs are others than those it was made from, are being made, or are `stale`
    themselves."""
    found = []
    for name, digest in record.parts.get("inputs", {}).items():
        # A stage that reads results has what there was to report among its inputs, others have hashes of outputs.
        if digest == result.standing(events, name):
            continue
        done = result.finished(events, name)
        if done is None or done.get("outputs", digest) != digest or name in stale:
            found.append(name)
    return found


def marks(record: Record | None, module: str | None) -> list[str]:
    """How a result differs from what would be made now, though it holds: other code, another environment."""
    if record is None:
        return ["settings not recorded"]
    found = []
    if module is not None and record.made_by.get("code") != code_hash(module):
        found.append("made by other code")
    before, today = record.made_by.get("environment", {}), environment.made_in()
    if changed := [f"{k} {before.get(k)} -> {v}" for k, v in today.items() if before.get(k) != v]:
        found.append(f"made in another environment ({'; '.join(changed)})")
    return found


def _gates(
    folder: Path, state: str, events: list[Event], gates: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The stage's gates, judged: by its result, or before it by the milestones that were reached."""
    if state == "done":
        judged = result.read(folder)["gates"]
    else:
        midway = {} if state in ("stale", "damaged") else _judged_midway(events, folder.name)
        judged = [
            midway.get((gate["name"], gate["metric"])) or judge(Gate.model_validate(gate), None).to_json()
            for gate in gates
        ]
    return [{key: _gate_value(gate, key) for key in GATE_KEYS} for gate in judged]


def _judged_midway(events: list[Event], stage: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(gate, metric) -> the gate as a milestone of what is in the stage's folder last had it judged."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        if event.get("stage") != stage:
            continue
        if event["event"] == "stage-set-aside" or event.get("fresh"):
            found = {}
        elif event["event"] == "milestone-judged":
            found |= {(gate["name"], gate["metric"]): gate for gate in event["gates"]}
    return found


def _gate_value(gate: Mapping[str, Any], key: str) -> Any:
    """A value of a judged gate; results of earlier versions lack what follows from the verdict."""
    if key in gate:
        return gate[key]
    passed = gate["verdict"] == "PASS"
    derived = {
        "passed": passed,
        "decision": "go" if passed else "stop" if gate["on_miss"] == "stop" else "investigate",
    }
    return derived.get(key)


def _stage(
    run_folder: Path,
    name: str,
    events: list[Event],
    held: bool,
    gates: list[dict[str, Any]],
    module: str | None,
    stale: Collection[str],
) -> dict[str, Any]:
    folder = run_folder / name
    state = state_of(run_folder, events, name, held)
    record = read_record(folder) if folder.is_dir() else None
    outdated = stale_inputs(events, record, stale) if record and state == "done" else []
    state = "stale" if outdated else state
    checkpoints = catalogue(folder)
    shown: dict[str, Any] = {"name": name, "state": state, "seconds": None, "metrics": {}}
    if state == "done":
        content = result.read(folder)
        shown["seconds"] = content["seconds"]
        shown["metrics"] = {row["name"]: row["value"] for row in content["metrics"]}
    newest = checkpoints[-1] if checkpoints else None
    return shown | {
        "spent": round(spent_seconds(events, name, folder), 3),
        "step": newest.step if newest else None,
        "tokens": newest.tokens if newest else None,
        "stale_inputs": outdated,
        "marks": marks(record, module) if state in ("done", "stale") else [],
        "continued": _continued(events, name),
        "gates": _gates(folder, state, events, gates),
    }


def _continued(events: list[Event], stage: str) -> list[dict[str, Any]]:
    """The changes that `--go-on` made to what is in the stage's folder."""
    found: list[dict[str, Any]] = []
    for event in events:
        if event.get("stage") != stage:
            continue
        if event["event"] == "stage-set-aside" or event.get("fresh"):
            found = []
        elif event["event"] == "stage-continued":
            found.append({"step": event["step"], "time": event["time"], "changes": event["changes"]})
    return found


def checkpoints_of(run_folder: Path) -> dict[str, list[CheckpointInfo]]:
    """Stage -> its checkpoints by rising step, for the stages that have any."""
    stages = read_recipe(run_folder)["stages"]
    return {stage: found for stage in stages if (found := catalogue(run_folder / stage))}


def status(run_folder: Path, modules: Mapping[str, str] | None = None) -> dict[str, Any]:
    """{"run", "stages": [{"name", "state", "seconds", "spent", "step", "tokens", "metrics": {name: value}, "marks",
    "stale_inputs", "continued", "gates": [{GATE_KEYS}]}], "set_aside", "planned", "verdict"}; a rehearsal also has
    "rehearsal": true.

    modules: stage -> the module that holds it, where "made by other code" is to be reported. `seconds` is of the attempt
    that finished (null where it is not done), `spent` of all attempts; `value`, `low`, `high` are null where not
    measured. Raises UserError where this is no run folder.
    """
    recipe = read_recipe(run_folder)
    events = read_events(run_folder / LEDGER)
    held = holder_of(run_folder) is not None
    gates = recipe.get("gates", {})
    stages: list[dict[str, Any]] = []
    for name in recipe["stages"]:
        stale = {stage["name"] for stage in stages if stage["state"] == "stale"}
        module = (modules or {}).get(name)
        stages.append(_stage(run_folder, name, events, held, gates.get(name, []), module, stale))
    rehearsal = is_rehearsal(events)
    unbuilt = (
        set(recipe["stages"]) - set(modules)
        if modules
        else {s["name"] for s in stages if s["state"] == "not built"}
    )
    shown: dict[str, Any] = {
        "run": run_folder.resolve().name,
        "stages": stages,
        "set_aside": [aside.to_json() for aside in set_aside.entries(run_folder)],
        "planned": {name: keys for name, keys in recipe.get("planned", {}).items() if name in unbuilt},
        "verdict": judge_run(stages, rehearsal).to_json(),
    }
    if rehearsal:
        shown["rehearsal"] = True
    return shown


def verdict(run_folder: Path) -> ShipVerdict:
    """The verdict on a run folder. Raises UserError where it is none."""
    return ShipVerdict.of(status(run_folder)["verdict"])
