"""result.json of a stage: metrics with their origin, artifacts with their hashes, gate verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ikirere.common import files
from ikirere.errors import UserError
from ikirere.programme import artifacts
from ikirere.programme.gates import GateResult
from ikirere.programme.ledger import Event, last
from ikirere.programme.metrics import Metric
from ikirere.programme.stage import StageResult

NAME = "result.json"
DONE = ("stage-finished", "stage-restored")


@dataclass(frozen=True)
class StageTiming:
    """What the runner measured around a stage."""

    stage: str
    key: str
    rehearsal: bool
    seed: int
    started: str
    ended: str
    seconds: float  # of the attempt that finished
    spent: float  # of all attempts
    attempts: int
    peak_rss_bytes: int


def build(
    folder: Path, finding: StageTiming, result: StageResult, gates: Iterable[GateResult]
) -> dict[str, Any]:
    """The content of result.json. The raw files of metrics are artifacts even where not named.

    Raises ValueError where two metrics share a name, FileNotFoundError where a named file is missing.
    """
    names = [metric.name for metric in result.metrics]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"stage {finding.stage} gave two metrics of the name {twice[0]}")
    raws = [metric.raw for metric in result.metrics]
    return {
        **vars(finding),
        "metrics": [metric.to_json() for metric in result.metrics],
        "artifacts": artifacts.describe(folder, [*result.artifacts, *raws]),
        "gates": [gate.to_json() for gate in gates],
    }


def read(folder: Path) -> dict[str, Any]:
    """result.json of a stage's folder. Raises UserError naming the file."""
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not {"metrics", "artifacts", "gates"} <= set(content):
            raise ValueError("not a stage's result")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); the run command writes it again from what is there"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path}: was altered ({error}); the run command writes it again from what is there"
        ) from None
    return content


def metrics_of(content: dict[str, Any]) -> list[Metric]:
    return [Metric(**row) for row in content["metrics"]]


def digest(folder: Path) -> str:
    return files.file_sha256(folder / NAME)


def finished(events: list[Event], stage: str) -> Event | None:
    """The event by which the stage is done (it ended, or came back from where it was set aside); None where it is
    not, or was begun again or set aside since."""
    newest = last(events, stage, "stage-started", "stage-set-aside", *DONE)
    return newest[1] if newest and newest[1]["event"] in DONE else None


def result_digest(events: list[Event], stage: str) -> str | None:
    """What the ledger holds as the hash of the stage's result.json."""
    newest = last(events, stage, *DONE, "stage-judged")
    return newest[1]["result"] if newest else None


def standing(events: list[Event], stage: str) -> str:
    """A hash of what there is to report of a stage: its result, or how far it is where it is not done."""
    if finished(events, stage) is not None:
        return str(result_digest(events, stage))
    about = [e for e in events if e.get("stage") == stage]
    judged = [e["gates"] for e in about if e["event"] == "milestone-judged"]
    return files.json_sha256([about[-1]["event"] if about else None, judged[-1:]])


def damage(folder: Path, artifacts: list[dict[str, Any]]) -> str | None:
    """The first artifact that is gone or of another size, or None."""
    for row in artifacts:
        path = folder / row["path"]
        if not path.is_file() or path.stat().st_size != row["bytes"]:
            return str(row["path"])
    return None


def fault(folder: Path, digest: str) -> bool:
    """Whether result.json is missing, unreadable, or not the file with that hash."""
    try:
        read(folder)
    except UserError:
        return True
    return files.file_sha256(folder / NAME) != digest
