"""Is what the run folder holds what was measured? Files hashed again, numbers derived again.

What is checked: the ledger's chain; recipe.yaml and environment.json; of each finished stage its
result.json and every artifact against the hashes in the ledger; every metric derived from its raw rows by
`measure`; every verdict judged again by the recipe's gates. Not checked: that the raw rows are true (only
running the recipe again reports), files that no stage named, and a ledger rewritten as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ikirere.common import files
from ikirere.errors import UserError
from ikirere.programme import result
from ikirere.programme.gates import judge
from ikirere.programme.ledger import NAME as LEDGER
from ikirere.programme.ledger import Event, broken_at, damaged_lines, last, read_events
from ikirere.programme.metrics import Metric, measure
from ikirere.programme.run_folder import read_recipe
from ikirere.programme.status import status
from ikirere.recipe.sections import Gate

# Sums may be ordered otherwise by another processor or numpy; a changed row moves more than this.
RELATIVE = 1e-9


@dataclass
class Verification:
    """What was found changed (`problems`, one line each) and how much was looked at."""

    problems: list[str] = field(default_factory=list)
    stages: int = 0
    artifacts: int = 0
    metrics: int = 0
    gates: int = 0
    unfinished: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # what holds and should be known


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=RELATIVE) or (math.isnan(a) and math.isnan(b))


def _check_file(path: Path, sha256: str, found: Verification) -> None:
    found.artifacts += 1
    try:
        actual = files.file_sha256(path)
    except OSError as error:
        found.problems.append(f"{path}: cannot be read ({error.strerror})")
        return
    if actual != sha256:
        found.problems.append(f"{path}: changed (sha256 {actual[:12]}…, the ledger holds {sha256[:12]}…)")


def _derive(folder: Path, row: dict[str, Any], found: Verification) -> Metric | None:
    """The metric derived again; None where its raw rows no longer give one."""
    found.metrics += 1
    stored = Metric(**row)
    try:
        derived = measure(
            folder,
            stored.name,
            stored.kind,
            stored.raw,
            stored.field,
            stored.over,
            stored.where,
            stored.confidence,
        )
    except (UserError, ValueError, TypeError, ArithmeticError) as error:
        found.problems.append(f"{folder / stored.raw}: metric {stored.name} cannot be derived ({error})")
        return None
    for part in ("value", "low", "high", "n"):
        if not _same(getattr(stored, part), getattr(derived, part)):
            found.problems.append(
                f"{folder / result.NAME}: metric {stored.name}: {part} is {getattr(stored, part)}, "
                f"{stored.raw} gives {getattr(derived, part)}"
            )
    return derived


def _check_gates(
    folder: Path, gates: list[Gate], stored: list[dict[str, Any]], derived: list[Metric], found: Verification
) -> None:
    by_name = {metric.name: metric for metric in derived}
    written = {(row["name"], row["metric"]): row for row in stored}
    for gate in gates:
        found.gates += 1
        right = judge(gate, by_name.get(gate.metric)).to_json()
        row = written.pop((gate.name, gate.metric), {})
        # Results of earlier versions hold the verdict alone.
        for part in ("verdict", *({"passed", "decision"} & set(row))):
            if row.get(part) != right[part]:
                found.problems.append(
                    f"{folder / result.NAME}: gate {gate.name}: {part} is {row.get(part)}, should be {right[part]}"
                )
    for name, _ in written:
        found.problems.append(f"{folder / result.NAME}: gate {name}: not in recipe.yaml")


def _check_stage(folder: Path, events: list[Event], gates: list[Gate], found: Verification) -> None:
    done = result.finished(events, folder.name)
    if done is None:
        found.unfinished.append(folder.name)
        return
    found.stages += 1
    _check_file(folder / result.NAME, str(result.result_digest(events, folder.name)), found)
    for artifact in done["artifacts"]:
        _check_file(folder / artifact["path"], artifact["sha256"], found)
    try:
        content = result.read(folder)
        derived = [
            metric for row in content["metrics"] if (metric := _derive(folder, row, found)) is not None
        ]
        _check_gates(folder, gates, content["gates"], derived, found)
    except UserError as error:
        found.problems.append(str(error))
    except (KeyError, TypeError) as error:
        found.problems.append(f"{folder / result.NAME}: was altered (lacks {error})")


def _remarks(shown: dict[str, Any]) -> list[str]:
    """What holds and yet should be known: other code or surroundings, changes during training."""
    lines = []
    for stage in shown["stages"]:
        lines += [f"{stage['name']}: {mark}" for mark in stage["marks"]]
        for event in stage["continued"]:
            changes = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in event["changes"].items())
            lines.append(f"{stage['name']}: continued from step {event['step']} with {changes}")
    return lines


def verify(run_folder: Path, modules: Mapping[str, str] | None = None) -> Verification:
    """Check a run folder. modules: stage -> its module, to recognise results of other code. Raises UserError where it is
    none."""
    recipe = read_recipe(run_folder)
    events = read_events(run_folder / LEDGER)
    shown = status(run_folder, modules)
    found = Verification(remarks=_remarks(shown))
    for number in damaged_lines(run_folder / LEDGER):
        found.problems.append(f"{run_folder / LEDGER}:{number}: not an event")
    if (line := broken_at(events)) is not None:
        found.problems.append(
            f"{run_folder / LEDGER}: event {line} changed (does not follow from the one before)"
        )
    starts = [event for event in events if event["event"] == "run-started"]
    for name, sha256 in (starts[-1]["files"] if starts else {}).items():
        _check_file(run_folder / name, sha256, found)
    stale = {stage["name"] for stage in shown["stages"] if stage["state"] == "stale"}
    for stage in recipe["stages"]:
        gates = [Gate.model_validate(gate) for gate in recipe.get("gates", {}).get(stage, [])]
        if stage in stale or last(events, stage, "stage-not-built", "stage-started", *result.DONE) is None:
            found.unfinished.append(stage)
            continue
        _check_stage(run_folder / stage, events, gates, found)
    if found.stages == 0:
        found.problems.append(f"{run_folder}: no stage has finished, there is nothing to verify")
    return found


def verify_and_say(
    run_folder: Path, say: Callable[[str], None], modules: Mapping[str, str] | None = None
) -> int:
    """Check, report each change in a line, and return the exit code: 0, or 1 where anything changed."""
    found = verify(run_folder, modules)
    for problem in found.problems:
        say(f"CHANGED {problem}")
    for remark in found.remarks:
        say(f"note: {remark}")
    say(
        f"{found.stages} stages, {found.artifacts} files, {found.metrics} metrics, {found.gates} gates checked: "
        f"{f'{len(found.problems)} problems' if found.problems else 'all as measured'}"
    )
    if found.unfinished:
        say(f"not finished, not checked: {', '.join(found.unfinished)}")
    return 1 if found.problems else 0
