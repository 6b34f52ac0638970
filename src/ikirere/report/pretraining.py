"""The report's section on pretraining: of decoders, and of recursive models that fill masked spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ikirere.report import figures
from ikirere.report.collect import Run, StageRecord
from ikirere.report.section import Figure, ReportSection
from ikirere.report.tables import Table, measured, number, percent

SAMPLES = 4
LOAD = "expert_load/"


def pretrain(run: Run, stage: StageRecord) -> ReportSection:
    """Loss, milestones, held-out metrics by domain, expert load, samples."""
    if (run.recipe.get("model") or {}).get("family") == "recursive":
        return _recursive(run, stage)
    section = ReportSection(
        "Pretraining",
        "Bits per byte do not depend on the tokenizer: lower is better, and compressors are measured on the same bytes.",
    )
    log = stage.rows("log.jsonl")
    section.figures += loss_figure(log)
    sets = {
        "model": stage.with_prefix("bits_per_byte"),
        "gzip -9": stage.with_prefix("gzip9_bits_per_byte"),
        "xz -9": stage.with_prefix("xz9_bits_per_byte"),
    }
    groups = {
        domain: {name: found[domain]["value"] for name, found in sets.items() if domain in found}
        for domain in sets["model"]
    }
    _add(section, _milestones(run, stage))
    if groups:
        svg = figures.grouped_bars(groups, "bits per byte")
        section.figures.append(Figure(svg, "Held-out documents, by domain."))
        rows = [(domain, *(measured(found.get(domain)) for found in sets.values())) for domain in groups]
        _add(section, Table(("Domain", *sets), rows, {1, 2, 3}, "Bits per byte"))
    _add(section, _expert_load(log))
    rest = {n: m for n, m in stage.metrics.items() if "bits_per_byte" not in n or "@" in n}
    _add(section, _others(rest))
    _samples(section, stage, "the model's continuation inside ⟦ ⟧")
    return section


def _recursive(run: Run, stage: StageRecord) -> ReportSection:
    section = ReportSection(
        "Pretraining",
        "Held-out rows with masked spans, filled by the averaged weights after all supervision steps. Perplexity is per "
        "masked token; a row is an exact match when every masked token is right.",
    )
    section.figures += loss_figure(stage.rows("log.jsonl"))
    _add(section, _milestones(run, stage))
    suffixes = ["", *(f"@{m['name']}" for m in run.recipe["pretrain"].get("milestones") or [])]
    domains = sorted(stage.with_prefix("perplexity"))
    for name, show, title in (("perplexity", measured, "Perplexity"), ("exact", percent, "Exact match")):
        rows = [
            (d, *(show(stage.metrics.get(f"{name}/{d}{suffix}")) for suffix in suffixes)) for d in domains
        ]
        head = ("Domain", "at the end", *(suffix[1:] for suffix in suffixes[1:]))
        _add(section, Table(head, rows, set(range(1, len(head))), title))
    shown = ("perplexity/", "exact/", "nats_per_token")
    _add(section, _others({n: m for n, m in stage.metrics.items() if not n.startswith(shown)}))
    _samples(section, stage, "the model's infilling inside ⟦ ⟧")
    return section


def _add(section: ReportSection, table: Table) -> None:
    if table.rows:
        section.tables.append(table)


def loss_figure(log: list[dict[str, Any]], label: str = "loss, nats per token") -> list[Figure]:
    """The loss curve of a training's log; none where no step is logged yet."""
    if not any("loss" in row for row in log):
        return []
    changed = [f"{row['step']:,}" for row in log if "go_on" in row]
    caption = "Training loss."
    if changed:
        caption += f" Dashed: settings changed (--go-on) after step {', '.join(changed)}."
    return [Figure(figures.loss_curve(log, label), caption)]


def _milestones(run: Run, stage: StageRecord) -> Table:
    """The gates of each milestone with the band between continuing and stopping."""
    rows = []
    for milestone in sorted(
        (run.recipe.get("pretrain") or {}).get("milestones") or [], key=lambda m: m["step"]
    ):
        for gate in stage.gates:
            if gate["metric"].endswith(f"@{milestone['name']}"):
                bound = gate.get("stop_beyond")
                known = gate["value"] is not None
                rows.append(
                    (
                        milestone["name"],
                        f"{milestone['step']:,}",
                        gate["metric"],
                        number(gate["value"]),
                        f"{gate['op']} {number(gate['target'])}",
                        "" if bound is None else number(bound),
                        gate["decision"] if known else "",
                    )
                )
    head = ("Milestone", "Step", "Metric", "Measured", "Go", "Stop beyond", "Decision")
    return Table(head, rows, {1, 3, 4, 5}, "Milestones")


def _expert_load(log: list[dict[str, Any]]) -> Table:
    """Load of each layer's experts at the last row of the log, relative to a uniform load."""
    layers: dict[str, list[float]] = {}
    last: dict[str, Any] = next((row for row in reversed(log) if "loss" in row), {})
    for name, value in last.items():
        if name.startswith(LOAD):
            layers.setdefault(name.removeprefix(LOAD).split("/")[0], []).append(value)
    rows = [(layer, str(len(v)), f"{max(v):.2f}", f"{min(v):.2f}") for layer, v in layers.items()]
    head = ("Layer", "Experts", "Highest", "Lowest")
    return Table(head, rows, {1, 2, 3}, "Expert load, relative to uniform")


def _others(metrics: Mapping[str, dict[str, Any]]) -> Table:
    rows = [(name, measured(metric)) for name, metric in sorted(metrics.items())]
    return Table(("Metric", "Value"), rows, {1}, "Other metrics")


def _samples(section: ReportSection, stage: StageRecord, what: str) -> None:
    for sample in (stage.json("samples.json") or [])[:SAMPLES]:
        text = str(sample.get("prompt", "")) + "⟦" + str(sample.get("continuation", "")) + "⟧"
        section.texts.append({"title": f"Held-out {sample.get('domain', 'text')}, {what}", "text": text})
