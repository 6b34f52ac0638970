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
FINISHED = ("stage-finished", "stage-judged")


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
    attempts: int  # 1 and the kills before it
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
        raise UserError(f"{path}: cannot be read ({error.strerror}); run the recipe again") from None
    except ValueError as error:
        raise UserError(f"{path}: was altered ({error}); run the recipe again") from None
    return content


def metrics_of(content: dict[str, Any]) -> list[Metric]:
    return [Metric(**row) for row in content["metrics"]]


def digest(folder: Path) -> str:
    return files.file_sha256(folder / NAME)


def finished(events: list[Event], stage: str) -> Event | None:
    """The event of the stage's last end, or None where it never ended or was begun again since."""
    newest = last(events, stage, "stage-started", "stage-finished")
    return newest[1] if newest and newest[1]["event"] == "stage-finished" else None


def result_digest(events: list[Event], stage: str) -> str | None:
    """What the ledger holds as the hash of the stage's result.json."""
    newest = last(events, stage, *FINISHED)
    return newest[1]["result"] if newest else None


def stale(events: list[Event], stage: str) -> bool:
    """True where an input of the stage, or an input of that, was made (or begun) again after the stage ended."""
    end = last(events, stage, "stage-finished")
    start = last(events, stage, "stage-started")
    if end is None or start is None:
        return False
    for name in start[1].get("inputs", {}):
        newest = last(events, name, "stage-started", "stage-finished")
        if (newest is not None and newest[0] > end[0]) or stale(events, name):
            return True
    return False


def damage(folder: Path, artifacts: list[dict[str, Any]]) -> str | None:
    """The first artifact that is gone or of another size, or None."""
    for row in artifacts:
        path = folder / row["path"]
        if not path.is_file() or path.stat().st_size != row["bytes"]:
            return str(row["path"])
    return None
