"""Tiny recursion on small puzzles: the share of held-out puzzles solved whole, beside the same network without it.

Both arms are trained by the package's own loop (`train.loop` with `RecursiveTrainer`) on the same puzzles from the same
weights, with equal processor time: a short probe of each arm gives its seconds per optimiser step, and so the steps
that `--minutes` of processor time are worth. What is measured is the moving average of the weights.

* recursive: n inner updates, T cycles, up to `steps` supervision steps per example with halting; all of
  them when measured.
* single: n = T = 1 and one supervision step, which is two calls of the core (z, then y): the least that the
  same weights can be run with.

Puzzles are made here and split by canonical form (see trm_tasks.py). The interval over seeds is Student's t of the
seeds' shares, that of one seed Wilson's, both 95%.

Example:
    python benchmarks/model/trm.py --task sudoku4 --seeds 0 1 2 --minutes 7 --write benchmarks/model/RESULTS.md
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import interval, rows, wilson, written
from trm_tasks import TASKS, Task

from ikirere.model.build import build_model
from ikirere.model.config import ModelConfig
from ikirere.model.recursive import RecursiveModel
from ikirere.recipe.sections import Optimizer, Schedule, Training
from ikirere.train.loop import Callbacks, train
from ikirere.train.recursion import CarriedRows, DeepSupervision, Example, RecursiveTrainer

NAME = "trm.py"
PROBE = 12  # steps


@dataclass(frozen=True)
class Settings:
    """What was tuned, per task, on seeds other than those measured."""

    hidden: int
    batch: int
    lr: float
    inner: int
    cycles: int
    steps: int = 16  # of supervision, at most
    decay: float = 0.1
    ema: float = 0.995
    draws: int = 40_000
    pattern: str = "full"  # the core's mixer: attention, or mlp, a network over positions
    across: int = 64  # its width


SETTINGS = {
    "sudoku4": Settings(64, 32, 3e-3, 2, 2, steps=4, ema=0.99, pattern="mlp"),
    "maze7": Settings(64, 16, 3e-3, 1, 2, steps=4, ema=0.99, draws=12_000, pattern="mlp", across=96),
    "sudoku9": Settings(96, 16, 1e-3, 2, 2, steps=8, ema=0.99, draws=16_000, pattern="mlp", across=256),
}
HELDOUT = 1000


@dataclass(frozen=True)
class Stretch:
    """The one phase of a run."""

    steps: int
    sequence_length: int
    batch_size: int


class Rows:
    """The training puzzles in an order drawn by the seed, again and again in new orders."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed, self.orders = task, seed, {}

    def fingerprint(self, begun: int) -> str:
        return f"{self.task.name} {self.seed}"

    def example(self, phase: int, number: int) -> Example:
        epoch, place = divmod(number, len(self.task.train[0]))
        if epoch not in self.orders:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.task.train[0]))
            self.orders = {epoch: order}
        i = self.orders[epoch][place]
        return Example(*(torch.from_numpy(part[i]) for part in self.task.train))


def network(task: Task, s: Settings, recursive: bool, seed: int) -> RecursiveModel:
    recursion = {"puzzle_tokens": 1, "ema": s.ema}
    recursion |= (
        {"inner_updates": s.inner, "cycles": s.cycles, "supervision_steps": s.steps}
        if recursive
        else {"inner_updates": 1, "cycles": 1, "supervision_steps": 1}
    )
    heads = s.hidden // 16
    config = ModelConfig.from_dict(
        {
            "family": "recursive", "vocab_size": task.vocabulary, "hidden_size": s.hidden, "num_hidden_layers": 2,
            "num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": 2 * s.hidden,
            "max_position_embeddings": task.train[0].shape[1], "layer_pattern": s.pattern, "tie_word_embeddings": False,
            "mixers": {"recursive": recursion} | ({"mlp": {"intermediate_size": s.across}} if s.pattern == "mlp" else {}),
        }
    )  # fmt: skip
    model = build_model(config)
    assert isinstance(model, RecursiveModel)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model


def exact(model: RecursiveModel, task: Task, step: int | None = None) -> tuple[int, int]:
    """(puzzles solved whole, puzzles) of the held-out ones."""
    tokens, labels = (torch.from_numpy(part) for part in task.heldout)
    right = 0
    for some, wanted in zip(tokens.split(128), labels.split(128)):
        found = model(some, steps=step).logits.argmax(-1)
        right += int((found == wanted).all(-1).sum())
    return right, len(tokens)


def run(
    task: Task, s: Settings, recursive: bool, seed: int, steps: int, say: Callable[[str], None] | None
) -> dict[str, Any]:
    """Trains one arm; processor seconds, exact share and the curve."""
    model = network(task, s, recursive, seed)
    length = task.train[0].shape[1]
    trainer = RecursiveTrainer(model, s.batch, length)
    source = CarriedRows(
        Rows(task, seed), [Stretch(steps, length, s.batch)], trainer.halted, seed,
        limit=model.settings.supervision_steps,
    )  # fmt: skip
    training = Training(
        optimizer=Optimizer(name="adamw", lr=s.lr, betas=(0.9, 0.95), weight_decay=s.decay, grad_clip=1.0),
        schedule=Schedule(name="wsd", warmup=min(100.0, 0.1 * steps) if steps >= 20 else 0.1, decay=0.3, min_ratio=0.05),
        precision="fp32", compile="off", checkpoint_every=10**9, log_every=max(1, steps // 20),
    )  # fmt: skip
    curve: list[tuple[int, float]] = []
    callbacks = Callbacks()
    spent = 0.0

    def measure(step: int, trained: RecursiveTrainer) -> None:
        nonlocal spent
        began = time.process_time()
        right, count = exact(trained.ema, task)
        curve.append((step, right / count))
        if say is not None:
            say(f"  step {step}: exact {right / count:.4f}")
        spent += time.process_time() - began

    if say is not None:
        callbacks.every.append((max(1, steps // 6), measure))
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        summary = train(trainer, source, DeepSupervision(), training, steps, Path(folder), seed, callbacks)
    seconds = time.process_time() - began - spent
    right, count = exact(trainer.ema, task)
    first, _ = exact(trainer.ema, task, 1)
    return {
        "right": right, "count": count, "first": first, "steps": steps, "cpu_seconds": seconds, "curve": curve,
        "parameters": model.num_parameters(), "examples": source.assigned, "loss": summary.final_loss,
    }  # fmt: skip


def affordable(task: Task, s: Settings, recursive: bool, minutes: float) -> int:
    """Optimiser steps that so much processor time is worth."""
    run(task, s, recursive, 99, 2, None)
    found = run(task, s, recursive, 99, PROBE, None)
    return max(PROBE, int(60 * minutes / (found["cpu_seconds"] / PROBE)))


def student(shares: list[float]) -> str:
    """Mean and 95% interval over seeds, cut at 0 and 1."""
    mean, half = interval(shares)
    return (
        f"{mean:.2%}"
        if math.isnan(half)
        else f"{mean:.2%} ({max(0.0, mean - half):.2%} to {min(1.0, mean + half):.2%})"
    )


def table(results: dict[str, Any], command: str, section: str) -> str:
    body = []
    for name, found in results.items():
        for arm, runs in found["arms"].items():
            if not runs:
                continue
            each = [
                "{:.2%} ({:.2%} to {:.2%})".format(
                    r["right"] / r["count"], *wilson(r["right"], r["count"], 0.95)
                )
                for r in runs
            ]
            cpu = statistics.fmean(r["cpu_seconds"] for r in runs) / 60
            first = statistics.fmean(r["first"] / r["count"] for r in runs)
            body.append(
                [
                    name, arm, f"{runs[0]['parameters']:,}", f"{statistics.fmean(r['steps'] for r in runs):,.0f}",
                    f"{statistics.fmean(r['examples'] for r in runs):,.0f}", f"{cpu:.1f}",
                    f"**{student([r['right'] / r['count'] for r in runs])}**", "; ".join(each), f"{first:.2%}",
                ]
            )  # fmt: skip
    head = [
        "task", "arm", "parameters", "optimiser steps", "examples begun", "processor time, min", "solved whole",
        "each seed", "after 1 step",
    ]  # fmt: skip
    notes = "\n".join(f"- {name}: {found['note']}" for name, found in results.items())
    return (
        f"## Recursion on small puzzles{section.removeprefix(NAME)}\n\n{rows(head, body)}\nHeld-out puzzles, the moving average of the weights after all "
        "supervision steps (single: after its one). Intervals 95%: Student's t over seeds, Wilson within one. torch "
        f"{torch.__version__}, {torch.get_num_threads()} thread(s) of a shared machine: `{command}`\n\n{notes}\n"
    )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", nargs="+", choices=sorted(TASKS), default=["sudoku4", "maze7"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=4.0, help="processor time of each arm and seed")
    parser.add_argument(
        "--steps", type=int, help="optimiser steps of the recursive arm, in place of --minutes"
    )
    parser.add_argument("--arms", nargs="+", choices=["recursive", "single"], default=["recursive", "single"])
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--set", nargs="*", default=[], help="settings as name=value, for tuning")
    parser.add_argument(
        "--raw", type=Path, help="JSON lines of all runs; those that are there are not run again"
    )
    parser.add_argument(
        "--write", type=Path, help="a Markdown file, whose section of this script is replaced"
    )
    parser.add_argument(
        "--section", default=NAME, help="marker in the file, for a table of further runs beside the first"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    changes = {name: _value(value) for name, value in (item.split("=") for item in args.set)}
    results: dict[str, Any] = {}
    known: dict[str, Any] = {}
    if args.raw and args.raw.exists():
        known = {json.dumps(r["key"]): r for r in map(json.loads, args.raw.read_text().splitlines())}
    asked = f"--task {' '.join(args.task)} --seeds {' '.join(map(str, args.seeds))} " + (
        f"--steps {args.steps}" if args.steps else f"--minutes {args.minutes:g}"
    )
    asked += f" --arms {' '.join(args.arms)}" * (len(args.arms) == 1) + f" --set {' '.join(args.set)}" * bool(
        args.set
    )
    command = f"python benchmarks/model/trm.py {asked} --threads {args.threads}"
    for name in args.task:
        s = Settings(**{**SETTINGS[name].__dict__, **changes})
        task = TASKS[name](s.draws, HELDOUT, 12345)
        print(f"{name}: {task.note}; {s}", flush=True)
        results[name] = {"note": f"{task.note}; {s}", "arms": {arm: [] for arm in args.arms}}
        for seed in args.seeds:
            for arm in args.arms:
                key = [name, arm, seed, args.minutes, args.steps, str(s)]
                if (found := known.get(json.dumps(key))) is None:
                    recursive = arm == "recursive"
                    steps = (
                        args.steps
                        if args.steps and recursive
                        else affordable(task, s, recursive, args.minutes)
                    )
                    print(f"{name} {arm} seed {seed}: {steps} steps", flush=True)
                    found = run(task, s, recursive, seed, steps, lambda line: print(line, flush=True)) | {
                        "key": key
                    }
                    if args.raw:
                        with args.raw.open("a") as out:
                            out.write(json.dumps(found) + "\n")
                share = found["right"] / found["count"]
                print(
                    f"{name} {arm} seed {seed}: exact {share:.4f}, {found['cpu_seconds']:.0f} s", flush=True
                )
                results[name]["arms"][arm].append(found)
                if args.write:
                    written(args.write, args.section, table(results, command, args.section))
    print(table(results, command, args.section))


if __name__ == "__main__":
    main()
