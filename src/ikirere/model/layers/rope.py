"""Rotary position embedding, half-split form (Su et al. 2021, arXiv 2104.09864, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def rope_table(head_dim: int, positions: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position * theta^(-2i / head_dim): two fp32 tensors [positions, head_dim / 2]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float() / head_dim
    angle = torch.outer(torch.arange(positions, device=device).float(), 1.0 / theta**exponent)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (x[i], x[i + D/2]) of the last axis. x [..., D]; cos and sin as `Rope` gives them."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos.to(x.dtype), torch.cat((second, first), dim=-1), sin.to(x.dtype))


class Rope(nn.Module):
    """The table of turns for every position a model can have. It is derived, so never saved."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, positions: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.positions = head_dim, positions
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)
        self.theta = theta
        self._fill()

    def set_theta(self, theta: float) -> None:
        """Rebuilds the table for another base."""
        self.theta = theta
        self._fill()

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [B, T] -> what `rotate` takes for [B, T, heads, head_dim]: (cos, cos) and (-sin, sin), each
        fp32 [B, T, 1, head_dim]."""
        cos, sin = self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def _fill(self) -> None:
        if (
            self.cos.is_meta
        ):  # shapes only: arithmetic on the meta device makes torch load its compiler, seconds
            shape = (self.positions, self.head_dim // 2)
            self.cos, self.sin = torch.empty(shape, device="meta"), torch.empty(shape, device="meta")
            return
        self.cos, self.sin = rope_table(self.head_dim, self.positions, self.theta, self.cos.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rope:
        # `.to(bfloat16)` must not round the angles, and leaving the meta device must fill the table.
        before = self.cos
        super()._apply(fn, recurse)
        if self.cos.dtype != torch.float32 or (before.is_meta and not self.cos.is_meta):
            self._fill()
        return self
