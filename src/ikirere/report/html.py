"""One self-contained HTML file from a run folder."""

from __future__ import annotations

from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

from ikirere.common.files import write_text
from ikirere.report.collect import Run
from ikirere.report.sections import build_sections
from ikirere.report.tables import Table, band, duration, measured, number, percent, size


def gate_rows(run: Run) -> list[dict[str, Any]]:
    """All gates of the run with their stage, and whether their values are not current."""
    return [
        {"stage": stage.name, "stale": stage.stale is not None, **gate}
        for stage in run.stages.values()
        for gate in stage.gates
    ]


def _gates(run: Run) -> dict[str, Any]:
    rows = gate_rows(run)
    counts = Counter(row["verdict"] for row in rows)
    summary = ", ".join(f"{counts[v]} {v}" for v in ("PASS", "MISS", "INSIDE NOISE", "NOT RUN") if counts[v])
    noun = "gate" if len(rows) == 1 else "gates"
    return {"rows": rows, "summary": f"{len(rows)} {noun}: {summary}." if rows else ""}


def verdict_lists(run: Run) -> list[dict[str, Any]]:
    """What stands beside the verdict: titles with their reasons, empty ones left out."""
    verdict = run.verdict
    blocking = "not measured" if run.rehearsal else "that block"
    lists = [
        (f"Gates {blocking}", [reason for reason in verdict.blocking if reason.name]),
        ("Stages not done", [reason for reason in verdict.blocking if not reason.name]),
        ("Warnings", list(verdict.warnings)),
    ]
    return [{"title": title, "reasons": reasons} for title, reasons in lists if reasons]


def cards(run: Run) -> list[dict[str, str]]:
    """The main metrics, at the top; what was not measured or is stale is left out."""
    found: list[dict[str, str]] = []

    def add(label: str, value: str | None) -> None:
        if value is not None:
            found.append({"label": label, "value": value})

    pretrain, evaluate = run.current("pretrain"), run.current("evaluate")
    if pretrain and (parameters := pretrain.value("parameters")) is not None:
        add("parameters", f"{parameters / 1e6:,.2f} M")
    if pretrain and (bits := pretrain.value("bits_per_byte")) is not None:
        add("bits per byte, held out", f"{bits:.3f}")
    if evaluate and (answer := evaluate.metrics.get("answer/calculator")):
        add("calculator accuracy", percent(answer).split(" ")[0])
    if evaluate and (without := evaluate.metrics.get("answer_without_tool/calculator")):
        add("calculator accuracy without the tool", percent(without).split(" ")[0])
    seconds = [stage.spent for stage in run.stages.values() if stage.spent]
    add("time, all stages and attempts", duration(sum(seconds)) if seconds else None)
    memory = [stage.peak_rss for stage in run.stages.values() if stage.peak_rss]
    add("peak memory", size(max(memory)) if memory else None)
    return found


def _machine(run: Run) -> Table:
    environment = run.environment
    rows: list[tuple[str, str]] = [("seed", str(run.recipe["seed"]))]
    for key, value in environment.items():
        if key == "packages" or value in (None, [], {}):
            continue
        rows.append((key, size(value) if key == "memory_bytes" else str(value)))
    packages = environment.get("packages", {})
    shown = ("torch", "numpy", "tokenizers", "sentencepiece", "safetensors", "pyarrow", "pydantic")
    rows += [(name, packages[name]) for name in shown if name in packages and name != "torch"]
    return Table(("What", "Value"), rows)


def render(run: Run) -> str:
    """The report's HTML."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    environment.filters["band"] = band
    source = resources.files("ikirere.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    metrics = [
        (stage.name, stage.state, name, measured(metric), str(metric["n"]), metric["kind"], metric["raw"])
        for stage in run.stages.values()
        for name, metric in stage.metrics.items()
    ]
    artifacts = [
        (f"{stage.name}/{item['path']}", size(item["bytes"]), item["sha256"])
        for stage in run.stages.values()
        for item in stage.artifacts
    ]
    return environment.from_string(source).render(
        run=run,
        cards=cards(run),
        gates=_gates(run),
        sections=build_sections(run),
        verdict_lists=verdict_lists(run),
        metrics=Table(("Stage", "State", "Metric", "Value", "n", "Kind", "Raw file"), metrics, {3, 4}),
        artifacts=Table(("File", "Size", "SHA-256"), artifacts, {1}),
        machine=_machine(run),
    )


def write_report(run: Run, path: Path) -> None:
    """Write the report whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(run))
