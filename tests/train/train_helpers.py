"""A small model, a source of batches, and a script that trains with them.

`python train_helpers.py FOLDER [key=value ...]`: keys of `SETTINGS`. Writes the weights' sha256 to FOLDER/weights.
`python train_helpers.py` without arguments reads JSON lines, each a list of [arguments, environment]: it runs them
side by side as processes forked from itself, which have torch loaded already, and prints their exit codes.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.recipe.sections import Optimizer, Schedule, Training
from ikirere.tokens.batch import Batch
from ikirere.train import checkpoint
from ikirere.train.loop import Callbacks, TrainSummary, train
from ikirere.train.objective import CrossEntropy
from ikirere.train.parallel import whole_weights

VOCAB = 61
SETTINGS: dict[str, Any] = {
    "steps": 12,
    "every": 4,
    "kill_step": -1,  # kills itself when this step's batch is asked for
    "kill_save": "",  # kills itself while writing a checkpoint: WHEN:STEP, when: seal, swap or prune
    "kill_after": 0.0,  # kills itself so many seconds after training began
    "micro": 0,
    "mode": "none",
    "rows": 8,
    "optimizer": "muon",
    "lr": 3e-3,
    "key": "a",
    "accepted": "",  # one further key from whose checkpoints it continues
}


def small_model(seed: int = 0) -> Decoder:
    config = ModelConfig(VOCAB, 32, 2, 4, 2, 48, 64, qk_norm=True)
    model = Decoder(config)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model


class Numbers:
    """Batches that are a function of the step: counting modulo VOCAB from random starts, some positions unlabelled."""

    def __init__(self, rows: int = 8, length: int = 16, rank: int = 0, world: int = 1) -> None:
        self.rows, self.length, self.step = rows, length, 0
        self.part = slice(rank * rows // world, (rank + 1) * rows // world)

    def next(self) -> Batch:
        rng = np.random.default_rng(self.step)
        starts, strides = rng.integers(0, VOCAB, (self.rows, 1)), rng.integers(1, 3, (self.rows, 1))
        ids = torch.from_numpy((starts + strides * np.arange(self.length + 1)) % VOCAB)
        labels = ids[:, 1:].clone()
        for row, count in enumerate(rng.integers(0, self.length - 1, self.rows)):
            labels[row, : int(count)] = -100
        positions = torch.arange(self.length).expand(self.rows, self.length)
        self.step += 1
        return Batch(ids[self.part, :-1].contiguous(), labels[self.part], positions[self.part])

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]


def settings(**changes: Any) -> Training:
    values: dict[str, Any] = {
        "optimizer": Optimizer(name="muon", lr=3e-3, muon_lr=0.02),
        "schedule": Schedule(warmup=2),
        "checkpoint_every": 4,
        "log_every": 3,
        "precision": "fp32",
    }
    return Training(**{**values, **changes})


def fingerprint(weights: nn.Module | dict[str, Tensor]) -> str:
    """sha256 of a model's weights, by name."""
    weights = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode() + value.detach().numpy().tobytes())
    return digest.hexdigest()


def run(folder: Path, model: nn.Module | None = None, **changes: Any) -> TrainSummary:
    """Trains for `steps` with everything else as `SETTINGS` or `changes` say."""
    chosen = {**SETTINGS, **changes}
    source = chosen.get("source") or Numbers(chosen["rows"])
    values = {
        "checkpoint_every": chosen["every"],
        "micro_batch_size": chosen["micro"] or None,
        "parallel": chosen["mode"],
        "optimizer": Optimizer(name=chosen["optimizer"], lr=chosen["lr"], muon_lr=0.02),
    }
    training = settings(**{**values, **chosen.get("training", {})})
    return train(
        model or small_model(),
        source,
        chosen.get("objective") or CrossEntropy(1e-4),
        training,
        chosen["steps"],
        folder,
        seed=1,
        callbacks=chosen.get("callbacks") or Callbacks(say=print),
        key=chosen["key"],
        accepted=chosen["accepted"],
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Products this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillingNumbers(Numbers):
    """Kills its process when the batch of `at` is asked for."""

    at = -1

    def next(self) -> Batch:
        if self.step == self.at:
            _kill()
        return super().next()


def _kill_while_saving(when: str, at: int) -> None:
    """Before the files are hashed, before the folder gets its name, or after it."""
    seal, swap = checkpoint._seal, checkpoint._swap

    def watched_seal(part: Path, listed: dict[str, Any]) -> None:
        if when == "seal" and listed["step"] == at:
            _kill()
        seal(part, listed)

    def watched_swap(part: Path, final: Path) -> None:
        if when == "swap" and checkpoint.step_of(final) == at:
            _kill()
        swap(part, final)
        if when == "prune" and checkpoint.step_of(final) == at:
            _kill()

    checkpoint._seal, checkpoint._swap = watched_seal, watched_swap


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    folder = Path(arguments[0])
    given = dict(argument.split("=") for argument in arguments[1:])
    chosen = {k: type(v)(given.get(k, v)) for k, v in SETTINGS.items()}
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    source = KillingNumbers(chosen["rows"], rank=rank, world=world)
    source.at = chosen["kill_step"]
    if chosen["kill_save"]:
        when, at = chosen["kill_save"].split(":")
        _kill_while_saving(when, int(at))
    model = small_model()
    if chosen["kill_after"]:
        threading.Timer(chosen["kill_after"], _kill).start()
    run(folder, model, source=source, **chosen)
    weights = whole_weights(model)
    if rank == 0 and not chosen["kill_after"]:
        (folder / "weights").write_text(fingerprint(weights))


def serve() -> None:
    import torch._dynamo
    import torch.distributed.checkpoint
    import torch.distributed.fsdp  # noqa: F401

    for line in sys.stdin:
        children = []
        for arguments, environment in json.loads(line):
            if (child := os.fork()) == 0:
                sys.stdout = sys.stderr
                os.environ.update(environment)
                try:
                    main(arguments)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:]) if len(sys.argv) > 1 else serve()
