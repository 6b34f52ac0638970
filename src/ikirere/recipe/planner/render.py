"""A plan as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from ikirere.recipe.planner.contradictions import Finding, short
from ikirere.recipe.planner.plan import Plan, StagePlan

WIDTH = 110


def render(plan: Plan) -> str:
    """Plain text, at most 110 columns."""
    blocks = [_head(plan), _model(plan), _work(plan), _memory(plan), _serving(plan)]
    if plan.planned:
        blocks.append(_planned(plan))
    if plan.stated_notes:
        blocks.append(_lines("stated, not checked", plan.stated_notes))
    blocks.append(_findings("contradictions", plan.contradictions, "none found"))
    if plan.refusals:
        blocks.append(_findings("a run would be refused", plan.refusals, ""))
    if plan.notes:
        blocks.append(_findings("notes", plan.notes, ""))
    return "\n\n".join(blocks) + "\n"


def _head(plan: Plan) -> str:
    lines = [f"{plan.name}  {plan.description}".rstrip(), "stages  " + " > ".join(plan.stage_names)]
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="        ") for line in lines)


def _model(plan: Plan) -> str:
    counts = plan.counts
    return "\n".join(
        [
            f"parameters   {counts.total:,} ({short(counts.total)}), equal to the built model",
            f"  embeddings {counts.embedding:,} ({counts.embedding_share:.1%})",
            f"tokens       {plan.tokens:,} ({short(plan.tokens)}), {plan.tokens_per_parameter:.3g} per parameter",
            f"operations   {plan.training_flops:.3g} FLOP in training, attention counted",
        ]
    )


def duration(seconds: float) -> str:
    """1000 -> 16.7 min."""
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"


def _work(plan: Plan) -> str:
    head = (
        f"time         {duration(plan.hours * 3600)} on {plan.devices} x {plan.device.name} in {plan.precision} at "
        f"MFU {plan.mfu:.0%} (assumed)"
    )
    rows: list[tuple[str, StagePlan]] = []
    for stage in plan.stages:
        rows.append((stage.name, stage))
        if stage.name == "pretrain" and len(plan.phases) > 1:
            rows += [(f"  {phase.name}", phase) for phase in plan.phases]
    width = max([len(name) for name, _ in rows], default=0)
    lines = [
        f"  {name:<{width}}  {short(s.tokens):>8} tokens  {s.flops:>8.3g} FLOP  {duration(s.seconds):>9}  "
        f"{short(s.tokens_per_second):>8} tokens/s"
        for name, s in rows
    ]
    return "\n".join([head, *lines])


def size(amount: float) -> str:
    """Bytes in decimal units: 33.9 GB."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if amount >= unit:
            return f"{amount / unit:.3g} {name}"
    return f"{amount / 1e3:.3g} kB" if amount else "-"


# Heading of each part of `Memory`; "kept" is what the forward pass keeps for the backward one.
_COLUMNS = {
    "total": "total",
    "process": "process",
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "activations": "kept",
    "logits": "logits",
}


def _memory(plan: Plan) -> str:
    peak = plan.peak_memory
    head = f"memory       {size(peak.total)} per device at most ({peak.where}), {plan.device.name} has {size(plan.device.memory)}"
    columns = [c for c in _COLUMNS if any(getattr(m, c) for m in plan.memory)]
    wide = max(len(m.where) for m in plan.memory)
    lines = ["  " + " " * wide + "".join(f"{_COLUMNS[c]:>10}" for c in columns)]
    for m in plan.memory:
        lines.append(f"  {m.where:<{wide}}" + "".join(f"{size(getattr(m, c)):>10}" for c in columns))
    return "\n".join([head, *lines])


def _serving(plan: Plan) -> str:
    cache = plan.cache
    wanted = f", wanted p95 {plan.latency_p95_ms:g} ms" if plan.latency_p95_ms else ""
    return (
        f"decode state {size(cache.per_sequence)} per sequence at {cache.context:,} tokens and {cache.bits} bits, "
        f"{size(cache.total)} for {cache.max_num_seqs} at once\n"
        f"  a token takes at least {plan.decode.seconds * 1e3:.3g} ms by bandwidth alone{wanted}"
    )


def _planned(plan: Plan) -> str:
    lines = []
    for stage, settings in plan.planned.items():
        shown = " ".join(f"{key}={_value(value)}" for key, value in settings.items())
        lines.append(f"{stage}: {shown}" if shown else stage)
    return _lines("planned, not built", lines)


def _value(value: Any) -> str:
    """A setting as a recipe writes it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _lines(title: str, lines: Iterable[str]) -> str:
    wrap = textwrap.TextWrapper(WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    filled = (wrap.fill(line) for line in lines)
    return "\n".join([title, *filled])


def _findings(title: str, findings: tuple[Finding, ...], none: str) -> str:
    if not findings:
        return f"{title}  {none}"
    lines = [title]
    for f in findings:
        keys = " / ".join(dict.fromkeys(f.keys))
        lines.append(f"  {keys}")
        lines.append(textwrap.fill(f.text, WIDTH, initial_indent="    ", subsequent_indent="    "))
    return "\n".join(lines)
