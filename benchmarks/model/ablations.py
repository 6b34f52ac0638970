"""Grouped-query attention and experts beside plain attention and a dense network, on bytes of Python code.

All arms share depth, width and 8 query heads. GQA arms have fewer key-value heads and are smaller by that. Experts are
compared at equal active FLOPs: the widths of a token's experts add up to the dense network's width, so only the router's
small product comes on top, and parameters grow. Whole files of the standard library are held out.

Each run has a process of its own, so that its peak memory is its own. Measured: bits per byte of held-out text,
parameters, bytes of the key-value cache per token (fp32), training tokens per second by the clock, peak memory beyond what
was held when training began.

Example:
    python benchmarks/model/ablations.py --write benchmarks/model/RESULTS.md
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Clock, bits, code_bytes, finish, machine, parser, rows, shown, trained, windows

from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig

NAME = "ablations.py"
WIDTH, HEADS, LAYERS, FFN = 64, 8, 2, 192
Texts = tuple[np.ndarray, np.ndarray]


class Arm(NamedTuple):
    kv_heads: int = HEADS
    experts: int = 0
    top_k: int = 1


ARMS = {
    "MHA, 8 kv heads, dense": Arm(),
    "GQA, 2 kv heads, dense": Arm(kv_heads=2),
    "MQA, 1 kv head, dense": Arm(kv_heads=1),
    "MHA, top-1 of 4 experts": Arm(experts=4, top_k=1),
    "MHA, top-2 of 8 experts": Arm(experts=8, top_k=2),
}


def shape(arm: Arm, length: int) -> ModelConfig:
    moe = {"num_experts": arm.experts, "top_k": arm.top_k, "expert_size": FFN // arm.top_k}
    return ModelConfig(
        vocab_size=256, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=arm.kv_heads, intermediate_size=FFN, max_position_embeddings=length,
        initializer_range=0.1, ffn_pattern="moe" if arm.experts else "dense",
        ffns={"moe": moe} if arm.experts else {},
    )  # fmt: skip


def run(arm: Arm, args: argparse.Namespace, seed: int, texts: Texts) -> dict[str, float]:
    """Figures of one training."""
    torch.set_num_threads(args.threads)
    train_text, held_out = texts
    config = shape(arm, args.length)
    model, summary = trained(
        config, windows(train_text, args.batch, args.length, seed), args.steps, args.lr, seed, None
    )
    return {
        "bits": bits(model, held_out, args.length, args.rows).mean().item(),
        "parameters": model.num_parameters(),
        "cache": KVCache(config, 1, args.length).bytes / args.length,
        "speed": summary.tokens_per_second,
        "memory": (summary.peak_rss_bytes - summary.start_rss_bytes) / 2**20,
    }


def alone(arm: Arm, args: argparse.Namespace, seed: int, texts: Texts) -> dict[str, float]:
    """`run` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (arm, args, seed, texts))


def section(found: dict[str, dict[str, list[float]]], args: argparse.Namespace, clock: Clock) -> str:
    head = [
        "arm",
        "bits per byte",
        "difference from MHA dense",
        "parameters",
        "cache, bytes/token",
        "training tokens/s",
        "peak memory, MiB",
    ]
    base, body = next(iter(found.values()))["bits"], []
    for name, f in found.items():
        apart = [a - b for a, b in zip(f["bits"], base, strict=True)]
        body.append(
            [
                name,
                shown(f["bits"], 4),
                "-" if f["bits"] is base else shown(apart, 4),
                f"{f['parameters'][0]:,.0f}",
                f"{f['cache'][0]:,.0f}",
                shown(f["speed"], 0),
                shown(f["memory"], 0),
            ]
        )
    text = "## Key-value heads and experts\n\n" + rows(head, body)
    text += (
        f"\n{LAYERS} layers, width {WIDTH}, {HEADS} heads of {WIDTH // HEADS}, feed-forward {FFN} (experts: {FFN} over top-k "
        f"each), {args.steps} steps of {args.batch} rows of {args.length} bytes, {args.rows} held-out windows. AdamW in all arms. Mean over seeds "
        "± half the 95% t interval; the difference is taken seed by seed, both arms with the same batches.\n\n"
    )
    return text + machine(args, clock)


def main(argv: list[str] | None = None, measure: Any = alone) -> None:
    made = parser(__doc__)
    made.add_argument("--length", type=int, default=128)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--steps", type=int, default=120)
    made.add_argument("--lr", type=float, default=3e-3)
    made.add_argument("--rows", type=int, default=256, help="held-out windows")
    args = made.parse_args(argv)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    clock, texts = Clock(args.minutes, processor=True), code_bytes()
    while clock.another(args.seeds):
        for name, arm in ARMS.items():
            figures = measure(arm, args, clock.rounds - 1, texts)
            print(name, clock.rounds - 1, figures, file=sys.stderr, flush=True)
            for key, value in figures.items():
                found[name][key].append(value)
    finish(args, NAME, section(found, args, clock))


if __name__ == "__main__":
    main()
