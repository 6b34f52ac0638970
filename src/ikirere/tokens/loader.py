"""Packed batches from shards: deterministic, mixed by weight, exact to resume on any number of ranks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from ikirere.errors import UserError
from ikirere.tokens.batch import IGNORE, Batch
from ikirere.tokens.mixture import Schedule
from ikirere.tokens.packing import BestFit
from ikirere.tokens.shards import Shard
from ikirere.tokens.stream import Concatenated, Cut, DocumentStream, Leftover, LruCache

CUTS: dict[str, Callable[[DocumentStream, int, int, int, int], Cut]] = {
    "concatenate": Concatenated,
    "best-fit": BestFit,
}
FULL = 0.99  # share of positions with tokens below which a note is made
AHEAD = 1 << 22  # positions located at once: finding one row costs about as much as finding many


class Stretch(Protocol):
    """A number of steps with rows of one length (tokens); batch_size: rows per step over all ranks."""

    @property
    def steps(self) -> int: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


class PhaseLike(Stretch, Protocol):
    """What is read of a phase; `recipe.sections.Phase` is one."""

    @property
    def mixture(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class LoaderPhase:
    """A phase outside a recipe. `long_fraction` as in `recipe.sections.Phase`.

    layout: numbers of steps, one after another, whose rows are laid out together; None: all steps of the phase. Which
    rows a step gets depends on the layout, so a phase that was cut short or extended keeps the one it began with: a sum
    above `steps` leaves rows over for a later phase of the same sequence length.
    """

    steps: int
    sequence_length: int
    batch_size: int
    mixture: Mapping[str, float] = field(default_factory=dict)
    long_fraction: float | None = None
    layout: tuple[int, ...] | None = None


@dataclass
class _Part:
    """A layout of a phase, prepared: how its streams are cut and which rank gets which row."""

    first_step: int
    steps: int
    length: int
    batch: int
    cuts: list[Cut]
    schedule: Schedule
    shape: list[Any]  # of all that its rows depend on but shards, seed and packing


@dataclass
class _Located:
    """The pieces of some steps' rows of one rank in order; arrays are [n] but for `first` [rows + 1]."""

    data: list[np.ndarray]  # tokens of each stream, and zeros for padding
    first: np.ndarray  # piece that each row begins with
    stream: np.ndarray  # index in `data`
    source: np.ndarray
    length: np.ndarray
    number: np.ndarray  # document in its row, -1 for padding
    after: np.ndarray  # label of the piece's last position
    counting: np.ndarray  # 0, 1, 2, ... as long as a row


class PackedLoader:
    """Iterates one `Batch` per optimiser step: this rank's rows of the global batch.

    packing "concatenate": documents lie back to back in one endless stream per domain, reshuffled every
    epoch, and rows are cut from it end to end: no padding, nothing dropped, neither at row ends nor at epoch
    ends nor between phases (the last row of an epoch continues into the next). A token's label is the next
    token of its document even where the row ends between the two; the last token of a document has none.
    packing "best-fit": rows of whole documents, see `packing.BestFit`; labels and guarantees are the same,
    but that rows may end in padding (token 0, label -100, document -1). Rows are all of one length, so the
    mixture's weights hold for rows; for tokens as far as the domains' rows are equally full.
    The batch is a pure function of (shards, phases, packing, seed, step), so the state is the step, and the
    number of ranks may change at a resume. Phases that begin after that step may change too.
    `long_fraction` takes its share of each domain's rows from documents longer than a quarter of the sequence
    length, in streams of their own: such a phase has its own epochs, separate from those of the other phases.

    shards: by domain. phases: in order. rank, world: this rank and how many there are; batch sizes must
    divide.
    full: share of the positions of all batches that hold tokens. notes: lines for the user, such as unmet settings.
    Raises UserError for a mixture without shards, a batch size that does not divide and an unknown packing.
    """

    def __init__(
        self,
        shards: Mapping[str, Shard],
        phases: Sequence[PhaseLike],
        seed: int,
        rank: int = 0,
        world: int = 1,
        packing: str = "concatenate",
    ) -> None:
        if packing not in CUTS:
            raise UserError(f"pretrain.packing: {packing!r} is not known; give one of {', '.join(CUTS)}")
        self.rank, self.world = rank, world
        self.step = 0
        self.notes: list[str] = []
        self._shards, self._seed, self._packing = shards, seed, packing
        self._streams: dict[str, DocumentStream] = {}
        self._parts: list[_Part] = []
        self._recent = LruCache(2)
        self._positions = self._filled = 0
        self._used: dict[str, int] = {}  # of each stream, the position at which the next cut begins
        # Rows that are left over, by stream and length: the cut, and its first row that is not used.
        self._left: dict[tuple[str, int], tuple[Cut, int]] = {}
        self.steps = 0
        for index, phase in enumerate(phases):
            self._prepare(index, phase)
        self.phases = list(phases)

    # ------------------------------------------------------------ preparation

    def _prepare(self, index: int, phase: PhaseLike) -> None:
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
        left = phase.steps
        for planned in getattr(phase, "layout", None) or (phase.steps,):
            if left:
                steps = min(planned, left)
                left -= steps
                self._lay_out(key, phase, Schedule(shares), streams, planned, steps)

    def _lay_out(
        self, key: str, phase: PhaseLike, schedule: Schedule, streams: list[str], planned: int, steps: int
    ) -> None:
        """Adds the part whose rows are those of `planned` steps, of which `steps` are made."""
        length, batch, first = phase.sequence_length, phase.batch_size, self.steps
        counts, made = (schedule.counts(n * batch).tolist() for n in (planned, steps))
        cuts = []
        for name, count, taken in zip(streams, counts, made):
            over, begin = self._left.pop((name, length), (None, 0))
            base = self._used.get(name, 0)
            fresh = max(0, count - (over.count - begin)) if over else count
            cut: Cut = CUTS[self._packing](self._streams[name], base, length, fresh, first)
            self._used[name] = cut.end
            positions, filled = fresh * length, cut.end - base
            self._positions, self._filled = self._positions + positions, self._filled + filled
            if filled < FULL * positions:
                full = filled / positions
                self.notes.append(
                    f"{key}: {self._packing} rows of {name} are {full:.1%} full, the rest is padding"
                )
            cut = Leftover(over, begin, cut) if over else cut
            cuts.append(cut)
            if taken < cut.count:
                self._left[name, length] = cut, taken
        long = getattr(phase, "long_fraction", None)
        shape = [planned, length, batch, sorted(phase.mixture.items()), long]
        self._parts.append(_Part(first, steps, length, batch, cuts, schedule, shape))
        self.steps += steps

    @property
    def full(self) -> float:
        """Share of the positions of all batches, of all ranks, that hold tokens; the rest is padding."""
        return self._filled / self._positions if self._positions else 1.0

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

    def fingerprint(self, step: int) -> str:
        """Of all that the batches of the first `step` steps depend on."""
        shape = [
            [min(part.steps, step - part.first_step), *part.shape]
            for part in self._parts
            if part.first_step < step
        ]
        text = json.dumps([self._seed, self._packing, shape, self._shards_digest])
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _shards_digest(self) -> str:
        digest = hashlib.sha256()
        self._add_shards(digest)
        return digest.hexdigest()

    def _add_shards(self, digest: hashlib._Hash) -> None:
        for domain in sorted(self._shards):
            digest.update(domain.encode() + np.ascontiguousarray(self._shards[domain].offsets).tobytes())

    def _whole_fingerprint(self) -> str:
        """Of the whole sequence of batches, which a state may hold instead of that up to its step."""
        shape = [
            [
                p.steps,
                p.sequence_length,
                p.batch_size,
                sorted(p.mixture.items()),
                getattr(p, "long_fraction", None),
            ]
            for p in self.phases
        ]
        digest = hashlib.sha256(json.dumps([self._seed, shape]).encode())
        if self._packing != "concatenate":
            digest.update(self._packing.encode())
        self._add_shards(digest)
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
        """This rank's rows of a step's global batch; the position stays as it is."""
        number = next(i for i in reversed(range(len(self._parts))) if self._parts[i].first_step <= step)
        part = self._parts[number]
        size = part.batch // self.world
        steps = max(1, AHEAD // (size * part.length))
        stretch, row = divmod(step - part.first_step, steps)
        found = self._recent.get(
            (number, stretch),
            lambda: self._locate(part, stretch * steps, min((stretch + 1) * steps, part.steps)),
        )
        low, high = found.first[row * size], found.first[(row + 1) * size]
        return _assembled(found, int(low), int(high), (size, part.length))

    def _locate(self, part: _Part, first: int, last: int) -> _Located:
        """Finds this rank's rows of the phase's steps first..last-1."""
        size = part.batch // self.world
        domain, ordinal = part.schedule.rows(first * part.batch, last * part.batch)
        mine = np.arange(len(domain)) // size % self.world == self.rank
        domain, ordinal = domain[mine], ordinal[mine]
        columns: list[tuple[np.ndarray, ...]] = []
        for i, cut in enumerate(part.cuts):
            if not (here := np.flatnonzero(domain == i)).size:
                continue
            pieces = cut.pieces(ordinal[here])
            real = pieces.source >= 0
            after = np.full(len(real), IGNORE, dtype=np.int64)
            nexts = (pieces.source + pieces.length)[pieces.continues]
            after[pieces.continues] = cut.stream.shard.data[nexts]
            stream = np.where(real, i, len(part.cuts))
            source = np.where(real, pieces.source, 0)
            columns.append((here[pieces.row], stream, source, pieces.length, after))
        row, *rest = (np.concatenate(column) for column in zip(*columns))
        # Within one stream the pieces of a row are already in order, which a stable sort keeps; 16 bits sort in linear time.
        order = np.argsort(row.astype(np.uint16) if len(domain) <= 1 << 16 else row, kind="stable")
        order = order[rest[2][order] > 0]  # a document without a token has no piece
        row, stream, source, length, after = row[order], *(column[order] for column in rest)
        starts = np.searchsorted(row, np.arange(len(domain) + 1))
        number = np.arange(len(row)) - starts[row]
        number[stream == len(part.cuts)] = -1
        data = [cut.stream.shard.data for cut in part.cuts]
        data.append(np.zeros(part.length, dtype=data[0].dtype))
        return _Located(data, starts, stream, source, length, number, after, np.arange(part.length))

    # ------------------------------------------------------------ resuming

    def seek(self, step: int) -> None:
        """Makes `step` the next one, in constant time. Raises ValueError outside 0..steps."""
        if not 0 <= step <= self.steps:
            raise ValueError(f"step {step} is outside 0..{self.steps}")
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        """Step and fingerprint of the batches before it, JSON-able."""
        return {"step": self.step, "fingerprint": self.fingerprint(self.step)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a state. Raises UserError where shards, seed or the phases up to its step are not those of the
        state."""
        step = int(state["step"])
        if step > self.steps or state["fingerprint"] not in (
            self.fingerprint(step),
            self._whole_fingerprint(),
        ):
            raise UserError(
                "data position of the checkpoint belongs to other shards, phases or another seed; "
                "start this stage anew or restore what was changed"
            )
        self.seek(step)


def _assembled(found: _Located, low: int, high: int, shape: tuple[int, int]) -> Batch:
    """The batch of the pieces low..high-1."""
    data, here = found.data, slice(low, high)
    length, number = found.length[here], found.number[here]
    bounds = np.zeros(high - low + 1, dtype=np.int32)
    np.cumsum(length, out=bounds[1:])
    # One allocation for all three: many C libraries return several to the system, and each page faults again.
    tokens, labels, positions = np.empty((3, shape[0] * shape[1]), dtype=np.int64)
    source = found.source[here]
    ranges = zip(found.stream[here].tolist(), source.tolist(), (source + length).tolist())
    np.concatenate([data[i][start:stop] for i, start, stop in ranges], out=tokens)
    labels[:-1] = tokens[1:]
    labels[bounds[1:] - 1] = found.after[here]
    padding = np.flatnonzero(number < 0)
    for i in padding.tolist():
        labels[bounds[i] : bounds[i + 1]] = IGNORE
    np.concatenate([found.counting[:n] for n in length.tolist()], out=positions)
    ids = None
    if len(padding) or high - low > shape[0]:
        ids = torch.from_numpy(np.repeat(number, length).reshape(shape))
    return Batch(
        torch.from_numpy(tokens.reshape(shape)),
        torch.from_numpy(labels.reshape(shape)),
        torch.from_numpy(positions.reshape(shape)),
        ids,
        bounds=(torch.from_numpy(bounds), int(length.max())),
    )
