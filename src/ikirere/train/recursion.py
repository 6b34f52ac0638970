"""Deep supervision of a recursive model: one optimiser step per supervision step, answers carried from step to step,
rows that halt replaced by new examples (Jolicoeur-Martineau 2025, arXiv 2510.04871, sections 2.4 and 4.1 to 4.6).

Three parts meet in `train.loop`: `RecursiveTrainer` is the model that it trains and keeps, `DeepSupervision` the
objective, `CarriedRows` the source of batches.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.recursive import RecursiveModel
from ikirere.tokens.batch import IGNORE, Batch
from ikirere.tokens.infilling import Example
from ikirere.tokens.loader import Stretch
from ikirere.train.stablemax import stablemax_nats

__all__ = ["CarriedRows", "DeepSupervision", "Example", "Examples", "RecursiveTrainer"]

HALTING = 0.5  # weight of the halting head's loss
_EXPLORING = 1  # distinguishes draws of exploration from others of the same numbers


class RecursiveTrainer(nn.Module):
    """A network, the moving average of its weights, and the carried answer of each row of the batch.

    `ema` is a network of the same shape without gradient: decay * ema + (1 - decay) * weight after each step; it is
    what is evaluated. Carried y and z [rows, puzzle_tokens + length, hidden_size], steps done and halted [rows] are
    buffers, so a checkpoint holds them and a resumed run continues with the same bits. Only `after_step` writes
    the results of a forward pass there: an interrupted step changes nothing.
    Each rank carries its own rows, in buffers named by its number, because a checkpoint keeps one copy of tensors that
    have the same name on several ranks. A checkpoint therefore needs as many ranks as wrote it, or fewer.

    rows: of the batch on this rank, at most. length: tokens of a row, at most.
    """

    def __init__(self, network: RecursiveModel, rows: int, length: int, rank: int = 0) -> None:
        super().__init__()
        self.network = network
        self.ema = copy.deepcopy(network).requires_grad_(False)
        self.rank = rank
        shape = (rows, network.front + length, network.config.hidden_size)
        device, dtype = network.device, network.dtype
        self._hold("y", torch.zeros(shape, dtype=dtype, device=device))
        self._hold("z", torch.zeros(shape, dtype=dtype, device=device))
        self._hold("steps", torch.zeros(rows, dtype=torch.long, device=device))
        self._hold("halted", torch.ones(rows, dtype=torch.bool, device=device))
        self._found: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []

    def _hold(self, name: str, value: Tensor) -> None:
        self.register_buffer(f"carried_{name}_{self.rank}", value)

    def carried(self, name: str) -> Tensor:
        """The buffer `y`, `z`, `steps` or `halted` of this rank."""
        return self.get_buffer(f"carried_{name}_{self.rank}")

    @property
    def layers(self) -> nn.ModuleList:
        """The core's blocks, which the loop compiles or checkpoints."""
        return self.network.layers

    @property
    def output_weight(self) -> Tensor:
        """The head's matrix [vocab_size, hidden_size], which the optimiser distinguishes from hidden ones."""
        return self.network.output_weight

    @property
    def config(self) -> ModelConfig:
        """The network's shape."""
        return self.network.config

    def halted(self) -> Tensor:
        """Which rows are done and need a new example: bool [rows] on the CPU."""
        return self.carried("halted").cpu()

    def advance(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """One supervision step of the batch's rows.

        batch.extras: `row` LongTensor [B], which carried row each is; `fresh` bool [B], True where the row begins a new
        example; optionally `puzzle` LongTensor [B].
        Returns y and z [B, P, hidden_size] with gradient, and the steps done, this one included, [B].
        """
        row, fresh = batch.extras["row"], batch.extras["fresh"]
        context = self.network.context(batch.tokens, batch.document_ids)
        x = self.network.embed(batch.tokens, batch.extras.get("puzzle"))
        y, z = (
            torch.where(fresh[:, None, None], first, self.carried(name)[row, : x.shape[1]].to(x.dtype))
            for name, first in zip("yz", self.network.start(x))
        )
        steps = self.carried("steps")[row].masked_fill(fresh, 0) + 1
        y, z = self.network.step(x, y, z, context)
        return y, z, steps

    def keep(self, row: Tensor, y: Tensor, z: Tensor, steps: Tensor, halted: Tensor) -> None:
        """Records the results of rows, which `after_step` writes into the carried buffers."""
        self._found.append((row, y.detach(), z.detach(), steps, halted))

    @torch.no_grad()
    def after_step(self) -> dict[str, Tensor]:
        """Writes the recorded results into the buffers and updates the average; the loop calls it after each optimiser
        step."""
        for row, *values in self._found:
            for name, value in zip(("y", "z", "steps", "halted"), values):
                held = self.carried(name)
                part = held[:, : value.shape[1]] if value.ndim == 3 else held
                part[row] = value.to(held.dtype)
        self._found.clear()
        decay = self.network.settings.ema
        torch._foreach_lerp_(
            list(self.ema.parameters()), [p.detach() for p in self.network.parameters()], 1 - decay
        )
        return {}


class DeepSupervision:
    """Mean over rows of: the mean stablemax cross-entropy of the row's labels (fp64), plus 0.5 times the binary
    cross-entropy of q against whether every label was met.

    A row halts where q > 0 or after `supervision_steps`, but not before the steps of extras["least"] [B].
    Scalars: nll, halt_loss; accuracy (of labels, mean over rows); exact (share of rows); halted (share of rows); steps
    (mean number of the rows' supervision steps).
    """

    def weight(self, batch: Batch) -> int:
        """Rows: the loss is a mean over them."""
        return len(batch.tokens)

    def __call__(self, trainer: RecursiveTrainer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        network = trainer.network
        y, z, steps = trainer.advance(batch)
        used = batch.labels != IGNORE
        row, position = used.nonzero(as_tuple=True)
        logits = F.linear(y[row, network.front + position], network.output_weight)
        wanted, counts = batch.labels[used], used.sum(-1).clamp_min(1)
        nats = stablemax_nats(logits, wanted)
        each = nats.new_zeros(len(y)).index_add(0, row, nats) / counts
        with torch.no_grad():
            right = (logits.argmax(-1) == wanted).to(nats.dtype)
            accuracy = nats.new_zeros(len(y)).index_add(0, row, right) / counts
            exact = accuracy == 1
        q = network.halting(y)
        halt_loss = F.binary_cross_entropy_with_logits(q, exact.to(q.dtype))
        with torch.no_grad():
            done = (q > 0) | (steps >= network.settings.supervision_steps)
            halted = done & (steps >= batch.extras["least"])
            trainer.keep(batch.extras["row"], y, z, steps, halted)
        nll = each.mean()
        scalars = {
            "nll": nll.detach(),
            "halt_loss": halt_loss.detach(),
            "accuracy": accuracy.mean(),
            "exact": exact.double().mean(),
            "halted": halted.double().mean(),
            "steps": steps.double().mean(),
        }
        return nll + HALTING * halt_loss, scalars


# ---------------------------------------------------------------- batches


class Examples(Protocol):
    """Where rows come from: a function of phase and number, so that a row can be rebuilt."""

    def fingerprint(self, begun: int) -> str:
        """Of all that the examples of the first `begun` phases depend on."""

    def example(self, phase: int, number: int) -> Example:
        """The phase's example of that number, 0, 1, 2, ..., of the phase's length."""


class CarriedRows:
    """A source for `train.loop` that keeps each row's example until the row halts.

    halted: which rows are done, `RecursiveTrainer.halted`. exploration: share of examples that must continue for at least
    U{2..limit} steps, drawn by the example's number; the published code draws at each step.
    A phase begins with new examples in all rows and counts its own from 0; rank r takes the numbers r, r + world, ...
    The state is JSON-able: rows are rebuilt from their numbers. Under another number of ranks all rows begin new
    examples. Phases that begin after the state's step may change.
    Raises UserError for a batch size that does not divide.
    """

    def __init__(
        self,
        examples: Examples,
        phases: Sequence[Stretch],
        halted: Callable[[], Tensor],
        seed: int,
        exploration: float = 0.1,
        limit: int = 16,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.examples, self.phases, self.halted = examples, list(phases), halted
        self.seed, self.exploration, self.limit, self.rank, self.world = seed, exploration, limit, rank, world
        for i, phase in enumerate(self.phases):
            if phase.batch_size % world:
                raise UserError(
                    f"pretrain.phases.{i}.batch_size: {phase.batch_size} is not divisible by the {world} ranks"
                )
        self.step, self.assigned = 0, 0  # steps made; examples that this rank has given to rows in this phase
        self.held: list[int] = []
        self._made: dict[int, tuple[tuple[int, int], Example, int]] = {}  # by row
        self._fingerprints: dict[int, str] = {}  # of the examples, by number of phases

    @property
    def steps(self) -> int:
        """Of all phases."""
        return sum(phase.steps for phase in self.phases)

    def next(self) -> Batch:
        """This rank's rows of the next optimiser step. Raises StopIteration after the last phase."""
        if self.step >= self.steps:
            raise StopIteration
        number, first = 0, 0
        while self.step >= first + self.phases[number].steps:
            first += self.phases[number].steps
            number += 1
        rows = self.phases[number].batch_size // self.world
        if self.step == first or len(self.held) != rows:
            self.assigned = 0 if self.step == first else self.assigned
            self.held, fresh = [0] * rows, torch.ones(rows, dtype=torch.bool)
        else:
            fresh = self.halted()[:rows].clone()
        for row in fresh.nonzero().flatten().tolist():
            self.held[row] = self.assigned * self.world + self.rank
            self.assigned += 1
        self.step += 1
        return self._batch(number, fresh)

    def _batch(self, phase: int, fresh: Tensor) -> Batch:
        made = [self._row(row, phase, number) for row, number in enumerate(self.held)]
        examples = [example for example, _ in made]
        tokens = torch.stack([e.tokens for e in examples])
        ids = None
        if any(e.document_ids is not None for e in examples):
            whole = torch.zeros_like(tokens[0])
            ids = torch.stack([whole if e.document_ids is None else e.document_ids for e in examples])
        extras = {
            "row": torch.arange(len(examples)),
            "fresh": fresh,
            "least": torch.tensor([least for _, least in made]),
        }
        if examples[0].puzzle is not None:
            extras["puzzle"] = torch.tensor([cast(int, e.puzzle) for e in examples])
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        return Batch(tokens, torch.stack([e.labels for e in examples]), positions, ids, extras)

    def _row(self, row: int, phase: int, number: int) -> tuple[Example, int]:
        """The row's example, and how many steps it must continue for at least."""
        known = self._made.get(row)
        if known is None or known[0] != (phase, number):
            draw = np.random.default_rng([abs(self.seed), _EXPLORING, phase, number])
            longer = draw.random() < self.exploration and self.limit > 1
            least = int(draw.integers(2, self.limit + 1)) if longer else 1
            known = (phase, number), self.examples.example(phase, number), least
            self._made[row] = known
        return known[1:]

    def state_dict(self) -> dict[str, Any]:
        """Step, numbers of the rows' examples, ranks and fingerprint, JSON-able."""
        return {
            "step": self.step,
            "dealt": self.assigned,
            "held": list(self.held),
            "ranks": [self.rank, self.world],
            "fingerprint": self.fingerprint(self.step),
        }

    def fingerprint(self, step: int) -> str:
        """Of all that the batches of the first `step` steps depend on."""
        shape, first = [], 0
        for phase in self.phases:
            if first < step:
                shape.append([min(phase.steps, step - first), phase.sequence_length, phase.batch_size])
            first += phase.steps
        return self._digest(shape, step)

    def _digest(self, shape: list[list[int]], *step: int) -> str:
        begun = len(shape)
        if begun not in self._fingerprints:
            self._fingerprints[begun] = self.examples.fingerprint(begun)
        text = json.dumps([self._fingerprints[begun], shape, self.seed, self.exploration, self.limit, *step])
        return hashlib.sha256(text.encode()).hexdigest()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state. Raises UserError where examples, seed or the phases up to its step are not those of
        the state."""
        # A state may hold a fingerprint over all phases instead of those up to its step.
        whole = [[p.steps, p.sequence_length, p.batch_size] for p in self.phases]
        if state["step"] > self.steps or state["fingerprint"] not in (
            self.fingerprint(state["step"]),
            self._digest(whole),
        ):
            raise UserError(
                "data position of the checkpoint belongs to other examples, phases or another seed; "
                "start this stage anew or restore what was changed"
            )
        self.step, self.assigned, self.held = state["step"], state["dealt"], list(state["held"])
        rank, world = state["ranks"]
        if (rank, world) != (self.rank, self.world):
            # These rows' answers are another rank's, and its numbers would be assigned twice.
            self.held, self.assigned = [], -(-state["dealt"] * world // self.world) + len(state["held"])
