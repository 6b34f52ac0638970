"""Forward and backward of Kimi Delta Attention beside softmax attention of equal width, on the CPU.

Rows: the delta rule by chunks and token by token; scaled-dot-product attention over the whole square under a
window mask; the same by blocks of one window, each over two; full causal attention; transformers' chunked
form where transformers is installed. Times are CPU seconds of this process, the least of all repeats, so that
other work on the machine disturbs them little; wall-clock seconds stand beside them.

Example:
    python benchmarks/model/kda_speed.py --length 4096 --heads 2 --head-dim 128 --window 512
"""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import Clock, finish, machine, parser, rows
from torch import Tensor

from ikirere.model.layers.delta import chunked, recurrent

Mix = Callable[..., Tensor]


def window_mask(length: int, window: int) -> Tensor:
    """Bool [length, length], True for the last `window` tokens up to each."""
    back = torch.arange(length)[:, None] - torch.arange(length)
    return (back >= 0) & (back < window)


def blocks(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Window attention [1, heads, T, D] by blocks of `window` queries, each over two blocks of keys."""
    heads, length, width = q.shape[1:]
    count = length // window
    mask = window_mask(2 * window, window)[window:].expand(count, 1, window, 2 * window).clone()
    mask[0, ..., :window] = False

    def two(t: Tensor) -> Tensor:
        """[count, heads, 2 * window, D]: each block behind the one before it."""
        parts = F.pad(t[0], (0, 0, window, 0)).view(heads, count + 1, window, width)
        return torch.cat((parts[:, :-1], parts[:, 1:]), dim=2).transpose(0, 1)

    q = q[0].view(heads, count, window, width).transpose(0, 1)
    y = F.scaled_dot_product_attention(q, two(k), two(v), mask)
    return y.transpose(0, 1).reshape(1, heads, length, width)


def measure(mix: Mix, given: list[Tensor], repeats: int) -> tuple[float, float, float]:
    """CPU seconds forward, CPU seconds backward, wall-clock seconds of both: the least of `repeats`."""
    found = []
    for _ in range(repeats + 1):
        inputs = [t.clone().requires_grad_() for t in given]
        wall, begin = time.perf_counter(), time.process_time()
        y = mix(*inputs)
        middle = time.process_time()
        y.backward(torch.ones_like(y))
        found.append((middle - begin, time.process_time() - middle, time.perf_counter() - wall))
    forward, backward, whole = (min(column) for column in zip(*found[1:], strict=True))
    return forward, backward, whole


def arms(args: argparse.Namespace) -> dict[str, tuple[Mix, list[Tensor]]]:
    """Name -> (what is measured, its inputs)."""
    r = torch.Generator().manual_seed(args.seed)
    shape = (1, args.length, args.heads, args.head_dim)
    q, k, v = (torch.randn(shape, generator=r) for _ in range(3))
    g, beta = -torch.rand(shape, generator=r) / 10, torch.rand(shape[:3], generator=r)
    state = torch.zeros(1, args.heads, args.head_dim, args.head_dim)
    delta = [F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, g, beta]
    softmax = [t.transpose(1, 2).contiguous() for t in (q, k, v)]
    mask = window_mask(args.length, args.window)
    found: dict[str, tuple[Mix, list[Tensor]]] = {
        f"KDA, chunks of {args.chunk}": (lambda *t: chunked(*t, state, None, args.chunk)[0], delta),
        f"attention, window {args.window}, by blocks": (lambda *t: blocks(*t, args.window), softmax),
        f"attention, window {args.window}, masked square": (
            lambda *t: F.scaled_dot_product_attention(*t, mask),
            softmax,
        ),
        "attention, full causal": (lambda *t: F.scaled_dot_product_attention(*t, is_causal=True), softmax),
    }
    if args.slow:
        found["KDA, token by token"] = (lambda *t: recurrent(*t, state)[0], delta)
        try:
            from transformers.models.kimi_linear import modeling_kimi_linear as kimi
        except ImportError:
            return found
        form = inspect.unwrap(kimi.chunk_kimi_delta_attention)
        found["KDA, transformers' chunks"] = (lambda q, k, v, g, b: form(q, k, v, g=g, beta=b)[0], delta)
    return found


def table(args: argparse.Namespace) -> str:
    clock = Clock(args.minutes)
    clock.another(1)
    torch.set_num_threads(args.threads)
    body = []
    for name, (mix, given) in arms(args).items():
        forward, backward, wall = (1000 * s for s in measure(mix, given, args.repeats))
        body.append([name, f"{forward:.0f}", f"{backward:.0f}", f"{forward + backward:.0f}", f"{wall:.0f}"])
    head = ["mixing", "forward, CPU ms", "backward, CPU ms", "both, CPU ms", "wall clock, ms"]
    note = (
        f"{args.length} tokens, {args.heads} heads of {args.head_dim}, batch 1, least of {args.repeats}, seed "
        f"{args.seed}. Projections, convolutions and norms are left out. "
    )
    return f"## KDA beside softmax attention\n\n{rows(head, body)}\n{note}{machine(args, clock)}"


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--length", type=int, default=4096, help="tokens; a multiple of the window")
    made.add_argument("--heads", type=int, default=2)
    made.add_argument("--head-dim", type=int, default=128)
    made.add_argument("--window", type=int, default=512)
    made.add_argument("--chunk", type=int, default=64, help="tokens per chunk of KDA, a power of two")
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--slow", action="store_true", help="also KDA token by token and transformers' form")
    args = made.parse_args()
    if args.length % args.window:
        made.error(f"--length {args.length} is no multiple of --window {args.window}")
    finish(args, "kda_speed.py", table(args))


if __name__ == "__main__":
    main()
