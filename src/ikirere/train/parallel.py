"""Placing a model on one device or several. The model itself knows one device and no parallelism.

Several processes are started by `torchrun`; each is one rank with one device. `ddp` keeps a whole model on each,
`fsdp` a part of every weight (FSDP2). With one process both have no effect.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ikirere.errors import UserError
from ikirere.train.objective import Objective

if TYPE_CHECKING:
    from ikirere.tokens.batch import Batch


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files and reports."""
        return self.rank == 0

    def agree(self, value: str) -> str:
        """Rank 0's value."""
        held = [value]
        if self.size > 1:
            dist.broadcast_object_list(held)
        return held[0]

    def total(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


def world_of(mode: str) -> World:
    """The ranks of this run from the environment that torchrun sets, connected on the first call.

    Raises UserError where several processes run but the recipe sets `parallel: none`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if mode == "none":
        raise UserError(f"parallel: none, but {size} processes run; accepted with several are ddp and fsdp")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return World(dist.get_rank(), size)


class LossModule(nn.Module):
    """The objective as a module, so that wrappers see all of one forward pass."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(self.model, batch)


class DistributedModel:
    """A model and objective ready for (several) devices: call it with a micro-batch."""

    def __init__(self, model: nn.Module, objective: Objective, mode: str, world: World) -> None:
        self.model, self.world = model, world
        step = LossModule(model, objective)
        self.step: Any = step
        self.ddp: nn.parallel.DistributedDataParallel | None = None
        if world.size > 1 and mode == "ddp":
            self.step = self.ddp = nn.parallel.DistributedDataParallel(step, broadcast_buffers=False)
        elif world.size > 1:
            _shard(model)

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        result: tuple[Tensor, dict[str, Tensor]] = self.step(batch)
        return result

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch's forward and backward: gradients are reduced over ranks with the last one only."""
        if self.ddp is not None and not last:
            return self.ddp.no_sync()
        if self.world.size > 1 and self.ddp is None:
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()


def _shard(model: nn.Module) -> None:
    """FSDP2 by blocks. `hidden` is the entry that objectives and evaluation use."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    kind = next(model.parameters()).device.type
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    for block in getattr(model, "layers", []):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights by name, gathered where they are sharded. Every rank calls it."""
    from ikirere.train.orthogonal import is_sharded

    state = model.state_dict()
    return {name: (t.full_tensor() if is_sharded(t) else t) for name, t in state.items()}


def checkpoint_activations(model: nn.Module) -> None:
    """Keeps only each block's input for the backward pass and computes the rest again (Chen et al. 2016)."""
    for block in getattr(model, "layers", []):
        if "forward" not in vars(block):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def release_activations(model: nn.Module) -> None:
    """Undoes `checkpoint_activations`."""
    for block in getattr(model, "layers", []):
        vars(block).pop("forward", None)
