"""What the learning benchmarks of models share: text, training through Ikirere's loop, intervals, the table's place."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import platform
import re
import shlex
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results import written

from ikirere.common.intervals import wilson
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.recipe.sections import Optimizer, Schedule, Training
from ikirere.tokens.batch import Batch
from ikirere.train.callbacks import Callbacks, Source, TrainSummary
from ikirere.train.loop import train
from ikirere.train.objective import CrossEntropy

__all__ = [
    "Clock", "Drawn", "bits", "code_bytes", "finish", "interval", "machine", "parser", "rows", "shown", "trained",
    "wilson", "windows", "written",
]  # fmt: skip
HELD_OUT = 8  # one file in so many
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5%, 1 to 9 degrees of freedom


# ---------------------------------------------------------------- command line and clock


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the options that every script has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--seeds", type=int, default=3, help="runs of each arm, with seeds 0, 1, ...")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument(
        "--minutes",
        type=float,
        default=15.0,
        help="no further seed starts that would end after so many",
    )
    made.add_argument("--write", type=Path, default=None, help="Markdown file whose section is replaced")
    return made


class Clock:
    """Says whether one more round of all arms fits into the minutes that are left.

    processor: the minutes are of processor time, child processes that have ended included, so that other work on the
    machine does not cost seeds; else they are the wall clock's.
    """

    def __init__(self, minutes: float, processor: bool = False) -> None:
        self.processor, self.limit, self.rounds = processor, 60 * minutes, 0
        self.began, self.cpu_began = time.monotonic(), self._cpu()

    @staticmethod
    def _cpu() -> float:
        return sum(os.times()[:4])

    @property
    def cpu_seconds(self) -> float:
        """Of this process and its children since the clock was made."""
        return self._cpu() - self.cpu_began

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def another(self, wanted: int) -> bool:
        """True for the first round, and while `wanted` is not reached and the rounds so far leave room for one more."""
        spent = self.cpu_seconds if self.processor else self.seconds
        fits = not self.rounds or spent * (self.rounds + 1) / self.rounds <= self.limit
        if self.rounds >= wanted or not fits:
            return False
        self.rounds += 1
        return True


# ---------------------------------------------------------------- figures


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the 95% interval of Student's t over seeds; nan for fewer than two."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    width = STUDENT[min(len(values) - 2, len(STUDENT) - 1)] * statistics.stdev(values)
    return statistics.fmean(values), width / math.sqrt(len(values))


def shown(values: Sequence[float], digits: int = 3) -> str:
    """`mean ± half the interval`."""
    mean, half = interval(values)
    return f"{mean:,.{digits}f}" + ("" if math.isnan(half) else f" ± {half:,.{digits}f}")


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)]) + "\n"


def machine(args: argparse.Namespace, clock: Clock) -> str:
    """Where and how the figures came about."""
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = re.findall(r"model name\s*: (.*)", known)
    command = shlex.join(["python", f"benchmarks/model/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores shared with other work, "
        f"{args.threads} thread(s), fp32; torch {torch.__version__}, Python {platform.python_version()}; "
        f"{clock.rounds} seed(s), {clock.seconds / 60:.1f} minutes, {clock.cpu_seconds / 60:.1f} of processor time: "
        f"`{command}`\n"
    )


def finish(args: argparse.Namespace, name: str, text: str) -> None:
    """Prints the section and, with --write, puts it into its file."""
    print(text)
    if args.write:
        written(args.write, name, text)


# ---------------------------------------------------------------- text


def code_bytes() -> tuple[np.ndarray, np.ndarray]:
    """The standard library's Python files end to end as uint8, each with a 0 behind it: (training, held out).

    A file is held out when the hash of its path within the library says so, so files of the two never mix. Their order
    is that of the hashes.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    found = [(p.relative_to(library).as_posix(), p) for p in library.rglob("*.py")]
    found = [(name, p) for name, p in found if not {"site-packages", "test", "tests"} & set(Path(name).parts)]
    for digest, path in sorted((hashlib.sha256(name.encode()).digest(), p) for name, p in found):
        parts[digest[-1] % HELD_OUT == 0].append(path.read_bytes().replace(b"\0", b"") + b"\0")
    joined = [np.frombuffer(b"".join(part), dtype=np.uint8) for part in parts]
    return joined[0], joined[1]


class Drawn:
    """A source whose batch is a function of seed and step."""

    def __init__(self, batch: Callable[[np.random.Generator, int], Batch], seed: int) -> None:
        self.batch, self.seed, self.step = batch, seed, 0

    def next(self) -> Batch:
        self.step += 1
        return self.batch(np.random.default_rng((self.seed, self.step)), self.step - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]


def windows(data: np.ndarray, batch: int, length: int, seed: int) -> Drawn:
    """Random windows of a text, each next byte a label."""
    positions = torch.arange(length).expand(batch, length)

    def draw(rng: np.random.Generator, step: int) -> Batch:
        starts = rng.integers(0, len(data) - length, batch)
        window = torch.from_numpy(data[starts[:, None] + np.arange(length + 1)].astype(np.int64))
        return Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), positions)

    return Drawn(draw, seed)


@torch.no_grad()
def bits(model: Decoder, data: np.ndarray, length: int, count: int) -> torch.Tensor:
    """Bits of each byte, [count, length], of `count` windows that lie evenly over the text."""
    starts = np.linspace(0, len(data) - length - 1, count).astype(np.int64)
    window = torch.from_numpy(data[starts[:, None] + np.arange(length + 1)].astype(np.int64))
    size, found = max(1, 8192 // length), []
    for part in window.split(size):
        logits = model(part[:, :-1])
        found.append(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none"))
    return torch.cat(found).view(count, length) / math.log(2)


# ---------------------------------------------------------------- training


def trained(
    config: ModelConfig,
    source: Source,
    steps: int,
    lr: float,
    seed: int,
    muon_lr: float | None = 0.02,
    before: Callable[[int, Decoder], None] | None = None,
) -> tuple[Decoder, TrainSummary]:
    """A decoder of weights drawn from `seed`, after `steps` of Ikirere's loop; in evaluation mode.

    before: called ahead of each step with the number of those that are done.
    """
    model = Decoder(config)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    optimizer = Optimizer(name="muon" if muon_lr else "adamw", lr=lr, muon_lr=muon_lr, weight_decay=0.01)
    training = Training(
        optimizer=optimizer, schedule=Schedule(name="wsd", warmup=0.05, decay=0.3), precision="fp32",
        compile="off", checkpoint_every=10**9, log_every=50,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        callbacks = Callbacks() if before is None else Callbacks(before=before)
        summary = train(model, source, CrossEntropy(), training, steps, Path(folder), seed, callbacks)
    return model.eval(), summary
