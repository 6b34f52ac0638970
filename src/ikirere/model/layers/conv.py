"""Short causal convolution over time, each channel by itself (as before the state of Mamba, Gu and Dao 2023,
arXiv 2312.00752, section 3.4, and of Kimi Linear)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def single(t: Tensor) -> Tensor:
    """At least fp32: what is wider stays."""
    return t if t.dtype == torch.float64 else t.float()


class ShortConv(nn.Module):
    """y_t = silu(sum_s w_s x_(t - s)), s from 0 to size - 1, of tokens of the same document. No bias.

    weight: [channels * size], channel by channel, the newest token's factor last. It is kept as a vector because it
    is a filter for each channel and no matrix: optimisers neither decay nor orthogonalise it.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.weight = nn.Parameter(torch.empty(channels * size))

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Uniform within 1 / sqrt(size), which keeps the size of what passes through."""
        drawn = torch.empty(self.weight.shape, dtype=torch.float32, device=generator.device)
        bound = 1 / math.sqrt(self.size)
        self.weight.copy_(drawn.uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor, tail: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """x [B, T, channels] -> the same shape in fp32.

        tail: [B, size - 1, channels], the inputs before this pass, zeros by default. places: LongTensor [B, T], each
        token's place within its document where rows hold several; earlier documents are then not looked at.
        """
        length, before = x.shape[1], self.size - 1
        weight = single(self.weight).view(self.channels, 1, 1, self.size)
        x = single(x)
        with torch.autocast(x.device.type, enabled=False):
            # Four axes: there is a fast kernel for channels that lie together, as they do here.
            if tail is None:
                y = F.conv2d(x.mT.unsqueeze(2), weight, padding=(0, before), groups=self.channels)
            else:
                x = torch.cat((tail.to(x.dtype), x), dim=1)
                y = F.conv2d(x.mT.unsqueeze(2), weight, groups=self.channels)
            y = y.squeeze(2).mT[:, :length]
            if places is not None:
                y = self._restart(y, x, weight, places)
            return F.silu(y)

    def _restart(self, y: Tensor, x: Tensor, weight: Tensor, places: Tensor) -> Tensor:
        """Works out anew the few tokens for which y [B, T, channels] looked beyond the start of their document."""
        row, column = torch.nonzero(places < self.size - 1, as_tuple=True)
        back = torch.arange(self.size - 1, -1, -1, device=x.device)
        seen = back <= places[row, column].unsqueeze(1)
        taken = x[row.unsqueeze(1), (column.unsqueeze(1) - back).clamp_min(0)]  # [starts, size, channels]
        taken = torch.where(seen.unsqueeze(-1), taken, 0.0)
        return y.index_put((row, column), (taken * weight.view(self.channels, self.size).mT).sum(1))


def next_tail(x: Tensor, tail: Tensor, counts: Tensor | None) -> Tensor:
    """The last inputs of each row after a pass, of `tail`'s shape [B, size - 1, channels].

    x: [B, T, channels], this pass. tail: the inputs before it. counts: LongTensor [B], how many of x's are real.
    """
    before = tail.shape[1]
    joined = torch.cat((tail, x.to(tail.dtype)), dim=1)
    if counts is None:
        return joined[:, joined.shape[1] - before :]
    order = counts.unsqueeze(1) + torch.arange(before, device=x.device)
    return joined.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
