"""Muon: momentum whose update is made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

torch.optim.Muon works matrix by matrix in bfloat16, which a CPU without bf16 instructions does a hundred times
slower than fp32. Here matrices of one shape are batched, in bf16 only on accelerators.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

A, B, C = 3.4445, -4.7750, 2.0315  # of the post, section "How were the coefficients chosen"
STEPS = 5
WIDE = 1.5  # columns per row from which the small products pay, measured at 64 to 256 rows


def orthogonalise(x: Tensor, steps: int = STEPS) -> Tensor:
    """Brings all singular values of each matrix near 1 (0.7 to 1.2) by Newton-Schulz iteration.

    x: [..., m, n] with m <= n, of any scale; the same shape and dtype comes back. x_k+1 = p(x_k x_k^T) x_k with
    p(g) = A + B g + C g^2. For wide matrices the polynomials are multiplied out among the m x m products first,
    which all commute, and x is touched twice only.
    """
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    flat = x.reshape(-1, *x.shape[-2:])
    wide = flat.shape[-1] >= WIDE * flat.shape[-2]
    return (_by_products if wide else _directly)(flat, steps).view(x.shape)


def _directly(x: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        gram = x @ x.mT
        update = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        x = torch.baddbmm(x, update, x, beta=A)
    return x


def _by_products(x: Tensor, steps: int) -> Tensor:
    gram = x @ x.mT
    product: Tensor | None = None
    for step in range(steps):
        p = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        p.diagonal(dim1=-2, dim2=-1).add_(A)
        product = p if product is None else p @ product
        if step + 1 < steps:
            gram = p @ (gram @ p)
    return x if product is None else product @ x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, times lr * sqrt(max(1, rows / columns)); decoupled weight decay.

    params: matrices, each one logical matrix, or stacks of them (one per expert), [..., rows, columns]. With sharded
    weights (FSDP) every rank gathers the update, computes the same orthogonal matrix and keeps its own part. Raises
    ValueError for a weight with fewer than two axes.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2:
                    raise ValueError(f"Muon takes matrices, not a weight of shape {list(p.shape)}")
                self.state[p]["momentum"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all weights that have a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if pairs:
                self._update([p for p, _ in pairs], [g for _, g in pairs], group)
        return loss

    def _update(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        momenta = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, momenta, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        shapes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, update in enumerate(updates):
            shapes[min(update.shape[-2:]), max(update.shape[-2:])].append(i)
        for (low, high), indices in shapes.items():
            whole = [_whole(updates[i]) for i in indices]
            wide = [u if u.shape[-2] <= u.shape[-1] else u.mT for u in whole]
            stack = torch.cat([u.reshape(-1, low, high) for u in wide])
            found = orthogonalise(stack.to(_products(stack))).split([u[..., 0, 0].numel() for u in whole])
            for i, u, flat in zip(indices, wide, found, strict=True):
                rows, columns = updates[i].shape[-2:]
                update = flat.view(u.shape) if rows <= columns else flat.view(u.shape).mT
                params[i].add_(
                    _like(update.to(params[i].dtype), params[i]),
                    alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)),
                )


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether each rank holds a part of it; decided without importing DTensor, which takes two seconds."""
    return hasattr(tensor, "full_tensor")


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def _like(whole: Tensor, model: Tensor) -> Tensor:
    """`whole`, which every rank holds alike, laid out as `model` is."""
    if not is_sharded(model):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    mesh = model.device_mesh
    copies = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return copies.redistribute(placements=model.placements)


def _products(tensor: Tensor) -> torch.dtype:
    """bf16 is enough here (the post, section "Design considerations"), where it is fast."""
    return torch.bfloat16 if tensor.is_cuda and torch.cuda.is_bf16_supported(False) else tensor.dtype
