"""Short causal convolution over time, each channel by itself (as before the state of Mamba, Gu and Dao 2023,
arXiv 2312.00752, section 3.4, and of Kimi Linear)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def single(t: Tensor) -> Tensor:
    """At least fp32: what is wider stays."""
    return t if t.dtype == torch.float64 else t.float()


class _Filter(torch.autograd.Function):
    """y_t = sum_j w_j x_(t + j - pad) for x [B, T, C], which reaches back beyond zeros where pad is size - 1,
    and w [C, size]. torch's own backward pass of a convolution by channels takes twice as long on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pad: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pad = pad
        return _filtered(x, weight, pad)[:, : x.shape[1] + pad - weight.shape[1] + 1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weight), pad, grad = ctx.saved_tensors, ctx.pad, grads[0].contiguous()
        size, length = weight.shape[1], x.shape[1]
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = _filtered(grad, weight.flip(1), size - 1)[:, pad : pad + length]
        if ctx.needs_input_grad[1]:
            each = []
            for j in range(size):
                skipped = max(0, pad - j)  # outputs that this factor found nothing but zeros for
                seen = grad[:, skipped:]
                begin = skipped + j - pad
                each.append((seen * x[:, begin : begin + seen.shape[1]]).sum((0, 1)))
            dw = torch.stack(each, dim=1)
        return dx, dw, None


def _filtered(x: Tensor, weight: Tensor, pad: int) -> Tensor:
    """The filter over x [B, T, C] with `pad` zeros at both ends. Four axes: there is a fast kernel for
    channels that lie together, as they do here."""
    weight = weight.view(len(weight), 1, 1, -1)
    y = F.conv2d(x.mT.unsqueeze(2), weight, padding=(0, pad), groups=len(weight))
    return y.squeeze(2).mT


class ShortConv(nn.Module):
    """y_t = silu(sum_s w_s x_(t - s) + b), s from 0 to size - 1, of tokens of the same document.

    weight: [channels * size], channel by channel, the newest token's factor last. It is kept as a vector
    because it is a filter for each channel and no matrix: optimisers neither decay nor orthogonalise it.
    bias: [channels], or None.
    """

    def __init__(self, channels: int, size: int, bias: bool = False) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.weight = nn.Parameter(torch.empty(channels * size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Uniform within 1 / sqrt(size), which keeps the size of what passes through."""
        bound = 1 / math.sqrt(self.size)
        for parameter in self.parameters():
            drawn = torch.empty(parameter.shape, dtype=torch.float32, device=generator.device)
            parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor, tail: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """x [B, T, channels] -> the same shape in fp32.

        tail: [B, size - 1, channels], the inputs before this pass, zeros by default. positions: LongTensor [B,
        T], each token's position within its document where rows hold several; earlier documents are then not
        looked at.
        """
        before, weight = self.size - 1, single(self.weight).view(self.channels, self.size)
        x = single(x)
        if tail is not None:
            x = torch.cat((tail.to(x.dtype), x), dim=1)
            if x.shape[1] == self.size and positions is None:  # one new token, as when text is generated
                return F.silu(self._shifted((x * weight.mT).sum(1, keepdim=True)))
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = _Filter.apply(x, weight, before if tail is None else 0)
            if positions is not None:
                y = self._restart(y, x, weight, positions)
            return F.silu(self._shifted(y))

    def _shifted(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + single(self.bias)

    def _restart(self, y: Tensor, x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
        """Recomputes the few positions of y [B, T, channels] that looked beyond their document's start."""
        row, column = torch.nonzero(positions < self.size - 1, as_tuple=True)
        back = torch.arange(self.size - 1, -1, -1, device=x.device)
        seen = back <= positions[row, column].unsqueeze(1)
        at = column.unsqueeze(1) - back + (x.shape[1] - y.shape[1])  # after the tail
        taken = x[row.unsqueeze(1), at.clamp_min(0)]  # [starts, size, channels]
        taken = torch.where(seen.unsqueeze(-1), taken, 0.0)
        return y.index_put((row, column), (taken * weight.mT).sum(1))


def next_tail(x: Tensor, tail: Tensor, counts: Tensor | None) -> Tensor:
    """The last inputs of each row after a pass, of `tail`'s shape [B, size - 1, channels].

    x: [B, T, channels], this pass. tail: the inputs before it. counts: LongTensor [B], real ones of x.
    """
    before = tail.shape[1]
    joined = torch.cat((tail, x.to(tail.dtype)), dim=1)
    if counts is None:
        return joined[:, joined.shape[1] - before :]
    order = counts.unsqueeze(1) + torch.arange(before, device=x.device)
    return joined.gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
