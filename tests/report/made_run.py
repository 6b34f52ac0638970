"""Small stages that write files like those of the real ones, and runs of them through the programme."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ikirere.common.files import file_sha256, read_rows, write_rows
from ikirere.programme import execute
from ikirere.programme.progress import Reporter, console
from ikirere.programme.runner import Options
from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.report.collect import Run, read_run
from ikirere.report.stage import ReportStage

HOSTILE = "<script>alert(1)</script>"
BAND = {"name": "early", "metric": "perplexity@early", "op": "<=", "target": 5.0, "on_miss": "stop"}


def recipe(steps: int = 8, stop_beyond: float = 30.0, calculator: float = 0.9, **keys: Any) -> Recipe:
    """A milestone at step 4 whose perplexity is 20, a calculator gate on 19 of 20 right, a stage that is not built."""
    phase = {"name": "main", "steps": steps, "sequence_length": 64, "batch_size": 2, "mixture": {"code": 1}}
    return Recipe.model_validate(
        {
            "name": "made",
            "description": f"A {HOSTILE} run",
            "seed": 7,
            "stages": ["data", "pretrain", "evaluate", "report", "safety"],
            "hardware": {"device": "cpu"},
            "tracker": {"kind": "none", "key": "hush"},
            "data": {"sources": [{"kind": "python-environment"}]},
            "tokenizer": {"kind": "bpe", "vocab_size": 512},
            "model": {
                "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 1, "intermediate_size": 128, "max_position_embeddings": 128,
            },
            "pretrain": {
                "phases": [phase], "optimizer": {"lr": 0.001}, "milestones": [{"name": "early", "step": 4}],
            },
            "evaluate": {"questions": {"calculator": 20}},
            "planned": {"safety": {"attacks": ["roleplay", "encoding"]}},
            "gates": {
                "pretrain": [{**BAND, "stop_beyond": stop_beyond}],
                "evaluate": [
                    {"name": "calculator", "metric": "answer/calculator", "op": ">=", "target": calculator},
                ],
                "safety": [
                    {"name": "red team", "metric": "unsafe", "op": "==", "target": 0.0, "on_miss": "stop"},
                ],
            },
            **keys,
        }
    )  # fmt: skip


class Data(Stage):
    """Copies source.txt of the recipe's folder."""

    name: ClassVar[str] = "data"
    outputs: ClassVar[tuple[str, ...]] = ("documents.txt",)

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return {}

    def external(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        return {"source.txt": file_sha256(recipe_folder / "source.txt")}

    def run(self, context: StageContext) -> StageResult:
        text = (context.recipe_folder / "source.txt").read_text()
        (context.folder / "documents.txt").write_text(text)
        context.write_rows("samples.jsonl", [])
        return StageResult(artifacts=["documents.txt"])


class Pretrain(Stage):
    """One row of log.jsonl and one checkpoint per step; the milestone is judged at its step."""

    name: ClassVar[str] = "pretrain"
    needs: ClassVar[tuple[str, ...]] = ("data",)
    makes: ClassVar[tuple[str, ...]] = ("bits_per_byte/{domain}", "perplexity@{milestone}", "parameters")
    trains: ClassVar[bool] = True

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return {"pretrain": {"steps": recipe.pretrain.steps}}

    def can_go_on(self, changed: Iterable[str]) -> list[str]:
        return []

    def run(self, context: StageContext) -> StageResult:
        path = context.folder / "log.jsonl"
        log = read_rows(path) if path.is_file() else []
        done = log[-1]["step"] if log else 0
        for change in context.continued:
            old, new = change.config["pretrain"]["steps"], context.recipe.pretrain.steps
            log.append({"go_on": {"pretrain.steps": [old, new]}, "step": change.step})
        for step in range(done + 1, context.recipe.pretrain.steps + 1):
            log.append({"step": step, "loss": 5.0 / step, "lr": 0.01, "tokens": 1000 * step})
            write_rows(path, log)
            checkpoint = context.folder / f"step-{step:06d}"
            checkpoint.mkdir()
            listing = {"step": step, "config": context.key, "tokens": 1000 * step}
            (checkpoint / "files.json").write_text(json.dumps(listing))
            if step == 4:
                context.write_rows("early.jsonl", [{"perplexity": 20.0}])
                context.judge([context.metric("perplexity@early", "scalar", "early.jsonl", "perplexity")])
        context.write_rows(
            "heldout.jsonl", [{"domain": "code", "bits": 16.0 + i, "bytes": 8} for i in range(5)]
        )
        context.write_rows("size.jsonl", [{"parameters": 12345678}])
        metrics = [
            context.metric("bits_per_byte/code", "ratio", "heldout.jsonl", "bits", "bytes"),
            context.metric("perplexity@early", "scalar", "early.jsonl", "perplexity"),
            context.metric("parameters", "scalar", "size.jsonl", "parameters"),
        ]
        return StageResult(metrics, ["log.jsonl"])


class Evaluate(Stage):
    """19 of 20 right with the calculator, none without."""

    name: ClassVar[str] = "evaluate"
    needs: ClassVar[tuple[str, ...]] = ("pretrain",)
    makes: ClassVar[tuple[str, ...]] = ("answer/{kind}", "answer_without_tool/{kind}")

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return {}

    def run(self, context: StageContext) -> StageResult:
        raw = context.write_rows("answers.jsonl", [{"right": i > 0, "without": 0} for i in range(20)])
        call = {"function": {"name": "calculator", "arguments": {"expression": "2+2"}}}
        messages = [
            {"role": "user", "content": HOSTILE},
            {"role": "assistant", "content": "", "reasoning_content": "it is a sum", "tool_calls": [call]},
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "4."},
        ]
        samples = [{"kind": "calculator", "messages": messages}]
        (context.folder / "samples.json").write_text(json.dumps(samples))
        metrics = [
            context.metric("answer/calculator", "proportion", raw, "right"),
            context.metric("answer_without_tool/calculator", "proportion", raw, "without"),
        ]
        return StageResult(metrics, ["samples.json"])


STAGES: dict[str, type[Stage]] = {
    "data": Data,
    "pretrain": Pretrain,
    "evaluate": Evaluate,
    "report": ReportStage,
}
MODULES = {name: stage.__module__ for name, stage in STAGES.items()}


class Quiet(Reporter):
    def __init__(self) -> None:
        super().__init__(console())

    def say(self, text: str) -> None:
        pass


def go(
    folder: Path,
    wanted: Recipe,
    until: str | None = "report",
    *,
    rehearsal: bool = False,
    go_on: bool = False,
) -> int:
    """Run the recipe, up to the report where not said otherwise; the exit code."""
    source = folder.parent / "source.txt"
    if not source.exists():
        source.write_text("some text")

    def load(name: str) -> Stage | None:
        return STAGES[name]() if name in STAGES else None

    options = Options(go_on=go_on)
    return execute.run(
        wanted,
        folder.parent,
        folder,
        load,
        rehearsal=rehearsal,
        until=until,
        reporter=Quiet(),
        options=options,
    )


def read(folder: Path, modules: Mapping[str, str] = MODULES) -> Run:
    """The run as the report reads it, with the modules of the stages above."""
    return read_run(folder, skip=("report",), modules=modules)
