"""The sections of a report, one function per stage. Each shows what is in the run folder, or is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ikirere.report import figures
from ikirere.report.collect import WITH_RESULT, Run, StageRecord
from ikirere.report.data import data
from ikirere.report.pretraining import loss_figure, pretrain
from ikirere.report.section import Figure, ReportSection
from ikirere.report.tables import Table, duration, measured, percent, setting, size


def programme(run: Run) -> ReportSection:
    """Every stage with its state, time and memory, and what was changed, set aside and planned."""
    stages = list(run.stages.values())
    total = sum(stage.spent or 0 for stage in stages)
    peak = max((stage.peak_rss or 0 for stage in stages), default=0)
    rows = [
        (
            stage.name,
            stage.state,
            "" if stage.step is None else f"{stage.step:,}",
            duration(stage.spent) if stage.spent else "",
            size(stage.peak_rss) if stage.peak_rss else "",
            "; ".join(stage.remarks),
        )
        for stage in stages
    ]
    rows.append(("all", "", "", duration(total), size(peak) if peak else "", ""))
    head = ("Stage", "State", "Step", "Time", "Peak memory", "Remarks")
    tables = [Table(head, rows, {2, 3, 4}), _changes(run), _set_aside(run), _planned(run)]
    timed = {stage.name: stage.spent for stage in stages if stage.spent}
    drawn = [Figure(figures.horizontal_bars(timed, "seconds"), "Wall-clock time by stage.")] if timed else []
    note = (
        "Time is that of all attempts, those that were killed included. Step is that of the newest checkpoint. Peak "
        "memory is that of the whole process while the stage ran."
    )
    return ReportSection("Programme", note, drawn, [table for table in tables if table.rows])


def _changes(run: Run) -> Table:
    """The settings that `--go-on` changed, in the order of the changes."""
    rows = [
        (stage.name, f"{event['step']:,}", key, setting(old), setting(new))
        for stage in run.stages.values()
        for event in stage.continued
        for key, (old, new) in event["changes"].items()
    ]
    head = ("Stage", "From step", "Setting", "Old value", "New value")
    return Table(head, rows, {1}, "Settings changed during training (--go-on)")


def _set_aside(run: Run) -> Table:
    rows = [
        (
            Path(aside["path"]).name,
            aside["stage"],
            "" if aside["step"] is None else f"{aside['step']:,}",
            "finished" if aside["finished"] else "not finished",
            size(aside["bytes"]),
        )
        for aside in run.set_aside
    ]
    return Table(("Folder", "Stage", "Step", "State", "Size"), rows, {2, 4}, "Set aside")


def _planned(run: Run) -> Table:
    rows = [
        (stage, key, setting(value)) for stage, keys in run.planned.items() for key, value in keys.items()
    ]
    return Table(("Stage", "Setting", "Value"), rows, set(), "Planned, not built")


def tokenizer(run: Run, stage: StageRecord) -> ReportSection:
    rows = [(name, measured(metric)) for name, metric in sorted(stage.metrics.items())]
    spec = run.recipe["tokenizer"]
    note = f"{spec['kind']}, vocabulary of {spec['vocab_size']:,} with the special tokens; metrics on held-out documents."
    return ReportSection("Tokenizer", note, [], [Table(("Metric", "Value"), rows, {1})] if rows else [])


def tuned(title: str, note: str) -> Callable[[Run, StageRecord], ReportSection]:
    """SFT and DPO: the loss curve and the stage's metrics."""

    def build(run: Run, stage: StageRecord) -> ReportSection:
        section = ReportSection(title, note, loss_figure(stage.rows("log.jsonl"), "loss"))
        rows = [(name, measured(metric)) for name, metric in sorted(stage.metrics.items())]
        if rows:
            section.tables.append(Table(("Metric", "Value"), rows, {1}))
        return section

    return build


def _turns(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    for message in messages:
        role = message["role"]
        if role == "tool":
            turns.append({"style": "call", "text": f"→ {message['content']}", "reasoning": ""})
            continue
        reasoning = str(message.get("reasoning_content") or "")
        if message.get("content") or reasoning:
            style = "assistant" if role == "assistant" else "user"
            turns.append({"style": style, "text": str(message.get("content") or ""), "reasoning": reasoning})
        for call in message.get("tool_calls") or []:
            function = call["function"]
            turns.append(
                {"style": "call", "text": f"{function['name']}({function['arguments']})", "reasoning": ""}
            )
    return turns


def evaluate(run: Run, stage: StageRecord) -> ReportSection:
    kinds = sorted({n for p in ("right_tool", "right_arguments", "answer") for n in stage.with_prefix(p)})
    section = ReportSection("Evaluation", "Held-out text.")
    if kinds:
        note = (
            "Accuracies with 95% Wilson intervals. Questions share no operands or words with training rows."
        )
        section = ReportSection("Tool use on held-out questions", note)
    rows = [
        (
            kind,
            *(percent(stage.metrics.get(f"{p}/{kind}")) for p in ("right_tool", "right_arguments", "answer")),
        )
        for kind in kinds
    ]
    if rows:
        head = ("Questions", "Tool", "Arguments", "Final answer")
        section.tables.append(Table(head, rows, {1, 2, 3}, "Accuracy"))
    with_tool = stage.metrics.get("answer/calculator")
    without = stage.metrics.get("answer_without_tool/calculator")
    if with_tool and without:
        arms = {"with the tool": with_tool, "without": without}
        label = "calculator questions"
        svg = figures.grouped_bars(
            {label: {name: arm["value"] for name, arm in arms.items()}},
            "accuracy",
            {label: {name: (arm["low"], arm["high"]) for name, arm in arms.items()}},
        )
        caption = "The same model on the same questions, with and without its calculator."
        section.figures.append(Figure(svg, caption))
    shown = {f"{p}/{k}" for p in ("right_tool", "right_arguments", "answer") for k in kinds}
    rows = [(name, measured(m)) for name, m in sorted(stage.metrics.items()) if name not in shown]
    if rows:
        section.tables.append(Table(("Metric", "Value"), rows, {1}, "Other metrics"))
    for sample in (stage.json("samples.json") or [])[:6]:
        section.chats.append({"title": sample.get("kind", "sample"), "turns": _turns(sample["messages"])})
    return section


SECTIONS: dict[str, Callable[[Run, StageRecord], ReportSection]] = {
    "data": data,
    "tokenizer": tokenizer,
    "pretrain": pretrain,
    "sft": tuned("Supervised fine-tuning", "Loss is taken on the assistant's tokens only."),
    "dpo": tuned(
        "Preference learning (DPO)",
        "Against the frozen SFT model, on pairs of correctness, brevity and tool choice.",
    ),
    "evaluate": evaluate,
}
TRAININGS = ("pretrain", "sft", "dpo")  # shown before they end: their log is a result


def _warning(stage: StageRecord) -> str:
    """Why the stage's numbers are not current, as a sentence; empty where they are."""
    if stage.stale is not None:
        return f"Stale: {stage.stale}. These numbers are not current; the run command measures them again."
    if stage.state != "done":
        at = "" if stage.step is None else f" (newest checkpoint: step {stage.step:,})"
        return f"Not finished: {stage.state}{at}. What is shown was written before that."
    return ""


def build_sections(run: Run) -> list[ReportSection]:
    """All sections that have something to show, in the programme's order."""
    built = [programme(run)]
    for name, stage in run.stages.items():
        if name in SECTIONS and (stage.state in WITH_RESULT or name in TRAININGS):
            section = SECTIONS[name](run, stage)
            section.warning, section.marks = _warning(stage), "; ".join(stage.marks)
            built.append(section)
    return [section for section in built if not section.empty]
