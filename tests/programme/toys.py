"""Three small stages that write real files, a recipe for them, and a script that runs them.

`python toys.py RUN_FOLDER [key=value ...]`: keys of `planned.numbers`, see `SETTINGS`, and `rehearsal=1`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ikirere.errors import UserError
from ikirere.programme.execute import run
from ikirere.programme.failures import guard
from ikirere.programme.metrics import Metric
from ikirere.programme.progress import Reporter, console
from ikirere.programme.runner import Options
from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe


class Lines(Reporter):
    """Keeps the lines that a run reports."""

    def __init__(self) -> None:
        super().__init__(console())
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


SETTINGS: dict[str, Any] = {
    "rows": 40,
    "steps": 20,
    "pause": 0.0,  # seconds per step of `square`
    "kill_at": -1,  # step of `square` at which the process kills itself, once
    "bytes": 1000,  # size of `square`'s file
    "fail": "",  # what `total` does instead: raise, user, exit
    "factor": 1,  # of what `square` writes
    "watch": 1,  # changes only what `square` measures
    "target": 0.0,
    "on_miss": "warn",
    "milestone": 0,  # step of `square` with a gate on squares@half
    "stop_beyond": 1e9,
}


def toy_recipe(
    stages: tuple[str, ...] = ("numbers", "square", "total"), seed: int = 3, **settings: Any
) -> Recipe:
    toys = {**SETTINGS, **settings}
    gate = {"name": "half are even", "metric": "even", "op": ">=", "target": toys["target"]}
    return Recipe.model_validate(
        {
            "name": "toy",
            "seed": seed,
            "stages": stages,
            "hardware": {"device": "cpu"},
            "tracker": {"kind": "none"},
            "data": {"sources": [{"kind": "python-environment"}]},
            "tokenizer": {"kind": "bpe", "vocab_size": 512},
            "model": {
                "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 1, "intermediate_size": 128, "max_position_embeddings": 128,
            },
            "pretrain": {
                "phases": [{"name": "main", "steps": 10, "sequence_length": 64, "batch_size": 2, "mixture": {"code": 1}}],
                "optimizer": {"lr": 0.001},
                "milestones": [{"name": "half", "step": toys["milestone"]}] if toys["milestone"] else [],
            },
            "planned": {"numbers": toys},
            "gates": {"numbers": [{**gate, "on_miss": toys["on_miss"]}]} | _milestone_gate(toys, stages),
        }
    )  # fmt: skip


def _milestone_gate(toys: Mapping[str, Any], stages: tuple[str, ...]) -> dict[str, Any]:
    if not toys["milestone"] or "square" not in stages:
        return {}
    bound = {"target": 0.0, "stop_beyond": toys["stop_beyond"]}
    return {"square": [{"name": "half way", "metric": "squares@half", "op": "<=", **bound}]}


def settings_of(recipe: Recipe, *names: str) -> dict[str, Any]:
    return {name: recipe.planned["numbers"][name] for name in names}


class Numbers(Stage):
    """Rows of numbers that follow from the seed."""

    name: ClassVar[str] = "numbers"
    makes = ("even", "mean")
    outputs = ("numbers.jsonl",)

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return settings_of(recipe, "rows")

    def external(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        source = recipe_folder / "source.txt"
        return {"source.txt": hashlib.sha256(source.read_bytes()).hexdigest()} if source.exists() else {}

    def check(self, recipe: Recipe, recipe_folder: Path) -> None:
        if recipe.planned["numbers"]["rows"] > 1000:
            raise UserError("planned.numbers.rows: at most 1000 are accepted; lower it")

    def run(self, context: StageContext) -> StageResult:
        count = context.recipe.planned["numbers"]["rows"]
        rows = [
            {"n": (i * 7 + context.seed) % 101, "even": (i * 7 + context.seed) % 101 % 2 == 0}
            for i in range(count)
        ]
        raw = context.write_rows("numbers.jsonl", rows)
        context.say(f"{count} numbers")
        metrics = [
            context.metric("even", "proportion", raw, "even"),
            context.metric("mean", "mean", raw, "n"),
        ]
        return StageResult(metrics, ["numbers.jsonl"])


class Square(Stage):
    """Works in steps, each kept on the disk, and continues after the last one after a kill. What it writes at each step
    depends on `factor`, so a change during the run can be seen."""

    name: ClassVar[str] = "square"
    needs: ClassVar[tuple[str, ...]] = ("numbers",)
    makes = ("squares", "squares@{milestone}", "watched")
    outputs = ("model",)
    trains = True

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return {"square": settings_of(recipe, "steps", "bytes", "factor")}

    def measuring(self, recipe: Recipe) -> Mapping[str, Any]:
        return {"square": settings_of(recipe, "watch")}

    def can_go_on(self, changed: Iterable[str]) -> list[str]:
        return [key for key in changed if key not in ("square.steps", "square.factor")]

    def run(self, context: StageContext) -> StageResult:
        toys = context.recipe.planned["numbers"]
        steps = context.folder / "steps.jsonl"
        done = len(steps.read_text().splitlines()) if steps.exists() else 0
        numbers = [json.loads(line)["n"] for line in (context.inputs["numbers"] / "numbers.jsonl").open()]
        self.judge_passed(context)
        with context.progress("squaring", toys["steps"], "steps") as bar, steps.open("a") as out:
            bar.advance(done)
            for step in range(done, toys["steps"]):
                square = toys["factor"] * numbers[step % len(numbers)] ** 2
                out.write(json.dumps({"step": step, "square": square, "watched": toys["watch"]}) + "\n")
                out.flush()
                self.checkpoint(context, step + 1)
                bar.advance(1, square=float(step))
                if step == toys["kill_at"] and not (context.run_folder / "killed").exists():
                    (context.run_folder / "killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(toys["pause"])
                self.milestone(context, step + 1)
        model = context.folder / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
        with (model / "weights.bin.part").open("wb") as weights:
            weights.write(json.dumps([json.loads(line)["square"] for line in steps.open()]).encode())
            weights.write(b"\0" * toys["bytes"])
        (model / "weights.bin.part").replace(model / "weights.bin")
        metrics = [context.metric("squares", "mean", "steps.jsonl", "square")]
        for milestone in context.recipe.pretrain.milestones:
            if (context.folder / f"{milestone.name}.jsonl").exists():
                metrics.append(self.measured(context, milestone.name))
        metrics.append(
            context.metric("watched", "scalar", context.write_rows("w.jsonl", [{"w": toys["watch"]}]), "w")
        )
        return StageResult(metrics, ["model"])

    @staticmethod
    def checkpoint(context: StageContext, step: int) -> None:
        """As a training leaves them: only the newest stays."""
        for old in context.folder.glob("step-*"):
            shutil.rmtree(old)
        folder = context.folder / f"step-{step:06d}"
        folder.mkdir()
        listing = {"step": step, "config": context.key, "tokens": 10 * step, "loss": 1 / step, "purpose": ""}
        (folder / "files.json").write_text(json.dumps(listing))

    @staticmethod
    def measured(context: StageContext, name: str) -> Metric:
        return context.metric(f"squares@{name}", "scalar", f"{name}.jsonl", "squares")

    def judge_passed(self, context: StageContext) -> None:
        """The milestones that were reached before, by the gates of now."""
        for milestone in context.recipe.pretrain.milestones:
            if (context.folder / f"{milestone.name}.jsonl").exists():
                context.judge([self.measured(context, milestone.name)])

    def milestone(self, context: StageContext, step: int) -> None:
        for milestone in context.recipe.pretrain.milestones:
            if milestone.step == step:
                context.write_rows(f"{milestone.name}.jsonl", [{"squares": float(step)}])
                context.judge([self.measured(context, milestone.name)])


class Total(Stage):
    """Adds up; fails where its settings ask for it."""

    name: ClassVar[str] = "total"
    needs: ClassVar[tuple[str, ...]] = ("square", "numbers")
    makes: ClassVar[tuple[str, ...]] = ("total",)

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return {"total": settings_of(recipe, "fail")}

    def run(self, context: StageContext) -> StageResult:
        match context.recipe.planned["numbers"]["fail"]:
            case "raise":
                raise ZeroDivisionError("something nobody foresaw")
            case "user":
                raise UserError("planned.numbers.fail: is 'user'; set it to ''")
        rows = [json.loads(line) for line in (context.inputs["square"] / "steps.jsonl").open()]
        context.write_rows("total.jsonl", [{"total": sum(row["square"] for row in rows)}])
        (context.folder / "page.html").write_text("<p>total</p>")
        return StageResult([context.metric("total", "scalar", "total.jsonl", "total")], ["page.html"])


class Last(Total):
    """Runs also after a stop."""

    name: ClassVar[str] = "last"
    needs: ClassVar[tuple[str, ...]] = ("numbers", "square")
    makes: ClassVar[tuple[str, ...]] = ("inputs",)
    always: ClassVar[bool] = True
    reads_results: ClassVar[bool] = True

    def run(self, context: StageContext) -> StageResult:
        context.write_rows("seen.jsonl", [{"inputs": len(context.inputs)}])
        return StageResult([context.metric("inputs", "scalar", "seen.jsonl", "inputs")], [])


TOYS: dict[str, type[Stage]] = {"numbers": Numbers, "square": Square, "total": Total, "last": Last}


def load_toy(name: str) -> Stage | None:
    return TOYS[name]() if name in TOYS else None


def main() -> int:
    folder = Path(sys.argv[1])
    pairs = dict(argument.split("=", 1) for argument in sys.argv[2:])
    rehearsal = bool(pairs.pop("rehearsal", ""))
    options = Options(
        frozenset(filter(None, [pairs.pop("rebuild", "")])), bool(pairs.pop("go_on", "")),
        expensive_seconds=float(pairs.pop("expensive", "600")),
    )  # fmt: skip
    settings = {key: type(SETTINGS[key])(value) for key, value in pairs.items()}
    return guard(
        lambda: run(
            toy_recipe(**settings), folder.parent, folder, load_toy, rehearsal=rehearsal, options=options
        )
    )


if __name__ == "__main__":
    sys.exit(main())
