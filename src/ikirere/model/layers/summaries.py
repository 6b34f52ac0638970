"""Blocks of a document, one learned summary of each, and which blocks a query reads exactly.

Where a query looks follows DeepSeek's sparse attention (Yuan et al. 2025, arXiv 2502.11089, section 3: compressed
blocks score the blocks to be read, one choice for all query heads of a group) and MoBA (Lu et al. 2025, arXiv
2502.13189, section 2.2: the choice of a query never depends on later tokens).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_SCORES = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Scores held at once: what fits a processor's cache, and what fills a card."""
_LEAST, _MOST = 16, 512
"""Queries of a tile."""


def scores_at_once(device: torch.device) -> int:
    """How many attention scores may be in memory at once on a device of this type."""
    return _SCORES.get(device.type, _SCORES["cpu"])


@dataclass(frozen=True)
class Layout:
    """Where T queries of each row look. Rows count tokens from 0; blocks are counted within each document.

    A first axis of 1 stands for all rows. S tokens of each row are known, n of its blocks are whole.
    offset: the first query's position in its row.
    low: int32 [B or 1, T], the first token that a query sees in its window: the beginning of the block that holds the
    position `chunk` - 1 before it. first, last: int32 [B or 1, T], the blocks [first, last) of `starts` that lie wholly
    before `low`.
    starts: LongTensor [B or 1, n], where the whole blocks begin, in order; rows with fewer end in zeros that no
    query looks at. packed: rows hold several documents, so blocks need not lie side by side.
    """

    stride: int
    offset: int
    low: Tensor
    first: Tensor
    last: Tensor
    starts: Tensor
    packed: bool = False

    def part(self, begin: int, end: int) -> Layout:
        """The same for the queries [begin, end) only."""
        cut = {name: getattr(self, name)[:, begin:end] for name in ("low", "first", "last")}
        return replace(self, offset=self.offset + begin, **cut)

    def tiles(self, size: int) -> list[tuple[int, int, int, int, int, int]]:
        """Queries [begin, end) taken together, the least and the greatest `low`, the least `first` and the
        greatest `last` among them; waits for the device once."""
        length = self.low.shape[1]
        begins = torch.arange(0, length, size, device=self.low.device)
        which = torch.arange(length, device=self.low.device) // size

        def over(values: Tensor, how: str) -> Tensor:
            return begins.to(values.dtype).scatter_reduce(0, which, values, how, include_self=False)

        bounds = torch.stack(
            (
                over(self.low.amin(0), "amin"),
                over(self.low.amax(0), "amax"),
                over(self.first.amin(0), "amin"),
                over(self.last.amax(0), "amax"),
            ),
            dim=1,
        )
        return [
            (begin, min(begin + size, length), *bound)
            for begin, bound in zip(range(0, length, size), bounds.tolist())
        ]

    @staticmethod
    def size(heads: int, width: int, held: int) -> int:
        """Queries of a tile when each of `heads` has scores for about `width` keys, in about `held` numbers."""
        return max(_LEAST, min(_MOST, held // max(1, heads * width)))


def layout_of(
    document_ids: Tensor | None,
    length: int,
    chunk: int,
    stride: int,
    offset: int = 0,
    device: torch.device | str = "cpu",
) -> Layout:
    """The layout of `length` queries that begin at position `offset` of rows that hold offset + length tokens.

    document_ids: LongTensor [B, length], with offset 0 only; None where a row is one document.
    """
    if document_ids is None:
        position = torch.arange(offset, offset + length, device=device).unsqueeze(0)
        blocks = (position - (chunk - 1)).clamp_min(0) // stride
        starts = torch.arange((offset + length) // stride, device=device).unsqueeze(0) * stride
        last = blocks.int()
        return Layout(stride, offset, (blocks * stride).int(), torch.zeros_like(last), last, starts)
    order = torch.arange(length, device=document_ids.device).expand_as(document_ids)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    begin = torch.where(begins, order, 0).cummax(dim=1).values
    position = order - begin
    blocks = (position - (chunk - 1)).clamp_min(0) // stride
    whole = torch.zeros_like(begins)
    if length >= stride:  # a block is whole when its last token is of the document that it begins in
        same = begin[:, stride - 1 :] == begin[:, : length - stride + 1]
        whole[:, : length - stride + 1] = same & (position[:, : length - stride + 1] % stride == 0)
    counted = whole.cumsum(1)
    first = (counted - whole.long()).gather(1, begin)
    number = int(counted[:, -1].max()) if length else 0
    starts = torch.zeros(len(order), number, dtype=torch.long, device=order.device)
    row, column = whole.nonzero(as_tuple=True)
    starts[row, counted[row, column] - 1] = column
    return Layout(
        stride, 0, (begin + blocks * stride).int(), first.int(), (first + blocks).int(), starts, True
    )


# ---------------------------------------------------------------- summaries


def summaries(logits: Tensor, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Summary keys and values of the layout's blocks, each [B, kv_heads, n, Dh].

    logits: [B, kv_heads, S]. k, v: [B, kv_heads, S, Dh]. See `pooled`.
    """
    number, stride = layout.starts.shape[1], layout.stride
    if not layout.packed:
        whole = (t[:, :, : number * stride].unflatten(2, (number, stride)) for t in (logits, k, v))
        return pooled(*whole)[:2]
    at = block_tokens(layout.starts, stride)
    if not torch.is_grad_enabled():
        return _gathered(logits, k, v, at)
    # Autograd would keep what is gathered, a copy of nearly all keys and values.
    result: tuple[Tensor, Tensor] = checkpoint(
        _gathered, logits, k, v, at, use_reentrant=False, preserve_rng_state=False
    )
    return result


def _gathered(logits: Tensor, k: Tensor, v: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Summaries of the blocks whose tokens are `at`, [B, n, stride]."""
    blocks = (taken(t, at.flatten(1)).unflatten(2, at.shape[1:]) for t in (logits, k, v))
    return pooled(*blocks)[:2]


def pooled(logits: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of k and v [B, kv_heads, n, stride, Dh] over each block, weighted by softmax of the logits [B, kv_heads,
    n, stride], and the logarithm [B, kv_heads, n] of the sum of exp(logits)."""
    mass = logits.logsumexp(3)
    weights = (logits - mass.unsqueeze(3)).exp().unsqueeze(4)
    # Not a matrix product, for which autograd would keep copies of keys and values.
    keys, values = ((weights * t).sum(3).to(t.dtype) for t in (k, v))
    return keys, values, mass


def block_tokens(starts: Tensor, stride: int) -> Tensor:
    """The tokens of blocks that begin at `starts` [...]: LongTensor [..., stride]."""
    return starts.unsqueeze(-1) + torch.arange(stride, device=starts.device)


def taken(t: Tensor, at: Tensor) -> Tensor:
    """The positions `at` [B, m] of t [B, kv_heads, S] or [B, kv_heads, S, Dh], along S."""
    at = at.unsqueeze(1).expand(len(t), t.shape[1], -1)
    return t.gather(2, at if t.ndim == 3 else at.unsqueeze(3).expand(-1, -1, -1, t.shape[3]))


# ---------------------------------------------------------------- selection


@dataclass(frozen=True)
class Chosen:
    """Which query reads which block, listed block by block as MoBA computes it.

    queries: int32 [pairs], indices among the T queries, ordered by row, key-value head, block and query.
    counts: LongTensor [B * kv_heads * n], pairs of each block.
    """

    queries: Tensor
    counts: Tensor


@torch.no_grad()
def choose(q: Tensor, keys: Tensor, layout: Layout, top_k: int) -> Chosen:
    """For each query and key-value head the `top_k` visible blocks whose summary keys have the greatest product with
    the sum of the group's queries, in fp32; equal ones by their order, all where there are no more than that.

    q: [B, T, heads, Dh]. keys: [B, kv_heads, n, Dh].
    """
    batch, kv_heads, number, _ = keys.shape
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    groups, queries = [], []
    size = layout.size(batch * kv_heads, number, scores_at_once(q.device))
    before = torch.arange(batch * kv_heads, device=q.device).view(batch, kv_heads, 1, 1) * number
    for begin, end, _, _, low, high in layout.tiles(size):
        if low >= high:
            continue
        summed = q[:, begin:end].to(kind).unflatten(2, (kv_heads, -1)).sum(3).transpose(1, 2)
        with torch.autocast(q.device.type, enabled=False):
            scores = summed @ keys[:, :, low:high].to(kind).transpose(2, 3)
        block = torch.arange(low, high, device=q.device)
        seen = (block >= layout.first[:, begin:end, None]) & (block < layout.last[:, begin:end, None])
        picked = seen.unsqueeze(1).expand_as(scores)
        if high - low > top_k:
            picked = best(scores.masked_fill_(~picked, float("-inf")), picked, top_k)
        found = (before + block).expand_as(picked)[picked]
        groups.append(found.int())
        order = torch.arange(begin, end, dtype=torch.int32, device=q.device).unsqueeze(1)
        queries.append(order.expand_as(picked)[picked])
    if not groups:
        nothing = torch.zeros(0, dtype=torch.int32, device=q.device)
        return Chosen(nothing, torch.zeros(batch * kv_heads * number, dtype=torch.long, device=q.device))
    group, query = torch.cat(groups), torch.cat(queries)
    counts = torch.bincount(group, minlength=batch * kv_heads * number)
    return Chosen(query[torch.sort(group, stable=True).indices], counts)


def best(scores: Tensor, seen: Tensor, number: int) -> Tensor:
    """Bool [..., n], True at the `number` greatest scores of each row; of equal ones the first. scores: -inf where
    not `seen` (bool of the same shape), which is never picked."""
    least = scores.topk(number, dim=-1).values[..., -1:]
    picked = (scores >= least) & seen
    if bool((picked.sum(-1) > number).any()):
        above = scores > least
        equal = picked & ~above
        missing = number - above.sum(-1, keepdim=True)
        picked = above | (equal & (equal.cumsum(-1) <= missing))
    return picked
