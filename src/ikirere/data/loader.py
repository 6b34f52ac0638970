"""Packed batches from shards: deterministic, mixed by weight, exact to resume on any number of ranks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ikirere.data.batch import IGNORE, Batch
from ikirere.data.mixture import Schedule
from ikirere.data.shards import Shard
from ikirere.data.stream import DocumentStream
from ikirere.errors import UserError


class PhaseLike(Protocol):
    """What is read of a phase; `recipe.sections.Phase` is one."""

    @property
    def steps(self) -> int: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def mixture(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class LoaderPhase:
    """A phase outside a recipe. `long_fraction` as in `recipe.sections.Phase`."""

    steps: int
    sequence_length: int
    batch_size: int
    mixture: Mapping[str, float] = field(default_factory=dict)
    long_fraction: float | None = None


@dataclass
class _Part:
    """One phase made ready: where its streams start and who gets which row."""

    first_step: int
    steps: int
    length: int
    batch: int
    streams: list[DocumentStream]
    schedule: Schedule
    bases: list[int]
    counts: np.ndarray


class PackedLoader:
    """Iterates one `Batch` per optimiser step: this rank's rows of the global batch.

    Documents lie back to back in one endless stream per domain, reshuffled every epoch, and rows are cut from it
    end to end: no padding, nothing dropped, neither at row ends nor at epoch ends nor between phases (the last
    row of an epoch goes on into the next). A token's label is the next token of its document even where the row
    ends between the two; the last token of a document (<eos>) has none.
    The batch is a pure function of (shards, phases, seed, step), so the state is the step, and the number of
    ranks may change at a resume.
    `long_fraction` deals its share of each domain's rows from documents longer than a quarter of the sequence
    length, in streams of their own: such a phase starts its own epochs, apart from those of the other phases.

    shards: by domain. phases: in order. rank, world: this rank and how many there are; batch sizes must divide.
    Raises UserError for a mixture without shards and a batch size that does not divide.
    """

    def __init__(
        self,
        shards: Mapping[str, Shard],
        phases: Sequence[PhaseLike],
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.rank, self.world = rank, world
        self.step = 0
        self.notes: list[str] = []  # lines for the user: where a wish could not be met
        self._shards, self._seed = shards, seed
        self._streams: dict[str, DocumentStream] = {}
        self._parts: list[_Part] = []
        used: dict[str, int] = {}
        for index, phase in enumerate(phases):
            self._parts.append(self._prepare(index, phase, used))
        self.steps = sum(phase.steps for phase in phases)
        self.fingerprint = self._fingerprint(phases)

    # ------------------------------------------------------------ making ready

    def _prepare(self, index: int, phase: PhaseLike, used: dict[str, int]) -> _Part:
        key = f"pretrain.phases.{index}"
        if phase.batch_size % self.world:
            raise UserError(
                f"{key}.batch_size: {phase.batch_size} is not divisible by the {self.world} ranks"
            )
        weights = {domain: w for domain, w in phase.mixture.items() if w > 0}
        if not weights:
            raise UserError(f"{key}.mixture: no domain has a weight above 0; domains are {self._known()}")
        for domain in weights:
            if domain not in self._shards or not self._shards[domain].total_tokens:
                raise UserError(f"{key}.mixture.{domain}: no training tokens; domains are {self._known()}")
        streams, shares = self._split_long(key, phase, weights)
        schedule = Schedule(shares)
        counts = schedule.counts(phase.steps * phase.batch_size)
        bases = [used.get(name, 0) for name in streams]
        for name, base, count in zip(streams, bases, counts):
            used[name] = base + int(count) * phase.sequence_length
        first = self._parts[-1].first_step + self._parts[-1].steps if self._parts else 0
        return _Part(
            first,
            phase.steps,
            phase.sequence_length,
            phase.batch_size,
            [self._streams[name] for name in streams],
            schedule,
            bases,
            counts,
        )

    def _known(self) -> str:
        return ", ".join(sorted(self._shards)) or "none"

    def _split_long(
        self, key: str, phase: PhaseLike, weights: Mapping[str, float]
    ) -> tuple[list[str], list[float]]:
        """Names of the streams that a phase draws from, and their shares."""
        fraction: float | None = getattr(phase, "long_fraction", None)
        shares: dict[str, float] = {}
        for domain in sorted(weights):
            shard = self._shards[domain]
            parts: dict[str, tuple[float, np.ndarray | None]] = {domain: (1.0, None)}
            if fraction is not None:
                limit = phase.sequence_length // 4
                long = shard.lengths > limit
                halves = {f"{domain}>{limit}": (fraction, long), f"{domain}<={limit}": (1 - fraction, ~long)}
                halves = {name: half for name, half in halves.items() if half[0] > 0}
                empty = [name for name, (_, chosen) in halves.items() if not chosen.any()]
                if empty:
                    self.notes.append(f"{key}.long_fraction: no documents {empty[0]} tokens, others fill in")
                parts = {
                    name: (1.0 if empty else share, np.flatnonzero(chosen))
                    for name, (share, chosen) in halves.items()
                    if name not in empty
                } or parts
            for name, (share, documents) in parts.items():
                if name not in self._streams:
                    self._streams[name] = DocumentStream(shard, name, self._seed, documents)
                shares[name] = weights[domain] * share
        return list(shares), list(shares.values())

    def _fingerprint(self, phases: Sequence[PhaseLike]) -> str:
        """Of all that the sequence of batches depends on."""
        shape = [
            [
                p.steps,
                p.sequence_length,
                p.batch_size,
                sorted(p.mixture.items()),
                getattr(p, "long_fraction", None),
            ]
            for p in phases
        ]
        digest = hashlib.sha256(json.dumps([self._seed, shape]).encode())
        for domain in sorted(self._shards):
            digest.update(domain.encode() + np.ascontiguousarray(self._shards[domain].offsets).tobytes())
        return digest.hexdigest()

    # ------------------------------------------------------------ reading

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.step >= self.steps:
            raise StopIteration
        batch = self.at(self.step)
        self.step += 1
        return batch

    def next(self) -> Batch:
        """The next step's batch. Raises StopIteration after the last phase."""
        return self.__next__()

    def at(self, step: int) -> Batch:
        """This rank's rows of a step's global batch, without moving."""
        part = next(p for p in reversed(self._parts) if p.first_step <= step)
        size = part.batch // self.world
        row = (step - part.first_step) * part.batch + self.rank * size
        domain, ordinal = part.schedule.rows(row, row + size)
        n = part.length + 1  # one more, for the label of the last place
        tokens, document, position = (np.empty((size, n), dtype=np.int64) for _ in range(3))
        for i, stream in enumerate(part.streams):
            if not (here := np.flatnonzero(domain == i)).size:
                continue
            starts = stream.shuffled(
                ordinal[here], part.bases[i], part.length, int(part.counts[i]), part.first_step
            )
            rows = stream.read(starts, n)
            tokens[here], document[here], position[here] = rows.tokens, rows.document, rows.position
        labels = np.where(document[:, 1:] == document[:, :-1], tokens[:, 1:], IGNORE)
        document = document[:, :-1]
        return Batch(
            torch.from_numpy(np.ascontiguousarray(tokens[:, :-1])),
            torch.from_numpy(labels),
            torch.from_numpy(np.ascontiguousarray(position[:, :-1])),
            torch.from_numpy(np.ascontiguousarray(document)) if document[:, -1].any() else None,
        )

    # ------------------------------------------------------------ resuming

    def seek(self, step: int) -> None:
        """Make `step` the next one. Costs nothing."""
        if not 0 <= step <= self.steps:
            raise ValueError(f"step {step} is outside 0..{self.steps}")
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises UserError where shards, phases or seed are not those of the state."""
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                "data position of the checkpoint belongs to other shards, phases or another seed; "
                "start this stage anew or restore what was changed"
            )
        self.seek(int(state["step"]))
