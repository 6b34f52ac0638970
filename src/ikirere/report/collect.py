"""What a report is made from: the state of a run folder (`programme.status`), its results and the stages' files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ikirere.common.files import read_json, read_rows
from ikirere.programme import result
from ikirere.programme.run_folder import read_recipe
from ikirere.programme.status import status
from ikirere.programme.verdict import ShipVerdict, judge_run
from ikirere.stages import MODULES

WITH_RESULT = ("done", "stale")


@dataclass
class StageRecord:
    """One stage: its row of `status`, and of its result.json what the report shows.

    spent: seconds of all attempts; None where it has not begun. step, tokens: of its newest checkpoint. marks: how it
    was made otherwise than it would be now. stale_inputs: stages whose outputs are others than those it was made from,
    or of a done stage, that are stale themselves.
    continued: the changes made by `--go-on`. metrics, artifacts: also of a stale stage, whose numbers are not current.
    """

    name: str
    folder: Path
    state: str
    spent: float | None = None
    step: int | None = None
    tokens: int | None = None
    marks: list[str] = field(default_factory=list)
    stale_inputs: list[str] = field(default_factory=list)
    continued: list[dict[str, Any]] = field(default_factory=list)
    peak_rss: int | None = None
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name, as programme.metrics.Metric
    gates: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stale(self) -> str | None:
        """Why its numbers are not current though it is done; None where they are."""
        return f"made from other outputs of {', '.join(self.stale_inputs)}" if self.stale_inputs else None

    @property
    def remarks(self) -> list[str]:
        """What a reader of its numbers should know."""
        return [*([self.stale] if self.stale else []), *self.marks]

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
        """Rows of a JSONL file of the stage's folder; none where it is missing. A kill may have left the last line of
        an unfinished stage's file incomplete: that line is dropped."""
        path = self.folder / name
        if not path.is_file():
            return []
        if self.state in WITH_RESULT:
            return read_rows(path)
        whole = path.read_bytes().rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def json(self, name: str) -> Any:
        """A JSON file of the stage's folder, or None."""
        path = self.folder / name
        return read_json(path) if path.is_file() else None


@dataclass
class Run:
    """A run folder, read. planned: settings of stages that are not built. set_aside: as `status` gives it."""

    folder: Path
    name: str
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    rehearsal: bool
    stages: dict[str, StageRecord]
    verdict: ShipVerdict
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    planned: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def folder_shown(self) -> str:
        return f"runs/{self.folder.name}"

    def current(self, name: str) -> StageRecord | None:
        """The stage where it is in the recipe and its numbers are current."""
        stage = self.stages.get(name)
        return stage if stage is not None and stage.state == "done" and not stage.stale else None


def read_run(folder: Path, skip: Iterable[str] = (), modules: Mapping[str, str] = MODULES) -> Run:
    """Read a run folder. skip: stages that are left out and do not count for the verdict, such as the report itself.

    modules: stage -> its module, of the stages that are built. Raises UserError where it is no run folder.
    """
    shown, recipe = status(folder, modules), read_recipe(folder)
    # A stage that still runs is the one that asks for the report.
    rows = [row for row in shown["stages"] if row["name"] not in set(skip) and row["state"] != "running"]
    for row in rows:
        if row["state"] == "waiting" and row["name"] not in modules:
            row["state"] = "not built"
    rehearsal = bool(shown.get("rehearsal"))
    environment = folder / "environment.json"
    return Run(
        folder,
        recipe["name"],
        recipe,
        (folder / "recipe.yaml").read_text(encoding="utf-8"),
        read_json(environment) if environment.is_file() else {},
        rehearsal,
        {row["name"]: _stage(folder / row["name"], row) for row in rows},
        judge_run(rows, rehearsal),
        shown["set_aside"],
        {name: keys for name, keys in recipe.get("planned", {}).items() if name not in modules},
    )


def _stage(folder: Path, row: Mapping[str, Any]) -> StageRecord:
    record = StageRecord(
        row["name"], folder, row["state"], row["spent"] or None, row["step"], row["tokens"], row["marks"],
        row["stale_inputs"], row["continued"], gates=row["gates"],
    )  # fmt: skip
    if record.state in WITH_RESULT:
        content = result.read(folder)
        record.peak_rss = content["peak_rss_bytes"]
        record.metrics = {metric["name"]: metric for metric in content["metrics"]}
        record.artifacts = content["artifacts"]
    return record
