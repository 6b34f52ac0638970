"""Kimi Delta Attention three to one beside full attention: bits per byte, speed of decoding, size of the state.

Both have the same depth, width and (by the width of full attention's feed-forward network) number of parameters. The
hybrid is `kda*3 full`, its full layer without RoPE; the other is full attention with RoPE in every layer. They learn bytes
of the standard library's code; whole files are held out.

Decoding is measured on the same shapes without training, since time does not depend on weights: the cache is told that it
holds a context of the length, whose keys and values are random numbers instead of a prefill's, and takes one token after
another. The least of the rounds' means is shown, because other work on a machine only takes time away. Sizes are those of
`KVCache.bytes`, one row, fp32, capacity the context.

Example:
    python benchmarks/model/kda_vs_full.py --write benchmarks/model/RESULTS.md
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict

import torch
from common import Clock, bits, code_bytes, finish, machine, parser, rows, shown, trained, windows

from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder

NAME = "kda_vs_full.py"
WIDTH, HEADS, LAYERS, FFN = 128, 4, 4, 256
FULL, HYBRID = "full attention", "KDA three to one"


def shape(name: str, length: int, ffn: int) -> ModelConfig:
    hybrid = {"kda": {"head_dim": WIDTH // HEADS, "chunk_size": 32}, "full": {"rope": False}}
    return ModelConfig(
        vocab_size=256, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=ffn, max_position_embeddings=length, initializer_range=0.08,
        layer_pattern="full" if name == FULL else "kda*3 full", mixers={} if name == FULL else hybrid,
    )  # fmt: skip


def size(config: ModelConfig) -> int:
    with torch.device("meta"):
        return Decoder(config).num_parameters()


def shapes(length: int) -> dict[str, ModelConfig]:
    """Both arms; full attention's network as wide as brings it nearest to the hybrid's parameters."""
    hybrid = shape(HYBRID, length, FFN)
    per_unit = size(shape(FULL, length, FFN + 1)) - size(shape(FULL, length, FFN))
    wide = FFN + round((size(hybrid) - size(shape(FULL, length, FFN))) / per_unit)
    return {FULL: shape(FULL, length, wide), HYBRID: hybrid}


@torch.no_grad()
def decoding(config: ModelConfig, context: int, tokens: int, rounds: int) -> tuple[float, int]:
    """(seconds per token, bytes of a cache of `context` places)."""
    model = Decoder(config).eval()
    cache = KVCache(config, 1, context + (tokens + 1) * rounds)
    for store in (*cache.keys, *cache.values):
        store.normal_()
    cache.lengths[:] = context
    token, found = torch.zeros(1, 1, dtype=torch.long), []
    for _ in range(rounds):
        model(token, cache=cache)  # warm
        began = time.perf_counter()
        for _ in range(tokens):
            model(token, cache=cache)
        found.append((time.perf_counter() - began) / tokens)
    return min(found), KVCache(config, 1, context).bytes


def section(
    learned: dict[str, list[float]],
    decoded: dict[str, dict[int, tuple[float, int]]],
    args: argparse.Namespace,
    clock: Clock,
) -> str:
    configs = shapes(args.length)
    head = ["arm", "parameters", "feed-forward", "bits per byte", "difference"]
    for context in args.contexts:
        head += [f"decode at {context:,}, tokens/s", f"state at {context:,}"]
    body = []
    for name, config in configs.items():
        apart = [a - b for a, b in zip(learned[name], learned[FULL], strict=True)]
        row = [name, f"{size(config):,}", str(config.intermediate_size), shown(learned[name], 4)]
        row.append("-" if name == FULL else shown(apart, 4))
        for context in args.contexts:
            seconds, held = decoded[name][context]
            row += [f"{1 / seconds:,.0f}", f"{held / 2**20:.2f} MiB"]
        body.append(row)
    text = "## KDA three to one beside full attention\n\n" + rows(head, body)
    text += (
        f"\n{LAYERS} layers, width {WIDTH}, {HEADS} heads, {args.steps} steps of {args.batch} rows of {args.length} bytes, "
        f"{args.rows} held-out windows. Mean over seeds ± half the 95% t interval, differences seed by seed. Decoding: weights "
        "untrained, the cache filled with random keys and values and its length set, one row; the fastest of "
        f"{args.rounds} rounds of {args.tokens} tokens.\n\n"
    )
    return text + machine(args, clock)


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--length", type=int, default=128)
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--steps", type=int, default=120)
    made.add_argument("--lr", type=float, default=3e-3)
    made.add_argument("--rows", type=int, default=128, help="held-out windows")
    made.add_argument("--contexts", type=int, nargs="+", default=[1024, 8192, 65536])
    made.add_argument("--tokens", type=int, default=16, help="decoded in each round")
    made.add_argument("--rounds", type=int, default=5)
    args = made.parse_args(argv)
    torch.set_num_threads(args.threads)
    clock = Clock(args.minutes, processor=True)
    longest = max(args.contexts) + (args.tokens + 1) * args.rounds
    decoded: dict[str, dict[int, tuple[float, int]]] = defaultdict(dict)
    for context in args.contexts:
        for name, config in shapes(longest).items():
            decoded[name][context] = decoding(config, context, args.tokens, args.rounds)
            print(name, context, decoded[name][context], file=sys.stderr, flush=True)
    train_text, held_out = code_bytes()
    learned: dict[str, list[float]] = defaultdict(list)
    while clock.another(args.seeds):
        seed = clock.rounds - 1
        for name, config in shapes(args.length).items():
            source = windows(train_text, args.batch, args.length, seed)
            model, summary = trained(config, source, args.steps, args.lr, seed)
            learned[name].append(bits(model, held_out, args.length, args.rows).mean().item())
            print(name, seed, learned[name][-1], summary.tokens_per_second, file=sys.stderr, flush=True)
    finish(args, NAME, section(learned, decoded, args, clock))


if __name__ == "__main__":
    main()
