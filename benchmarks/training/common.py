"""What all arms of the training benchmark share: the data on disk, the measure, the report line.

Needs only numpy and torch, so that it runs in a peer's environment too.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

CONTEXT = 128
BATCH = 16
VOCABULARY = 1024
LAYERS, HEADS, WIDTH = 4, 4, 128


def arguments(description: str) -> argparse.Namespace:
    """The command line of an arm."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.bin, val.bin, val.json")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument(
        "--peer", type=Path, default=None, help="the peer's checkout, where it has no package"
    )
    parser.add_argument("--variant", default="", help="a named setting of the arm")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    return args


def tokens(folder: Path, name: str) -> np.ndarray:
    """train or val tokens, uint16."""
    return np.fromfile(folder / f"{name}.bin", dtype=np.uint16)


def windows(data: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Consecutive windows of CONTEXT tokens and their next tokens, int64 [n, CONTEXT]; the rest is left out."""
    count = (len(data) - 1) // CONTEXT
    inputs = data[: count * CONTEXT].astype(np.int64).reshape(count, CONTEXT)
    targets = data[1 : count * CONTEXT + 1].astype(np.int64).reshape(count, CONTEXT)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


@torch.no_grad()
def bits_per_byte(logits: Callable[[torch.Tensor], torch.Tensor], folder: Path) -> float:
    """Of the validation text: each token with at most CONTEXT - 1 tokens before it."""
    inputs, targets = windows(tokens(folder, "val"))
    nats = 0.0
    for start in range(0, len(inputs), 64):
        out = logits(inputs[start : start + 64])[..., :VOCABULARY].float()
        nats += torch.nn.functional.cross_entropy(
            out.flatten(0, 1), targets[start : start + 64].flatten(), reduction="sum"
        ).item()
    per_byte = json.loads((folder / "val.json").read_text())["bytes_per_token"] * targets.numel()
    return nats / math.log(2) / per_byte


def report(**values: Any) -> None:
    """The arm's result, as the last line of its output."""
    print("RESULT " + json.dumps(values), flush=True)
