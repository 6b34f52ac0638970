"""Hybrid attention over a sequence that several ranks share: keys and values go round a ring (Liu et al. 2023, arXiv
2310.01889), summaries, which are few, go to everybody.

Nothing here sends: the caller hands over each shard as it arrives, and passes on what `Rank` gives back.

1. Each rank pools what it holds of every block (`shard_summaries`); all gather the results and merge them
   (`merged_summaries`). Blocks may lie across shards.
2. Forward: `rank.see` for each shard in `ring_order`, then `rank.output()`.
3. Backward: `rank.begin_backward(grad)`, then `rank.back` for each shard in the same order; what it gives for a shard
   is added to what earlier ranks gave and travels on with the shard, so that after the last step it is at home. Then
   `rank.end_backward()`: gradients of its queries, and its share of those of the summaries, to be added up over ranks
   and led through `merged_summaries`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ikirere.model.layers.split_attention import NONE, Gradients, OnlineSoftmax, Tiles
from ikirere.model.layers.summaries import Layout, block_tokens, choose, pooled, taken


def ring_order(rank: int, size: int) -> list[int]:
    """Whose shard a rank works on at each step: its own first, then that of the one before it."""
    return [(rank - step) % size for step in range(size)]


def shard_summaries(
    logits: Tensor, k: Tensor, v: Tensor, layout: Layout, base: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Summary keys and values of the part of each block that a shard holds, [B, kv_heads, n, Dh], and its logarithm of
    the sum of exp(logits), [B, kv_heads, n]; -inf for blocks that lie elsewhere.

    logits: [B, kv_heads, S]; k, v: [B, kv_heads, S, Dh]: the tokens base to base + S. layout: of the whole rows.
    """
    held = logits.shape[2]
    shape = (layout.starts.shape[1], layout.stride)
    at = block_tokens(layout.starts - base, layout.stride).flatten(1)
    inside = ((at >= 0) & (at < held)).unflatten(1, shape).unsqueeze(1)
    at = at.clamp(0, held - 1)
    blocks = [taken(t, at).unflatten(2, shape) for t in (logits, k, v)]
    some = inside.any(3)
    # A block without a token here is pooled as if all were, so that no gradient is undefined, and then left out.
    weighing = blocks[0].masked_fill(~inside & some.unsqueeze(3), NONE)
    keys, values, mass = pooled(weighing, blocks[1], blocks[2])
    return keys, values, mass.masked_fill(~some, NONE)


def merged_summaries(shards: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Summary keys and values of whole blocks from what `shard_summaries` gave on each rank."""
    keys, values, masses = (torch.stack(part) for part in zip(*shards, strict=True))
    shares = masses.softmax(0).unsqueeze(4)
    return (shares * keys).sum(0).to(keys.dtype), (shares * values).sum(0).to(values.dtype)


class Rank:
    """One rank's queries.

    q: [B, T, heads, Dh]. keys, values: merged summaries [B, kv_heads, n, Dh]. layout: of the rank's queries
    (`Layout.part`). No autograd: gradients are asked for.
    """

    @torch.no_grad()
    def __init__(self, q: Tensor, keys: Tensor, values: Tensor, layout: Layout, top_k: int) -> None:
        self.parts = Tiles(q, keys, values, layout, choose(q, keys, layout, top_k))
        self.sums: OnlineSoftmax | None = OnlineSoftmax(self.parts)
        self.sums.add(self.parts.summarised())

    @torch.no_grad()
    def see(self, k: Tensor, v: Tensor, base: int) -> None:
        """Adds a shard: the tokens base to base + S of each row, [B, kv_heads, S, Dh]."""
        if self.sums is None:
            raise ValueError("the output was taken; a shard that comes later would be left out")
        self.sums.add(self.parts.of_tokens(k, v, base))

    def output(self) -> Tensor:
        """[B, T, heads, Dh], after all shards."""
        if self.sums is None:
            raise ValueError("the output was taken already")
        self.out, self.logs = self.sums.finish()
        self.sums = None
        return self.out

    @torch.no_grad()
    def begin_backward(self, grad: Tensor) -> None:
        """grad: of the output."""
        self.grads = Gradients(self.parts, self.out, self.logs, grad)

    @torch.no_grad()
    def back(self, k: Tensor, v: Tensor, base: int) -> tuple[Tensor, Tensor]:
        """What this rank's queries give a shard's keys and values, fp32 at least."""
        return self.grads.tokens(k, v, base)

    @torch.no_grad()
    def end_backward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the queries [B, T, heads, Dh] and this rank's share of those of the summaries' keys and
        values, fp32 at least."""
        keys, values = self.grads.summaries()
        return self.grads.queries(), keys, values
