"""Attention as a sum of parts (windows, summaries, chosen blocks) that are merged by their log-sum-exp.

The softmax of all that a query sees is computed piece by piece, forward and backward (Dao 2023, arXiv 2307.08691,
section 3.1): forward keeps the output and one logarithm per query and head; backward computes the probabilities of
each piece again. Pieces may come in any order and from any shard of the keys, so the same code is context
parallelism (`ring.py`). Chosen blocks are read block by block, each by all queries that chose it (MoBA, arXiv
2502.13189, section 2.3). Running sums and gradients are fp32 (fp64 for fp64 inputs) whatever the inputs are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ikirere.model.layers.summaries import Chosen, Layout, choose, scores_at_once

_LEAST, _MOST = 1, 256
"""Queries of a tile that reads one chosen block."""
_ALONE = 64
"""Queries that are worth a tile even where windows are narrower."""
NONE = float("-inf")


@dataclass(frozen=True)
class Tile:
    """Queries and keys that meet: `queries` q as a matrix per batch, `keys` and `values` alike, with what addresses
    them in the running sums (rows) and in the gradients of keys (tokens)."""

    q: Tensor  # [N, Q, Dh]
    k: Tensor  # [N, K, Dh]
    v: Tensor  # [N, K, Dh]
    rows: Tensor  # LongTensor [N * Q] into the running sums
    hidden: tuple[
        tuple[slice, Tensor], ...
    ]  # bool [N or 1, Q or 1, some of the K]: which of them are not seen
    key_index: Tensor | None  # LongTensor [N * K] into the gradients; None: their slice `span`
    span: tuple[int, int] = (0, 0)


class Tiles:
    """What queries see, as pieces.

    q: [B, T, heads, Dh]. layout and chosen: of these queries. keys, values: summaries [B, kv_heads, n, Dh].
    """

    def __init__(self, q: Tensor, keys: Tensor, values: Tensor, layout: Layout, chosen: Chosen) -> None:
        self.q, self.keys, self.values, self.layout, self.chosen = q, keys, values, layout, chosen
        self.batch, self.length, self.heads, self.width = q.shape
        self.kv_heads = keys.shape[1]
        self.group = self.heads // self.kv_heads
        self.scale = self.width**-0.5
        self.kind = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.total_rows = self.batch * self.length * self.heads
        self.held = scores_at_once(q.device)
        here = torch.arange(layout.offset + 1, layout.offset + 1 + self.length, device=q.device)
        widest = max(int((here - layout.low).max()), int((layout.last - layout.first).max()))
        size = layout.size(self.batch * self.heads, widest, self.held)
        # Queries of a tile share its keys: with more queries than a window is wide most scores would be masked.
        self.tiles = layout.tiles(min(size, max(widest, _ALONE)))

    def empty(self, width: int, value: float = 0.0) -> Tensor:
        """One row per query and head, and one more for padding."""
        return torch.full((self.total_rows + 1, width), value, dtype=self.kind, device=self.q.device)

    def _tile(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Queries [begin, end) as [B * kv_heads, queries * group, Dh], and their rows."""
        q = self.q[:, begin:end].unflatten(2, (self.kv_heads, self.group)).permute(0, 2, 1, 3, 4)
        at = torch.arange(begin * self.heads, end * self.heads, device=q.device)
        at = at.view(1, end - begin, self.kv_heads, self.group)
        at = at + (torch.arange(self.batch, device=q.device) * (self.length * self.heads)).view(-1, 1, 1, 1)
        return q.reshape(self.batch * self.kv_heads, -1, self.width), at.transpose(1, 2).flatten()

    def windows(self, k: Tensor, v: Tensor, base: int) -> Iterator[Tile]:
        """Exact attention to the window. k, v: [B, kv_heads, S, Dh], the tokens base to base + S of each row."""
        layout = self.layout
        for begin, end, low, inner, _, _ in self.tiles:
            low, first = max(low, base), layout.offset + begin
            high = min(layout.offset + end, base + k.shape[2])
            if low >= high:
                continue
            here = torch.arange(first, layout.offset + end, device=k.device)
            # Between the last window's beginning and the first query everything is seen.
            sides = ((low, min(inner, high)), (max(first, low), high)) if inner < first else ((low, high),)
            hidden = []
            for left, right in sides:
                if left < right:
                    at = torch.arange(left, right, device=k.device)
                    bad = (at < layout.low[:, begin:end, None]) | (at > here[:, None])
                    hidden.append((slice(left - low, right - low), self._spread(bad)))
            q, rows = self._tile(begin, end)
            span = (low - base, high - base)
            keys, values = (t[:, :, span[0] : span[1]].flatten(0, 1) for t in (k, v))
            yield Tile(q, keys, values, rows, tuple(hidden), None, span)

    def summarised(self) -> Iterator[Tile]:
        """All summaries before the window."""
        layout = self.layout
        for begin, end, _, _, low, high in self.tiles:
            if low >= high:
                continue
            block = torch.arange(low, high, device=self.q.device)
            hidden = (block < layout.first[:, begin:end, None]) | (block >= layout.last[:, begin:end, None])
            q, rows = self._tile(begin, end)
            keys, values = (t[:, :, low:high].flatten(0, 1) for t in (self.keys, self.values))
            where = ((slice(None), self._spread(hidden)),)
            yield Tile(q, keys, values, rows, where, None, (low, high))

    def _spread(self, hidden: Tensor) -> Tensor:
        """[B or 1, queries, K] to [B * kv_heads or 1, queries * group, K]."""
        hidden = hidden.repeat_interleave(self.group, 1) if self.group > 1 else hidden
        return hidden.repeat_interleave(self.kv_heads, 0) if len(hidden) > 1 else hidden

    def chosen_blocks(self, k: Tensor, v: Tensor, base: int) -> Iterator[Tile]:
        """Exact attention to chosen blocks: tiles of at most so many queries that chose the same one, several at
        once. k, v as in `windows`; blocks without a token among these are left out, tokens that are missing are masked."""
        counts, stride, number = self.chosen.counts, self.layout.stride, self.keys.shape[2]
        if not len(self.chosen.queries):
            return
        begins = counts.cumsum(0) - counts
        blocks = torch.arange(len(counts), device=counts.device)
        starts = self.layout.starts.expand(self.batch, -1)
        starts = starts.repeat_interleave(self.kv_heads, 0).flatten() - base
        held = k.shape[2]
        partly = base > 0 or held < self.layout.offset + self.length
        if partly:
            counts = torch.where((starts < held) & (starts + stride > 0), counts, 0)
        used = int((counts > 0).sum())
        size = int(counts.sum()) // max(1, used)
        size = max(_LEAST, min(_MOST, 1 << max(0, size - 1).bit_length()))
        tiles = (counts + size - 1) // size
        which = torch.repeat_interleave(blocks, tiles)
        order = torch.arange(len(which), device=which.device) - (tiles.cumsum(0) - tiles)[which]
        begin = begins[which] + order * size
        filled = (counts[which] - order * size).clamp_max(size)
        cost = stride * (size * self.group + 2 * self.width) + 3 * size * self.group * self.width
        together = max(1, self.held // cost)
        slot = torch.arange(size, device=which.device)
        heads = torch.arange(self.group, device=which.device).view(1, -1, 1)
        for some, at, full in zip(which.split(together), begin.split(together), filled.split(together)):
            pair = some // number  # row and key-value head
            row, head = pair // self.kv_heads, pair % self.kv_heads
            query = self.chosen.queries[(at[:, None] + slot).clamp_max(len(self.chosen.queries) - 1)].long()
            rows = (row[:, None] * self.length + query)[:, None] * self.heads
            rows = rows + head[:, None, None] * self.group + heads
            rows = torch.where((slot < full[:, None])[:, None], rows, self.total_rows)
            q = self.q[row[:, None, None], query[:, None], head[:, None, None] * self.group + heads]
            tokens = starts[some][:, None] + torch.arange(stride, device=some.device)
            hidden: tuple[tuple[slice, Tensor], ...] = ()
            if partly:
                hidden = ((slice(None), ((tokens < 0) | (tokens >= held))[:, None]),)
                tokens = tokens.clamp(0, held - 1)
            keys, values = (t[row[:, None], head[:, None], tokens] for t in (k, v))
            key_index = (pair[:, None] * held + tokens).flatten()
            yield Tile(q.flatten(1, 2), keys, values, rows.flatten(), hidden, key_index)

    def of_tokens(self, k: Tensor, v: Tensor, base: int) -> Iterator[Tile]:
        """All that reads tokens themselves."""
        yield from self.windows(k, v, base)
        yield from self.chosen_blocks(k, v, base)


class OnlineSoftmax:
    """Running output, greatest score and sum of exponentials of each query and head."""

    def __init__(self, parts: Tiles) -> None:
        self.parts = parts
        self.out, self.top, self.mass = parts.empty(parts.width), parts.empty(1, NONE), parts.empty(1)
        self.top[-1] = 0.0

    def add(self, pieces: Iterator[Tile]) -> None:
        """Merges tiles; a query may occur in one tile several times."""
        for piece in pieces:
            s = _scores(piece, self.parts)
            rows = piece.rows
            before = self.top[rows]
            top = s.amax(-1).view(-1, 1)
            if piece.key_index is None:
                now = torch.maximum(before, top)
            else:
                self.top.scatter_reduce_(0, rows[:, None], top, "amax")
                now = self.top[rows]
            calm = now.masked_fill(now == NONE, 0.0)  # a query that has seen nothing yet
            p = s.sub_(calm.view(*s.shape[:2], 1)).exp_()
            kept = (before - calm).exp_()
            mass, out = p.sum(-1).view(-1, 1), product(p, piece.v, self.parts.kind).flatten(0, 1)
            if piece.key_index is None:
                self.top[rows] = now
                self.mass[rows] = self.mass[rows].mul_(kept).add_(mass)
                self.out[rows] = self.out[rows].mul_(kept).add_(out)
                continue
            for sums, new in ((self.mass, mass), (self.out, out)):
                sums[rows] = sums[rows].mul_(kept)  # equal rows write equal numbers
                sums.index_add_(0, rows, new)

    def finish(self) -> tuple[Tensor, Tensor]:
        """The output [B, T, heads, Dh] in the queries' dtype, and the log-sum-exp of each row, [rows + 1, 1], inf for
        the padding."""
        p = self.parts
        out = self.out[:-1].div_(self.mass[:-1]).to(p.q.dtype)
        logs = self.mass.log_().add_(self.top)
        logs[-1] = float("inf")
        return out.view(p.batch, p.length, p.heads, p.width), logs


class Gradients:
    """Gradients of queries and summaries, summed over pieces, and those of tokens, shard by shard."""

    def __init__(self, parts: Tiles, out: Tensor, logs: Tensor, grad: Tensor) -> None:
        self.parts, self.logs = parts, logs
        self.grad = grad.reshape(-1, parts.width)
        self.inner = parts.empty(1)
        self.inner[:-1] = (self.grad.to(parts.kind) * out.reshape(-1, parts.width)).sum(-1, keepdim=True)
        self.q = parts.empty(parts.width)
        self.keys, self.values = (torch.zeros_like(t, dtype=parts.kind) for t in (parts.keys, parts.values))

    def tokens(self, k: Tensor, v: Tensor, base: int) -> tuple[Tensor, Tensor]:
        """What these queries give the tokens base to base + S: two of [B, kv_heads, S, Dh]."""
        grads = torch.zeros(2, *k.shape, dtype=self.parts.kind, device=k.device)
        self._add(self.parts.of_tokens(k, v, base), grads[0], grads[1])
        return grads[0], grads[1]

    def summaries(self) -> tuple[Tensor, Tensor]:
        """What these queries give the summaries: two of [B, kv_heads, n, Dh]."""
        self._add(self.parts.summarised(), self.keys, self.values)
        return self.keys, self.values

    def queries(self) -> Tensor:
        """[B, T, heads, Dh], after all pieces."""
        return self.q[:-1].view(self.parts.q.shape)

    def _add(self, pieces: Iterator[Tile], keys: Tensor, values: Tensor) -> None:
        kind, scale, last = self.parts.kind, self.parts.scale, len(self.grad) - 1
        for piece in pieces:
            rows, shape = piece.rows, piece.q.shape[:2]
            p = _scores(piece, self.parts).sub_(self.logs[rows].view(*shape, 1)).exp_()
            grad = self.grad[rows.clamp_max(last) if piece.key_index is not None else rows].view(
                piece.q.shape
            )
            dv = product(p.transpose(1, 2), grad, kind)
            ds = product(grad, piece.v.transpose(1, 2), kind).sub_(self.inner[rows].view(*shape, 1))
            ds.mul_(p).mul_(scale)
            dq = product(ds, piece.k, kind).flatten(0, 1)
            dk = product(ds.transpose(1, 2), piece.q, kind)
            if piece.key_index is None:
                self.q[rows] = self.q[rows].add_(dq)
                for target, new in ((keys, dk), (values, dv)):
                    part = target[:, :, piece.span[0] : piece.span[1]]
                    part += new.view(part.shape)
                continue
            self.q.index_add_(0, rows, dq)
            for target, new in ((keys, dk), (values, dv)):
                target.view(-1, target.shape[-1]).index_add_(0, piece.key_index, new.flatten(0, 1))


def product(a: Tensor, b: Tensor, kind: torch.dtype) -> Tensor:
    """a @ b for stacks of matrices, summed and given back in `kind`. Cards multiply in the narrower of both formats;
    a processor gains nothing by that."""
    narrow = a.dtype if a.dtype.itemsize < b.dtype.itemsize else b.dtype
    if a.is_cuda and narrow.itemsize < kind.itemsize:
        return torch.bmm(a.to(narrow), b.to(narrow), out_dtype=kind)
    return a.to(kind) @ b.to(kind)


def _scores(piece: Tile, parts: Tiles) -> Tensor:
    """Scaled products [N, Q, K]; -inf where hidden."""
    s = product(piece.q, piece.k.transpose(1, 2), parts.kind).mul_(parts.scale)
    for some, hidden in piece.hidden:
        s[..., some].masked_fill_(hidden, NONE)
    return s


# ---------------------------------------------------------------- one device


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, layout: Layout, top_k: int
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            chosen = choose(q, keys, layout, top_k)
            parts = Tiles(q, keys, values, layout, chosen)
            sums = OnlineSoftmax(parts)
            sums.add(parts.of_tokens(k, v, 0))
            sums.add(parts.summarised())
            out, logs = sums.finish()
        tables = [getattr(layout, f.name) for f in fields(layout)]
        ctx.plain = [None if isinstance(t, Tensor) else t for t in tables]
        ctx.save_for_backward(
            q, k, v, keys, values, out, logs, chosen.queries, chosen.counts,
            *(t for t in tables if isinstance(t, Tensor)),
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, keys, values, out, logs, queries, counts, *tables = ctx.saved_tensors
        rest = iter(tables)
        layout = Layout(*(next(rest) if t is None else t for t in ctx.plain))
        with torch.autocast(q.device.type, enabled=False):
            parts = Tiles(q, keys, values, layout, Chosen(queries, counts))
            found = Gradients(parts, out, logs, grad)
            dk, dv = found.tokens(k, v, 0)
            dkeys, dvalues = found.summaries()
            grads = (found.queries(), dk, dv, dkeys, dvalues)
            given = (q, k, v, keys, values)
            return *(g.to(t.dtype) for g, t in zip(grads, given)), None, None


def hybrid_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, layout: Layout, top_k: int
) -> Tensor:
    """softmax over what `layout` lets each query see (window, summaries, tokens of its `top_k` blocks), times the
    values. q [B, T, heads, Dh]; k, v [B, kv_heads, S, Dh]; keys, values: summaries [B, kv_heads, n, Dh] ->
    [B, T, heads, Dh].

    Time is that of T * (window + stride + n + top_k * stride) products, memory linear in T and S, also backward.
    """
    result: Tensor = _Attention.apply(q, k, v, keys, values, layout, top_k)
    return result
