"""The loss that teaches summaries which blocks are worth reading.

The choice of blocks has no gradient of its own. As for DeepSeek's sparse attention (DeepSeek-AI 2025, arXiv
2512.02556, section 2.1, dense warm-up) the scores that choose are trained towards what exact attention gives each
block, by the Kullback-Leibler divergence. There the scores have weights of their own; here they are products of the
queries with the summaries' keys, so queries, keys and summaries learn from it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ikirere.model.layers.summaries import Layout, block_tokens, scores_at_once

QUERIES = 128
"""Most queries of each row that are asked, so that the cost is linear in the length."""


def selection_loss(
    q: Tensor, k: Tensor, keys: Tensor, layout: Layout, real: Tensor | None = None, most: int = QUERIES
) -> Tensor:
    """Mean over queries and key-value heads of m * KL(p, softmax(s)), a scalar in fp32 (fp64 for fp64 inputs).

    p: what exact attention to all of the document gives each whole block before the query's window, divided by their
    sum; m: that sum, so that queries that need nothing from there count little. Both are means over the group's heads,
    without gradient. s: the mean of the group's scaled products with the blocks' summary keys.

    q: [B, T, heads, Dh]. k: [B, kv_heads, S, Dh]. keys: [B, kv_heads, n, Dh]. real: bool [B, T], False on padding. At
    most `most` columns of queries are asked, drawn from torch's global generator among those where a row has two blocks
    to choose from; 0 without any.
    """
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    choice = layout.last - layout.first > 1
    if real is not None:
        choice = choice & real
    columns = choice.any(0).nonzero().squeeze(1)
    if not len(columns):
        return torch.zeros((), dtype=kind, device=q.device)
    if len(columns) > most:
        drawn = torch.randperm(len(columns))[:most].sort().values
        columns = columns[drawn.to(columns.device)]
    block = torch.arange(keys.shape[2], device=q.device)
    first, last = (t[:, columns, None] for t in (layout.first, layout.last))
    seen = ((block >= first) & (block < last)).unsqueeze(1)  # [B or 1, 1, Q, n]
    with torch.autocast(q.device.type, enabled=False):
        picked = q[:, columns]
        shares = _shares(picked.detach(), k.detach(), columns, seen, layout)
        mass = shares.sum(-1)
        wanted = shares / mass.clamp_min(1e-20).unsqueeze(-1)
        summed = picked.to(kind).unflatten(2, (k.shape[1], -1)).mean(3).transpose(1, 2)
        scores = (summed @ keys.to(kind).transpose(2, 3)) * q.shape[-1] ** -0.5
        found = scores.masked_fill(~seen, float("-inf")).log_softmax(-1).masked_fill(~seen, 0.0)
        divergence = (wanted * (wanted.clamp_min(1e-20).log() - found)).sum(-1)
        asked = choice[:, columns].unsqueeze(1)  # [B or 1, 1, Q]
        weight = mass.masked_fill(~asked, 0.0)
        number = asked.expand_as(weight).sum()
        return (weight * divergence.masked_fill(~asked, 0.0)).sum() / number


@torch.no_grad()
def _shares(q: Tensor, k: Tensor, columns: Tensor, seen: Tensor, layout: Layout) -> Tensor:
    """What exact attention of the queries q [B, Q, heads, Dh], the `columns` of the layout, gives each block that is
    `seen` [B or 1, 1, Q, n]: [B, kv_heads, Q, n], the mean over the group's heads."""
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, _, heads, width = q.shape
    kv_heads, length = k.shape[1:3]
    starts, stride = layout.starts, layout.stride
    at = block_tokens(starts, stride).flatten(1)  # [B or 1, n * stride]
    position = torch.arange(length, device=q.device)
    # A query that sees a block sees its document from that document's first block on.
    begins = starts.expand(len(layout.first), -1).gather(
        1, layout.first[:, columns].long().clamp_max(starts.shape[1] - 1)
    )
    flipped, found = k.to(kind).transpose(2, 3).unsqueeze(2), []
    size = max(1, scores_at_once(q.device) // (batch * heads * length))
    for some in torch.arange(len(columns), device=q.device).split(size):
        grouped = q[:, some].to(kind).unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
        scores = (grouped @ flipped) * width**-0.5  # [B, kv_heads, group, queries, S]
        here = (layout.offset + columns[some])[:, None]
        known = (position <= here) & (position >= begins[:, some, None])
        p = scores.masked_fill_(~known[:, None, None], float("-inf")).softmax(-1)
        blocks = p.gather(-1, at[:, None, None, None].expand(*p.shape[:-1], -1).expand(batch, -1, -1, -1, -1))
        shares = blocks.unflatten(-1, (-1, stride)).sum(-1).mean(2)
        found.append(shares.masked_fill(~seen[:, :, some], 0.0))
    return torch.cat(found, 2)
