"""The report's section of pretraining, for models that fill masked spans and for experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ikirere.programme.verdict import ShipVerdict
from ikirere.report.collect import Run, StageRecord
from ikirere.report.figures import loss_curve
from ikirere.report.pretraining import pretrain
from ikirere.report.section import ReportSection


def made(
    tmp_path: Path, recipe: dict[str, Any], metrics: dict[str, float], row: dict[str, float]
) -> ReportSection:
    folder = tmp_path / "pretrain"
    folder.mkdir()
    log: list[dict[str, Any]] = [
        {"step": i, "loss": 5.0 - i, "lr": 0.1, "tokens": 100 * i, **row} for i in (1, 2)
    ]
    log.append({"go_on": {"pretrain.optimizer.lr": [0.1, 0.05]}, "step": 2})
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    sample = {"domain": "arc", "prompt": "input:\n12", "continuation": "21", "wanted": "22"}
    (folder / "samples.json").write_text(json.dumps([sample]))
    stage = StageRecord("pretrain", folder, "done")
    stage.metrics = {
        name: {"name": name, "value": value, "low": value, "high": value} for name, value in metrics.items()
    }
    verdict = ShipVerdict(True, False, (), ())
    return pretrain(Run(tmp_path, "x", recipe, "", {}, False, {"pretrain": stage}, verdict), stage)


def test_masked_spans_are_shown_by_domain_and_milestone(tmp_path: Path) -> None:
    recipe = {"model": {"family": "recursive"}, "pretrain": {"milestones": [{"name": "early", "step": 1}]}}
    metrics = {
        "perplexity/arc": 3.0, "perplexity/arc@early": 9.0, "exact/arc": 0.5, "exact/arc@early": 0.25,
        "nats_per_token/arc": 1.1, "perplexity": 3.0, "parameters": 7.0,
    }  # fmt: skip
    section = made(tmp_path, recipe, metrics, {})
    perplexity, solved, rest = section.tables
    assert perplexity.head == ("Domain", "at the end", "early")
    assert [row[0] for row in perplexity.rows] == ["arc"]
    assert perplexity.rows[0][1].startswith("3") and perplexity.rows[0][2].startswith("9")
    assert solved.rows[0][1].startswith("50") and solved.rows[0][2].startswith("25")
    assert [row[0] for row in rest.rows] == ["parameters", "perplexity"]
    assert "masked" in section.note and section.texts[0]["text"].endswith("⟦21⟧")


def test_expert_load(tmp_path: Path) -> None:
    loads = {"expert_load/1/0": 0.5, "expert_load/1/1": 1.5, "expert_load/3/0": 1.0, "expert_load/3/1": 1.0}
    section = made(tmp_path, {"model": {"family": "decoder"}}, {"bits_per_byte/code": 2.0}, loads)
    (table,) = (t for t in section.tables if "Expert load" in t.title)
    assert table.rows == [("1", "2", "1.50", "0.50"), ("3", "2", "1.00", "1.00")]


def test_the_curve_marks_where_settings_were_changed() -> None:
    log: list[dict[str, Any]] = [{"step": i, "loss": 5.0 - i, "lr": 0.1, "tokens": 9 * i} for i in (1, 2)]
    plain = loss_curve(log)
    marked = loss_curve([log[0], {"go_on": {}, "step": 1}, log[1]])
    assert "stroke-dasharray" in marked and "stroke-dasharray" not in plain
