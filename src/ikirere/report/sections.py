"""The sections of a report, one function per stage. Each shows what is in the run folder, or is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ikirere.report import figures
from ikirere.report.collect import Run, StageRecord
from ikirere.report.hygiene import data
from ikirere.report.pretraining import pretrain
from ikirere.report.section import Block, Figure
from ikirere.report.tables import Table, duration, measured, percent, size


def programme(run: Run) -> Block:
    """Every stage with its time and memory."""
    rows = [
        (stage.name, stage.state, duration(stage.seconds), size(stage.peak_rss))
        for stage in run.stages.values()
    ]
    total = sum(stage.seconds or 0 for stage in run.stages.values())
    rows.append(
        ("all", "", duration(total), size(max((s.peak_rss or 0 for s in run.stages.values()), default=0)))
    )
    table = Table(("Stage", "State", "Time", "Peak memory"), rows, {2, 3})
    timed = {s.name: s.seconds for s in run.stages.values() if s.seconds}
    drawn = [Figure(figures.horizontal_bars(timed, "seconds"), "Where the time went.")] if timed else []
    return Block("Programme", "Peak memory is that of the whole process while the stage ran.", drawn, [table])


def tokenizer(run: Run, stage: StageRecord) -> Block:
    rows = [(name, measured(metric)) for name, metric in sorted(stage.metrics.items())]
    spec = run.recipe["tokenizer"]
    note = (
        f"{spec['kind']}, {spec['vocab_size']:,} ids with the special tokens; figures on held-out documents."
    )
    return Block("Tokenizer", note, [], [Table(("Figure", "Measured"), rows, {1})] if rows else [])


def tuned(title: str, note: str) -> Callable[[Run, StageRecord], Block]:
    """SFT and DPO: the loss curve and the stage's figures."""

    def build(run: Run, stage: StageRecord) -> Block:
        block = Block(title, note)
        log = stage.rows("log.jsonl")
        if log:
            block.figures.append(Figure(figures.loss_curve(log, "loss"), "Training loss."))
        rows = [(name, measured(metric)) for name, metric in sorted(stage.metrics.items())]
        if rows:
            block.tables.append(Table(("Figure", "Measured"), rows, {1}))
        return block

    return build


def _turns(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    for message in messages:
        role = message["role"]
        if role == "tool":
            turns.append({"style": "call", "text": f"→ {message['content']}", "scratchpad": ""})
            continue
        scratchpad = str(message.get("reasoning_content") or "")
        if message.get("content") or scratchpad:
            style = "assistant" if role == "assistant" else "user"
            turns.append(
                {"style": style, "text": str(message.get("content") or ""), "scratchpad": scratchpad}
            )
        for call in message.get("tool_calls") or []:
            function = call["function"]
            turns.append(
                {"style": "call", "text": f"{function['name']}({function['arguments']})", "scratchpad": ""}
            )
    return turns


def evaluate(run: Run, stage: StageRecord) -> Block:
    kinds = sorted({n for p in ("right_tool", "right_arguments", "answer") for n in stage.with_prefix(p)})
    block = Block("Evaluation", "Held-out text.")
    if kinds:
        note = "Shares with 95% Wilson intervals. Questions share no operands or words with training rows."
        block = Block("Tool use on held-out questions", note)
    rows = [
        (
            kind,
            *(percent(stage.metrics.get(f"{p}/{kind}")) for p in ("right_tool", "right_arguments", "answer")),
        )
        for kind in kinds
    ]
    if rows:
        head = ("Questions", "Right tool", "Right arguments", "Right final answer")
        block.tables.append(Table(head, rows, {1, 2, 3}))
    with_tool = stage.metrics.get("answer/calculator")
    without = stage.metrics.get("answer_without_tool/calculator")
    if with_tool and without:
        values = {"calculator questions": {"with the tool": with_tool["value"], "without": without["value"]}}
        bands = {
            "calculator questions": {
                "with the tool": (with_tool["low"], with_tool["high"]),
                "without": (without["low"], without["high"]),
            }
        }
        svg = figures.grouped_bars(values, "share right", bands)
        block.figures.append(
            Figure(svg, "The same model on the same questions, with and without its calculator.")
        )
    shown = {f"{p}/{k}" for p in ("right_tool", "right_arguments", "answer") for k in kinds}
    rows = [(name, measured(m)) for name, m in sorted(stage.metrics.items()) if name not in shown]
    if rows:
        block.tables.append(Table(("Figure", "Measured"), rows, {1}, "Further figures"))
    for sample in (stage.json("samples.json") or [])[:6]:
        block.chats.append({"title": sample.get("kind", "sample"), "turns": _turns(sample["messages"])})
    return block


BLOCKS: dict[str, Callable[[Run, StageRecord], Block]] = {
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


def blocks(run: Run) -> list[Block]:
    """All sections that have something to show, in the programme's order."""
    built = [programme(run)]
    for name, stage in run.stages.items():
        if name in BLOCKS and stage.state == "done":
            built.append(BLOCKS[name](run, stage))
    return [block for block in built if not block.empty]
