"""Time and peak memory of one hybrid attention layer beside full attention, by length, on the CPU.

Each figure is of a process of its own: projections, positions and mixing of one layer, fp32, one row, random input.
Seconds are CPU seconds of that process, the least of all repeats, so that other work on the machine disturbs them
little; wall-clock seconds stand beside them. Memory is what the peak resident size (`resource.getrusage`) grows by
over layer and input.

Example:
    python benchmarks/model/hybrid_curve.py --lengths 4096,8192,16384 --threads 1 --write benchmarks/model/RESULTS.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAME = "hybrid_curve.py"
KINDS = ("full", "hybrid")


def measured(kind: str, length: int, backward: bool, args: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: seconds and bytes of one layer."""
    import torch

    from ikirere.model.config import ModelConfig
    from ikirere.model.decoder import Decoder
    from ikirere.model.layers.mixer import ForwardContext

    torch.set_num_threads(args.threads)
    settings = {"window": args.window, "block_size": args.block_size, "top_k": args.top_k}
    config = ModelConfig(
        vocab_size=8, hidden_size=args.hidden, num_hidden_layers=1, num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads, intermediate_size=8, max_position_embeddings=length,
        layer_pattern=kind, mixers={"hybrid": settings} if kind == "hybrid" else {},
    )  # fmt: skip
    model = Decoder(config)
    mixer: Any = model.layers[0].get_submodule("mixer")
    x = torch.randn(1, length, args.hidden, generator=torch.Generator().manual_seed(args.seed))
    positions = torch.arange(length).unsqueeze(0)
    context = ForwardContext(positions, (model.ropes[0](positions),), None, None, causal=True)

    def once() -> tuple[float, float, float]:
        wall, begin = time.perf_counter(), time.process_time()
        if not backward:
            with torch.no_grad():
                mixer(x, context)
            return time.process_time() - begin, 0.0, time.perf_counter() - wall
        y = mixer(x, context).sum()
        middle = time.process_time()
        y.backward()
        return middle - begin, time.process_time() - middle, time.perf_counter() - wall

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [once()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    times += [once() for _ in range(args.repeats - 1)]
    forward, back, wall = (min(column) for column in zip(*times, strict=True))
    return {
        "forward": forward, "backward": back, "wall": wall, "mib": peak / 1024, "torch": torch.__version__
    }  # fmt: skip


def asked(kind: str, length: int, backward: bool, args: argparse.Namespace) -> dict[str, Any]:
    """What `measured` says in a new process."""
    given = {name: value for name, value in vars(args).items() if name not in ("write", "child", "lengths")}
    order = json.dumps({**given, "kind": kind, "length": length, "backward": backward})
    threads = {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(
        [sys.executable, __file__, "--child", order],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **threads},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{kind}, {length}{', backward' * backward}: {found}", file=sys.stderr, flush=True)
    return found


def table(args: argparse.Namespace) -> str:
    began = time.monotonic()
    lines = [
        "## One hybrid attention layer beside full attention, by length",
        "",
        "| tokens | full, forward s | hybrid, forward s | full / hybrid | full, MiB | hybrid, MiB "
        "| full, forward and backward s | hybrid, forward and backward s | full, MiB | hybrid, MiB |",
        "|" + "---|" * 10,
    ]
    version = ""
    walls = []
    for length in args.lengths:
        full, hybrid = (asked(kind, length, False, args) for kind in KINDS)
        cells = [f"{length:,}", f"{full['forward']:.2f}", f"{hybrid['forward']:.2f}"]
        cells += [f"{full['forward'] / hybrid['forward']:.2f}", f"{full['mib']:.0f}", f"{hybrid['mib']:.0f}"]
        walls.append(f"{length:,}: {full['wall']:.2f} and {hybrid['wall']:.2f}")
        version = hybrid["torch"]
        if length <= args.backward_up_to:
            both = [asked(kind, length, True, args) for kind in KINDS]
            cells += [f"{b['forward'] + b['backward']:.2f}" for b in both] + [f"{b['mib']:.0f}" for b in both]
        else:
            cells += ["-"] * 4
        lines.append("| " + " | ".join(cells) + " |")
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = re.findall(r"model name\s*: (.*)", known)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    lines += [
        "",
        f"CPU seconds, the least of {args.repeats}; MiB by which the peak resident size grows. Hidden size "
        f"{args.hidden}, {args.heads} query heads, {args.kv_heads} key-value head(s), fp32, batch 1; window "
        f"{args.window}, blocks of {args.block_size}, {args.top_k} of them read exactly; random input, seed "
        f"{args.seed}. Full attention is torch's fused kernel; the hybrid layer is made of torch operations. "
        f"Wall-clock seconds forward, full and hybrid: {'; '.join(walls)}.",
        "",
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores shared with other work (load average "
        f"at the end {load}), {args.threads} thread(s); torch {version}, Python {platform.python_version()}; "
        f"{(time.monotonic() - began) / 60:.1f} minutes.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lengths",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[2**n for n in range(12, 18)],
        help="tokens, parted by commas",
    )
    parser.add_argument("--backward-up-to", type=int, default=32768, help="longest row with a backward pass")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--kv-heads", type=int, default=1)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, default=None, help="Markdown file whose section is replaced")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        order = json.loads(args.child)
        wanted = (order.pop("kind"), order.pop("length"), order.pop("backward"))
        print(json.dumps(measured(*wanted, argparse.Namespace(**order))))
        return
    text = table(args)
    print(text)
    if args.write:
        # Last, since it loads torch: a child's peak begins at the size of the process that starts it.
        from common import written

        written(args.write, NAME, text)


if __name__ == "__main__":
    main()
