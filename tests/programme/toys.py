"""Three small stages that write real files, a recipe for them, and a script that runs them.

`python toys.py RUN_FOLDER [key=value ...]`: keys of `planned.numbers`, see `SETTINGS`, and `rehearsal=1`.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ikirere.programme.failures import guard
from ikirere.programme.runner import run
from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe

SETTINGS: dict[str, Any] = {
    "rows": 40,
    "steps": 20,
    "pause": 0.0,  # seconds per step of `square`
    "kill_at": -1,  # step of `square` at which the process kills itself, once
    "bytes": 1000,  # size of `square`'s file
    "fail": "",  # what `total` does instead: raise, user, exit
    "target": 0.0,
    "on_miss": "warn",
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
            },
            "planned": {"numbers": toys},
            "gates": {"numbers": [{**gate, "on_miss": toys["on_miss"]}]},
        }
    )  # fmt: skip


def settings_of(recipe: Recipe, *names: str) -> dict[str, Any]:
    return {name: recipe.planned["numbers"][name] for name in names}


class Numbers:
    """Rows of numbers that follow from the seed."""

    name: ClassVar[str] = "numbers"
    needs: ClassVar[tuple[str, ...]] = ()

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return settings_of(recipe, "rows")

    def external(self, recipe: Recipe, recipe_folder: Path) -> str:
        source = recipe_folder / "source.txt"
        return hashlib.sha256(source.read_bytes()).hexdigest() if source.exists() else ""

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


class Square:
    """Works in steps, each kept on the disk, and goes on from the last one after a kill."""

    name: ClassVar[str] = "square"
    needs: ClassVar[tuple[str, ...]] = ("numbers",)

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return settings_of(recipe, "steps", "bytes")

    def external(self, recipe: Recipe, recipe_folder: Path) -> str:
        return ""

    def run(self, context: StageContext) -> StageResult:
        toys = context.recipe.planned["numbers"]
        steps = context.folder / "steps.jsonl"
        done = len(steps.read_text().splitlines()) if steps.exists() else 0
        numbers = [json.loads(line)["n"] for line in (context.inputs["numbers"] / "numbers.jsonl").open()]
        with context.progress("squaring", toys["steps"], "steps") as bar, steps.open("a") as out:
            bar.advance(done)
            for step in range(done, toys["steps"]):
                out.write(json.dumps({"step": step, "square": numbers[step % len(numbers)] ** 2}) + "\n")
                out.flush()
                bar.advance(1, square=float(step))
                if step == toys["kill_at"] and not (context.run_folder / "killed").exists():
                    (context.run_folder / "killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(toys["pause"])
        model = context.folder / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
        with (model / "weights.bin.part").open("wb") as weights:
            weights.write(steps.read_bytes() + b"\0" * toys["bytes"])
        (model / "weights.bin.part").replace(model / "weights.bin")
        return StageResult([context.metric("squares", "mean", "steps.jsonl", "square")], ["model"])


class Total:
    """Adds up; fails where it is told to."""

    name: ClassVar[str] = "total"
    needs: ClassVar[tuple[str, ...]] = ("square", "numbers")

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return settings_of(recipe, "fail")

    def external(self, recipe: Recipe, recipe_folder: Path) -> str:
        return ""

    def run(self, context: StageContext) -> StageResult:
        from ikirere.errors import UserError

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
    always: ClassVar[bool] = True

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
    settings = {key: type(SETTINGS[key])(value) for key, value in pairs.items()}
    return guard(lambda: run(toy_recipe(**settings), folder.parent, folder, load_toy, rehearsal=rehearsal))


if __name__ == "__main__":
    sys.exit(main())
