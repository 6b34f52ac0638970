"""`RANK=r WORLD_SIZE=2 python recursion_ranks.py FOLDER`: deep supervision under ddp, whole and broken off; writes
FOLDER/rank-<r>.json with what each run came to."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from test_recursion import PHASES, Breaking, parts, run

from ikirere.train.parallel import world_of
from ikirere.train.recursion import RecursiveTrainer


def marks(trainer: RecursiveTrainer) -> dict[str, str]:
    return {
        name: hashlib.sha256(value.numpy().tobytes()).hexdigest()
        for name, value in trainer.state_dict().items()
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), world_of("ddp")
    found = {}
    trainer, source = parts(rank, world.size)
    run(folder / "whole", trainer, source, parallel="ddp", checkpoint_every=5)
    found["whole"], found["source"] = marks(trainer), source.state_dict()
    trainer, source = parts(rank, world.size)
    try:
        run(folder / "broken", trainer, source, Breaking(7, RuntimeError), parallel="ddp", checkpoint_every=5)
    except RuntimeError:
        found["stopped"] = source.step
    trainer, source = parts(rank, world.size)
    run(folder / "broken", trainer, source, parallel="ddp", checkpoint_every=5)
    found["resumed"], found["again"] = marks(trainer), source.state_dict()
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    assert PHASES
    main(Path(sys.argv[1]))
