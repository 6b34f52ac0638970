"""What the tests of rules with a state share."""

from __future__ import annotations

import torch
from torch import Tensor


def resets(seed: int, length: int, share: float, batch: int = 2) -> Tensor:
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < share


def gradients(rule: object, given: list[Tensor], starts: Tensor | None, *more: int) -> list[Tensor]:
    """Both results, and the gradients of a random sum of them with respect to all inputs."""
    wanted = [t.clone().requires_grad_() for t in given]
    o, state = rule(*wanted, starts, *more)  # type: ignore[operator]
    r = torch.Generator().manual_seed(1)
    total = sum((t * torch.randn(t.shape, generator=r)).sum() for t in (o, state))
    total.backward()
    return [o.detach(), state.detach(), *(t.grad for t in wanted if t.grad is not None)]


def close(ours: Tensor, expected: Tensor, bound: float) -> None:
    assert torch.isfinite(ours).all()
    assert (ours - expected).abs().max() <= bound * expected.abs().max().clamp_min(1e-20)
