"""Rotary position embedding, half-split form (Su et al. 2021, arXiv 2104.09864, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ikirere.errors import UserError

SCALINGS = ("none", "yarn", "ntk")
FAST, SLOW = 32, 1
"""Rotations over the original context, between which YaRN goes from keeping to stretching a frequency."""


@dataclass(frozen=True)
class RopeSpec:
    """One kind of rotary positions; layers of one spec share a table.

    theta: base; None: the model's `rope_theta`, which phases may change. scaling: `yarn` (Peng et al. 2023, arXiv
    2309.00071, section 3) or `ntk` (base theta * factor^(D / (D - 2))). factor: new context over `original`, the
    context in tokens before scaling. last: positions may be of any size, and each is rotated a second time as if it
    were at most this one. Raises UserError for an unknown scaling and for a context that does not grow.
    """

    head_dim: int
    theta: float | None = None
    scaling: str = "none"
    factor: float = 1.0
    original: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise UserError(f"rope_scaling {self.scaling!r}: accepted are {', '.join(SCALINGS)}")
        if self.scaling != "none" and (self.factor < 1 or self.original < 1):
            raise UserError(
                f"rope_scaling {self.scaling!r} needs original_max_position_embeddings below the new context "
                f"(original {self.original}, factor {self.factor:g})"
            )

    def frequencies(self, theta: float, device: torch.device) -> tuple[Tensor, float]:
        """Radians per position of each pair, fp32 [head_dim / 2], and the factor of cosines and sines."""
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.int64, device=device).float() / self.head_dim
        if self.scaling == "ntk" and self.head_dim > 2:
            theta = theta * self.factor ** (self.head_dim / (self.head_dim - 2))
        kept = 1.0 / theta**exponent
        if self.scaling != "yarn" or self.factor == 1:
            return kept, 1.0

        def pair(rotations: float) -> float:
            return self.head_dim * math.log(self.original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low, high = max(math.floor(pair(FAST)), 0), min(math.ceil(pair(SLOW)), self.head_dim - 1)
        index = torch.arange(self.head_dim // 2, device=device).float()
        ramp = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
        return kept * (1 - ramp) + kept / self.factor * ramp, 0.1 * math.log(self.factor) + 1.0


def rope_table(spec: RopeSpec, positions: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position * frequency: two fp32 tensors [positions, head_dim / 2]."""
    frequencies, scale = spec.frequencies(theta, device)
    angle = torch.outer(torch.arange(positions, device=device).float(), frequencies)
    return angle.cos() * scale, angle.sin() * scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (x[i], x[i + D/2]) of the last axis. x [..., D]; cos and sin as `Rope` gives them."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos.to(x.dtype), torch.cat((second, first), dim=-1), sin.to(x.dtype))


class Rope(nn.Module):
    """The table of rotations for every position a model can have, derived and never saved. With `RopeSpec.last`,
    where positions are unbounded, there is no table: rotations are computed in each pass."""

    cos: Tensor
    sin: Tensor

    def __init__(self, spec: RopeSpec, positions: int, theta: float) -> None:
        super().__init__()
        self.spec, self.positions = spec, positions
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)
        self.theta = theta if spec.theta is None else spec.theta
        self.fill()

    def set_theta(self, theta: float) -> None:
        """Rebuilds the table for another base of the model; a base of the spec's own stays."""
        if self.spec.theta is None:
            self.theta = theta
            self.fill()

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [B, T] -> what `rotate` takes for [B, T, heads, head_dim]: (cos, cos) and (-sin, sin), each
        fp32 [B, T, 1, head_dim]; with `last` [B, T, 2, head_dim], the second as if positions were at most that."""
        if self.spec.last is None:
            cos, sin = self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2)
        else:
            both = torch.stack((positions, positions.clamp_max(self.spec.last)), dim=-1)
            frequencies, scale = self.spec.frequencies(self.theta, positions.device)
            # fp64: at a million tokens fp32 would be off by a hundredth of a rotation.
            angle = both.double().unsqueeze(-1) * frequencies.double()
            cos, sin = (angle.cos() * scale).float(), (angle.sin() * scale).float()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def fill(self) -> None:
        """Recomputes the table, where there is one."""
        if self.spec.last is not None:
            return
        if (
            self.cos.is_meta
        ):  # shapes only: arithmetic on the meta device makes torch load its compiler, seconds
            shape = (self.positions, self.spec.head_dim // 2)
            self.cos, self.sin = torch.empty(shape, device="meta"), torch.empty(shape, device="meta")
            return
        self.cos, self.sin = rope_table(self.spec, self.positions, self.theta, self.cos.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rope:
        # `.to(bfloat16)` must not round the angles, and leaving the meta device must fill the table.
        before = self.cos
        super()._apply(fn, recurse)
        if self.cos.dtype != torch.float32 or (before.is_meta and not self.cos.is_meta):
            self.fill()
        return self
