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


def nothing_is_drowned(
    recurrent: object, chunked: object, given: list[Tensor], gate: float, share: float
) -> None:
    """Decays of all sizes up to `gate` side by side: what is weak must not be drowned by what is strong.

    given[3]: logarithms of decays, drawn here. share: of the positions where their own gradient is within 2%, each for
    itself, so that no sum of terms cancels.
    """
    given = list(given)
    given[3] = -gate * torch.rand(given[3].shape, generator=torch.Generator().manual_seed(2)) ** 6
    exact, ours = gradients(recurrent, [t.double() for t in given], None), gradients(chunked, given, None)
    for a, b in zip(ours, exact, strict=True):
        close(a.double(), b, 3e-6)
    of_g, expected = ours[5].double(), exact[5]
    seen = expected.abs() > 1e-9 * expected.abs().max()
    assert ((of_g - expected).abs()[seen] <= 2e-2 * expected.abs()[seen]).float().mean() > share
