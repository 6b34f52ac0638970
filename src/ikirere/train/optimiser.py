"""AdamW, and Muon for the hidden matrices.

Which weight goes where: matrices of the hidden layers to Muon (where the recipe names it), all others to
AdamW. Weight decay falls on matrices only, never on norms, biases or embeddings (a tied head is an embedding).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ikirere.recipe.sections import Optimizer as OptimizerConfig
from ikirere.train.orthogonal import Muon, is_sharded


class Optimizers:
    """One or two torch optimisers that step together. Their state exists from the start, so that it can be
    saved and filled by name at any time."""

    def __init__(self, model: nn.Module, parts: list[torch.optim.Optimizer], grad_clip: float) -> None:
        self.parts, self.grad_clip = parts, grad_clip
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.parameters = [p for part in parts for group in part.param_groups for p in group["params"]]
        for part in parts:
            for group in part.param_groups:
                group["peak"] = group["lr"]
            if isinstance(part, torch.optim.AdamW):
                _fill_adam(part)

    @property
    def lr(self) -> float:
        """The current rate of the first group (Muon's, where there is one)."""
        return float(self.parts[0].param_groups[0]["lr"])

    def set_factor(self, factor: float) -> None:
        """Sets every group's rate to `factor` times its peak."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * factor

    def clip(self) -> Tensor:
        """Scales all gradients so that their global norm is at most `grad_clip`; returns the norm before."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        norm = norm.full_tensor() if is_sharded(norm) else norm
        # On the CPU looking at the norm is free, and most steps need no pass over the gradients.
        if self.grad_clip and (norm.device.type != "cpu" or norm > self.grad_clip):
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.grad_clip, norm)
        return norm

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        """Divides the gradients by the loss scale of fp16 training."""
        if scaler.is_enabled():
            for part in self.parts:
                scaler.unscale_(part)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """One update; with an fp16 scaler none where gradients overflowed."""
        if scaler is None or not scaler.is_enabled():
            for part in self.parts:
                part.step()
            return
        for part in self.parts:
            scaler.step(part)
        scaler.update()

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """All optimiser state, by `<weight>/<what>`; the tensors themselves, not copies."""
        return {
            f"{self.names[id(p)]}/{what}": value
            for part in self.parts
            for p, state in part.state.items()
            for what, value in state.items()
        }


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizers:
    """The optimisers of a recipe over all weights that require gradients.

    model: embeddings are its nn.Embedding modules; its `output_weight`, where it has one, is the head.
    """
    matrices, head, rest = sort_weights(model)
    parts: list[torch.optim.Optimizer] = []
    if config.name == "muon" and matrices:
        assert config.muon_lr is not None  # the recipe's schema asks for it
        parts.append(Muon(matrices, config.muon_lr, config.momentum, config.weight_decay))
        matrices = []
    groups: list[dict[str, Any]] = [
        {"params": matrices + head, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if groups:
        parts.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True))
    return Optimizers(model, parts, config.grad_clip)


def sort_weights(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(matrices of hidden layers, untied head, all others: embeddings, norms, biases), each in the model's order."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    output = id(getattr(model, "output_weight", None))
    matrices, head, rest = [], [], []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or id(parameter) in embeddings:
            rest.append(parameter)
        elif id(parameter) == output:
            head.append(parameter)
        else:
            matrices.append(parameter)
    return matrices, head, rest


def _fill_adam(part: torch.optim.AdamW) -> None:
    """The state that AdamW would make at its first step."""
    for parameter in _all(part.param_groups):
        part.state[parameter] = {
            # The fused kernel needs the counter on the device of the weights.
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }


def _all(groups: Iterable[dict[str, Any]]) -> list[nn.Parameter]:
    return [p for group in groups for p in group["params"]]
