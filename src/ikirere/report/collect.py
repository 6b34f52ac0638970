"""Reading a run folder: the only thing a report knows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ikirere.errors import UserError


@dataclass
class StageRecord:
    """What one stage left: its result.json, or only its name where it has not run."""

    name: str
    folder: Path
    state: str
    seconds: float | None = None
    peak_rss: int | None = None
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name, as programme.measure.Metric
    gates: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)

    def value(self, metric: str) -> float | None:
        """Measured value, or None."""
        found = self.metrics.get(metric)
        return None if found is None else float(found["value"])

    def with_prefix(self, prefix: str) -> dict[str, dict[str, Any]]:
        """Metrics named `prefix/x`, by x, without those of milestones."""
        return {
            n[len(prefix) + 1 :]: m
            for n, m in self.metrics.items()
            if n.startswith(prefix + "/") and "@" not in n
        }

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of a JSONL file of the stage's folder; none where it is missing."""
        path = self.folder / name
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

    def json(self, name: str) -> Any:
        """A JSON file of the stage's folder, or None."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


@dataclass
class Run:
    """A run folder, read."""

    folder: Path
    name: str
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    rehearsal: bool
    stages: dict[str, StageRecord]

    @property
    def folder_shown(self) -> str:
        return f"runs/{self.folder.name}"


def read_run(folder: Path, skip: tuple[str, ...] = ()) -> Run:
    """Read a run folder. Raises UserError where it is not one."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: no recipe.yaml in it, so it is no run folder; give runs/NAME")
    text = path.read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    environment_path = folder / "environment.json"
    environment = (
        json.loads(environment_path.read_text(encoding="utf-8")) if environment_path.is_file() else {}
    )
    stages: dict[str, StageRecord] = {}
    rehearsal = False
    for name in recipe["stages"]:
        if name in skip:
            continue
        record = StageRecord(name, folder / name, "not run")
        stages[name] = record
        result_path = folder / name / "result.json"
        if not result_path.is_file():
            gates = recipe.get("gates", {}).get(name) or []
            record.gates = [
                {**gate, "value": None, "low": None, "high": None, "verdict": "NOT RUN"} for gate in gates
            ]
            continue
        result = json.loads(result_path.read_text(encoding="utf-8"))
        rehearsal = rehearsal or bool(result.get("rehearsal"))
        record.state = "done"
        record.seconds = result.get("seconds")
        record.peak_rss = result.get("peak_rss_bytes")
        record.metrics = {metric["name"]: metric for metric in result["metrics"]}
        record.gates = result["gates"]
        record.artifacts = result["artifacts"]
    return Run(folder, recipe["name"], recipe, text, environment, rehearsal, stages)
