"""`python hybrid_helpers.py FOLDER`: hybrid attention over as many processes as FOLDER/asked has shards.

Each is forked from this one, holds its shard, and exchanges keys, values and their gradients with its neighbours.
Writes FOLDER/rank<r>: the output and the gradients of queries, keys, values and logits of its shard.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ikirere.model.layers.ring import Rank, merged_summaries, ring_order, shard_summaries
from ikirere.model.layers.summaries import layout_of


def passed_on(held: list[Tensor], sizes: list[int], coming: int) -> list[Tensor]:
    """Sends [B, kv_heads, S, Dh] each to the next rank and gives what the one before sends, shard `coming`."""
    rank, size = dist.get_rank(), dist.get_world_size()
    fresh = [torch.empty(*t.shape[:2], sizes[coming], t.shape[3], dtype=t.dtype) for t in held]
    works = [dist.isend(t.contiguous(), (rank + 1) % size) for t in held]
    for t in fresh:
        dist.recv(t, (rank - 1) % size)
    for work in works:
        work.wait()
    return fresh


def gathered(t: Tensor) -> list[Tensor]:
    found = [torch.empty_like(t) for _ in range(dist.get_world_size())]
    dist.all_gather(found, t.detach().contiguous())
    return found


def work(folder: Path, rank: int, port: int) -> None:
    torch.set_num_threads(1)
    asked = torch.load(folder / "asked")
    (q, k, v, logits, weight), (chunk, stride, top_k), cuts = asked["tensors"], asked["how"], asked["cuts"]
    size = len(cuts) - 1
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size)
    sizes = [b - a for a, b in itertools.pairwise(cuts)]
    begin, end = cuts[rank], cuts[rank + 1]
    layout = layout_of(None, cuts[-1], chunk, stride)
    q, weight = q[:, begin:end], weight[:, begin:end]
    leaves = [t[:, :, begin:end].clone().requires_grad_() for t in (k, v, logits)]
    own = shard_summaries(leaves[2], leaves[0], leaves[1], layout, begin)
    everyone = list(zip(*(gathered(t) for t in own), strict=True))
    keys, values = merged_summaries([own if r == rank else everyone[r] for r in range(size)])

    part = Rank(q, keys, values, layout.part(begin, end), top_k)
    order = ring_order(rank, size)
    held = [t.detach() for t in leaves[:2]]
    for i, shard in enumerate(order):
        part.see(held[0], held[1], cuts[shard])
        if i + 1 < size:
            held = passed_on(held, sizes, order[i + 1])
    out = part.output()

    part.begin_backward(weight)
    held = [t.detach() for t in leaves[:2]]
    travelling = [*held, *(torch.zeros_like(t) for t in held)]
    for i, shard in enumerate(order):
        for target, new in zip(travelling[2:], part.back(travelling[0], travelling[1], cuts[shard])):
            target += new
        travelling = passed_on(travelling, sizes, order[(i + 1) % size])
    dq, *shares = part.end_backward()
    for share in shares:
        dist.all_reduce(share)
    through = torch.autograd.grad((keys, values), leaves, shares)
    dk, dv = (a + b for a, b in zip(travelling[2:], through))
    torch.save([t.detach() for t in (out, dq, dk, dv, through[2])], folder / f"rank{rank}")
    dist.destroy_process_group()


def main() -> int:
    folder = Path(sys.argv[1])
    ranks = len(torch.load(folder / "asked")["cuts"]) - 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(folder, rank, port)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    return max(abs(process.exitcode or 0) for process in processes)


if __name__ == "__main__":
    sys.exit(main())
