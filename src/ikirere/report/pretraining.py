"""The report's section of pretraining: text that is continued, or blanks that are filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ikirere.report import figures
from ikirere.report.collect import Run, StageRecord
from ikirere.report.section import Block, Figure
from ikirere.report.tables import Table, measured, percent

SAMPLES = 4
LOAD = "expert_load/"


def pretrain(run: Run, stage: StageRecord) -> Block:
    """Loss, held-out figures by domain, load of experts, samples."""
    if (run.recipe.get("model") or {}).get("family") == "recursive":
        return _filled(run, stage)
    block = Block(
        "Pretraining",
        "Bits per byte do not depend on the tokenizer: lower is better, and every compressor can be asked the same.",
    )
    log = _loss(block, stage)
    sets = {
        "model": stage.with_prefix("bits_per_byte"),
        "gzip -9": stage.with_prefix("gzip9_bits_per_byte"),
        "xz -9": stage.with_prefix("xz9_bits_per_byte"),
    }
    groups = {
        domain: {name: found[domain]["value"] for name, found in sets.items() if domain in found}
        for domain in sets["model"]
    }
    if groups:
        svg = figures.grouped_bars(groups, "bits per byte")
        block.figures.append(Figure(svg, "Held-out documents of distributions never trained on."))
        rows = [(domain, *(measured(found.get(domain)) for found in sets.values())) for domain in groups]
        block.tables.append(Table(("Domain", *sets), rows, {1, 2, 3}, "Bits per byte"))
    _experts(block, log)
    rest = {n: m for n, m in stage.metrics.items() if "bits_per_byte" not in n or "@" in n}
    _further(block, rest)
    _samples(block, stage, "continued by the model inside ⟦ ⟧")
    return block


def _filled(run: Run, stage: StageRecord) -> Block:
    block = Block(
        "Pretraining",
        "Held-out rows with blanks, filled in by the averaged weights after all supervision steps. Perplexity is per "
        "blank; a row is solved when every blank of it is right.",
    )
    _loss(block, stage)
    ends = ["", *(f"@{m['name']}" for m in run.recipe["pretrain"].get("milestones") or [])]
    domains = sorted(stage.with_prefix("perplexity"))
    for name, show, title in (("perplexity", measured, "Perplexity"), ("exact", percent, "Rows solved")):
        rows = [(d, *(show(stage.metrics.get(f"{name}/{d}{end}")) for end in ends)) for d in domains]
        if rows:
            head = ("Domain", "at the end", *(end[1:] for end in ends[1:]))
            block.tables.append(Table(head, rows, set(range(1, len(head))), title))
    shown = ("perplexity/", "exact/", "nats_per_token")
    _further(block, {n: m for n, m in stage.metrics.items() if not n.startswith(shown)})
    _samples(block, stage, "what the model fills in inside ⟦ ⟧")
    return block


def _loss(block: Block, stage: StageRecord) -> list[dict[str, Any]]:
    log = stage.rows("log.jsonl")
    if log:
        block.figures.append(Figure(figures.loss_curve(log), "Training loss."))
    return log


def _experts(block: Block, log: list[dict[str, Any]]) -> None:
    """Each layer's experts at the last row of the log, where there are any: 1 is an even share."""
    layers: dict[str, list[float]] = {}
    last: dict[str, Any] = next((row for row in reversed(log) if "loss" in row), {})
    for name, value in last.items():
        if name.startswith(LOAD):
            layers.setdefault(name.removeprefix(LOAD).split("/")[0], []).append(value)
    rows = [(layer, str(len(v)), f"{max(v):.2f}", f"{min(v):.2f}") for layer, v in layers.items()]
    if rows:
        head = ("Layer", "Experts", "Busiest", "Idlest")
        block.tables.append(Table(head, rows, {1, 2, 3}, "Load of experts (1: an even share)"))


def _further(block: Block, metrics: Mapping[str, dict[str, Any]]) -> None:
    rows = [(name, measured(metric)) for name, metric in sorted(metrics.items())]
    if rows:
        block.tables.append(Table(("Figure", "Measured"), rows, {1}, "Training"))


def _samples(block: Block, stage: StageRecord, what: str) -> None:
    for sample in (stage.json("samples.json") or [])[:SAMPLES]:
        text = str(sample.get("prompt", "")) + "⟦" + str(sample.get("continuation", "")) + "⟧"
        block.texts.append({"title": f"Held-out {sample.get('domain', 'text')}, {what}", "text": text})
