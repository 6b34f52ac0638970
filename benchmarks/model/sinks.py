"""Attention sinks on and off, beyond the length of training: window attention on bytes of Python code.

Small models learn the standard library's code in rows of --length bytes, with a window a quarter of that; whole files
are held out. Arms differ in the sinks: none, the first 4 tokens (Xiao et al. 2023, arXiv 2309.17453), a learned logit per
head (gpt-oss, arXiv 2508.10925). In the second block the model was trained with full attention and gets its window
afterwards, which is the case that first-token sinks were made for: it has learned to look at its first tokens.

Measured on held-out text of 4 times the length: perplexity per byte by position, and the share of 4-grams of bytes that
occur earlier in the same continuation (greedy, and sampled at --temperature) from prompts of half a length up to 4 lengths.

Example:
    python benchmarks/model/sinks.py --write benchmarks/model/RESULTS.md
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Clock, bits, code_bytes, finish, machine, parser, rows, shown, trained, windows

from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder

NAME = "sinks.py"
WIDTH, HEADS, LAYERS, GRAM = 64, 4, 2, 4


class Arm(NamedTuple):
    trained: str  # which training its weights come from
    settings: dict[str, Any] | None  # of the window; None: full attention


TRAININGS: dict[str, dict[str, Any] | None] = {
    "window": {},
    "window, first 4 tokens": {"sinks": 4},
    "window, learned sinks": {"learned_sinks": True},
    "full": None,
}
ARMS = {
    "window, no sinks": Arm("window", {}),
    "window, first 4 tokens": Arm("window, first 4 tokens", {"sinks": 4}),
    "window, learned sinks": Arm("window, learned sinks", {"learned_sinks": True}),
    "trained full, run full": Arm("full", None),
    "trained full, run with the window": Arm("full", {}),
    "trained full, run with window and first 4 tokens": Arm("full", {"sinks": 4}),
}
RENUMBERED = {"sinks": 4, "sink_positions": "renumbered"}
TRAININGS["window, first 4 tokens, renumbered"] = RENUMBERED
ARMS["window, first 4 tokens, renumbered"] = Arm("window, first 4 tokens, renumbered", RENUMBERED)
ARMS["trained full, run with window and first 4 tokens, renumbered"] = Arm("full", RENUMBERED)


def shape(settings: dict[str, Any] | None, length: int) -> ModelConfig:
    full = settings is None
    return ModelConfig(
        vocab_size=256, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=2 * WIDTH, max_position_embeddings=4 * length,
        initializer_range=0.1, layer_pattern="full" if full else "window",
        mixers={} if settings is None else {"window": {"window": length // 4, **settings}},
    )  # fmt: skip


@torch.no_grad()
def continued(model: Decoder, prompts: torch.Tensor, until: int, temperature: float, seed: int) -> np.ndarray:
    """New bytes of each prompt, [B, until - T]; the likeliest ones at temperature 0."""
    drawn = torch.Generator().manual_seed(seed)
    cache = KVCache(model.config, len(prompts), until)
    logits, found = model(prompts, cache=cache, logits_to_keep=1)[:, -1], []
    while prompts.shape[1] + len(found) < until:
        if temperature:
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=drawn)
        else:
            token = logits.argmax(-1, keepdim=True)
        found.append(token)
        if prompts.shape[1] + len(found) < until:
            logits = model(token, cache=cache)[:, -1]
    return torch.cat(found, dim=1).numpy()


def repeated(texts: np.ndarray) -> float:
    """Share of each row's 4-grams that stand earlier in the row, mean over rows."""
    grams = np.lib.stride_tricks.sliding_window_view(texts, GRAM, axis=1)
    return float(np.mean([1 - len(np.unique(row, axis=0)) / len(row) for row in grams]))


def run(args: argparse.Namespace, seed: int, found: dict[str, dict[str, list[float]]]) -> None:
    """Trains all trainings with one seed and adds the figures of all arms."""
    train_text, held_out = code_bytes()
    models = {}
    for name, settings in TRAININGS.items():
        source = windows(train_text, args.batch, args.length, seed)
        models[name], _ = trained(shape(settings, args.length), source, args.steps, args.lr, seed)
    longest, half = 4 * args.length, args.length // 2
    starts = np.random.default_rng((1, seed)).integers(0, len(held_out) - longest, args.prompts)
    real = held_out[starts[:, None] + np.arange(longest)].astype(np.int64)
    prompts = torch.from_numpy(real[:, :half])
    for name, arm in ARMS.items():
        model = Decoder(shape(arm.settings, args.length)).eval()
        model.load_state_dict(models[arm.trained].state_dict())
        losses = bits(model, held_out, longest, args.rows).mean(0)
        for low, high in ranges(args.length):
            found[name][f"{low}-{high}"].append(2 ** losses[low:high].mean().item())
        for kind, temperature in (("greedy", 0.0), ("sampled", args.temperature)):
            new = continued(model, prompts, longest, temperature, seed)
            found[name][kind].append(100 * repeated(new))
        print(name, seed, {k: round(v[-1], 3) for k, v in found[name].items()}, file=sys.stderr, flush=True)
    found["the held-out text itself"]["greedy"].append(100 * repeated(real[:, half:]))


def ranges(length: int) -> list[tuple[int, int]]:
    """Positions within the length of training, from there to twice, and to four times it."""
    return [(0, length), (length, 2 * length), (2 * length, 4 * length)]


def section(found: dict[str, dict[str, list[float]]], args: argparse.Namespace, clock: Clock) -> str:
    columns = [f"{low}-{high}" for low, high in ranges(args.length)]
    body = []
    for name, figures in found.items():
        cells = [shown(figures[c]) if c in figures else "-" for c in columns]
        cells += [shown(figures[c], 1) if c in figures else "-" for c in ("greedy", "sampled")]
        body.append([name, *cells])
    head = [
        "arm",
        *(f"perplexity per byte, {c}" for c in columns),
        f"repeated {GRAM}-grams, greedy, %",
        f"sampled at {args.temperature:g}, %",
    ]
    text = "## Sinks beyond the length of training\n\n" + rows(head, body)
    text += (
        f"\n{LAYERS} layers, width {WIDTH}, {HEADS} heads, window {args.length // 4}, trained on {args.length} bytes at a "
        f"time, {args.steps} steps of {args.batch} rows; {args.rows} held-out windows, {args.prompts} continuations of "
        f"{4 * args.length - args.length // 2} bytes. Mean over seeds ± half the 95% t interval. The row of the text itself "
        "is what code repeats anyway.\n\n"
    )
    return text + machine(args, clock)


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--length", type=int, default=128, help="bytes of a training row; a multiple of 8")
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--steps", type=int, default=150)
    made.add_argument("--lr", type=float, default=3e-3)
    made.add_argument("--rows", type=int, default=64, help="held-out windows")
    made.add_argument("--prompts", type=int, default=16)
    made.add_argument("--temperature", type=float, default=0.8)
    args = made.parse_args(argv)
    torch.set_num_threads(args.threads)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    clock = Clock(args.minutes, processor=True)
    while clock.another(args.seeds):
        run(args, clock.rounds - 1, found)
    finish(args, NAME, section(found, args, clock))


if __name__ == "__main__":
    main()
