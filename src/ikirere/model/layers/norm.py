"""Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps) over the last axis, computed in fp32, returned in x's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        single = x.dtype == self.weight.dtype == torch.float32
        if single and x.is_cpu and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            y: Tensor = _EagerRMSNorm.apply(x, self.weight, self.eps)
            return y
        if x.dtype == self.weight.dtype:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class _EagerRMSNorm(torch.autograd.Function):
    """The same in fp32 for eager training on the CPU, in a third of autograd's passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = scale.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        grad = grads[0].contiguous()
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        # Layer norm with a mean of zero is RMS norm, but for mean(grad * weight), which its gradient
        # takes away and which is given back here.
        dx, dw, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, list(weight.shape), torch.zeros_like(scale), scale, weight, None, wanted
        )
        if dx is not None:
            dx.add_((grad @ weight).unsqueeze(-1).mul_(scale).mul_(1 / x.shape[-1]))
        return dx, dw, None
