"""Rows with blanks to fill in, from shards: what a model that answers all at once is trained on.

A row is one document, or a window of a long one. Of a puzzle the answer is blank (`puzzle_answers`); of other text random
spans are (Raffel et al. 2019, arXiv 1910.10683, section 3.3.4, but each token keeps its position). What is blank
is the label; the rest has none. `<scratchpad>` stands for a blank: it is an id that no text encodes to, and marks a
position to be filled in.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ikirere.errors import UserError
from ikirere.tokenizer.specials import PAD, SCRATCHPAD
from ikirere.tokens.batch import IGNORE
from ikirere.tokens.loader import PhaseLike
from ikirere.tokens.mixture import Schedule
from ikirere.tokens.permutation import keyed, permuted
from ikirere.tokens.puzzle_answers import find_answer
from ikirere.tokens.shards import Shard

BLANK = SCRATCHPAD
LEAST, MOST = 0.15, 0.30  # share of a text's tokens that is blank, drawn for each row
SPAN = 3  # mean tokens of a blank span
_SPANS = 2  # distinguishes draws of spans from others of the same numbers


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    @property
    def eos(self) -> int: ...
    def id(self, special: str) -> int: ...
    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...


@dataclass(frozen=True)
class Example:
    """One row: tokens, labels (-100 without loss) and document_ids (-1 on padding; None without) int64 [T]; puzzle: its
    row of the table of puzzle embeddings, where there is one."""

    tokens: Tensor
    labels: Tensor
    document_ids: Tensor | None = None
    puzzle: int | None = None


class SpanMasker:
    """Makes rows out of documents' tokens."""

    def __init__(self, tokenizer: Decoder) -> None:
        self.tokenizer = tokenizer
        self.blank, self.pad, self.eos = tokenizer.id(BLANK), tokenizer.id(PAD), tokenizer.eos

    def answer(self, document: np.ndarray, length: int) -> Example | None:
        """The row of a puzzle, with its answer blank; None where no form knows it or question and answer do not fit.

        document: tokens with the closing <eos>, which is a part of the answer. Blanks continue to the end of the row, so
        that their number does not give the answer's length away; after <eos> nothing is asked.
        """
        ids = document.tolist()
        text = self.tokenizer.decode_bytes(ids).decode("latin-1")  # a character per byte
        found = find_answer(text)
        if found is None:
            return None
        start = self._first(ids, found.start)
        hidden = np.zeros(len(ids), dtype=bool)
        for first, last in found.left_out:
            hidden[self._first(ids, first) : self._first(ids, last)] = True
        free = length - (len(ids) - start)
        for begin in found.begins:
            shown = np.arange(self._first(ids, begin), start)
            shown = shown[~hidden[shown]]
            if len(shown) <= free:
                break
        else:
            return None
        tokens = np.full(length, self.blank, dtype=np.int64)
        labels = np.full(length, IGNORE, dtype=np.int64)
        tokens[: len(shown)] = document[shown]
        labels[len(shown) : len(shown) + len(ids) - start] = document[start:]
        return Example(torch.from_numpy(tokens), torch.from_numpy(labels))

    def _first(self, ids: list[int], offset: int) -> int:
        """Index of the first token with a byte at or after `offset`; one that spans the offset counts."""
        return bisect_right(
            range(len(ids)), offset, key=lambda n: len(self.tokenizer.decode_bytes(ids[: n + 1]))
        )

    def spans(self, window: np.ndarray, length: int, draw: np.random.Generator) -> Example:
        """The row of a text's window (at most `length` tokens), with random spans blank, then padding."""
        count = len(window)
        tokens = np.full(length, self.pad, dtype=np.int64)
        labels = np.full(length, IGNORE, dtype=np.int64)
        blank = np.flatnonzero(random_spans(count, draw))
        tokens[:count] = window
        labels[blank] = tokens[blank]
        tokens[blank] = self.blank
        ids = None
        if count < length:
            ids = torch.zeros(length, dtype=torch.long)
            ids[count:] = -1
        return Example(torch.from_numpy(tokens), torch.from_numpy(labels), ids)

    def all_of(self, document: np.ndarray, answers: bool, length: int, seed: Sequence[int]) -> list[Example]:
        """Every row of a document, for measuring: its answer, or its windows one after the other."""
        if answers and (row := self.answer(document, length)) is not None:
            return [row]
        parts = range(0, len(document), length)
        return [
            self.spans(document[at : at + length], length, np.random.default_rng([*seed, at])) for at in parts
        ]


def random_spans(count: int, draw: np.random.Generator) -> np.ndarray:
    """Which of `count` positions are blank: bool [count]. 15 to 30% (at least one), in spans of 3 on average that do not
    touch."""
    blanks = min(max(1, round(count * draw.uniform(LEAST, MOST))), count)
    spans = min(max(1, round(blanks / SPAN)), count - blanks + 1)
    sizes = np.diff(np.sort(draw.choice(blanks - 1, spans - 1, replace=False)) + 1, prepend=0, append=blanks)
    free = count - blanks - (spans - 1)  # one position at least between two spans
    gaps = np.diff(np.sort(draw.integers(0, free + 1, spans)), prepend=0)
    gaps[1:] += 1
    ends = np.cumsum(gaps + sizes)
    chosen = np.zeros(count, dtype=bool)
    for end, size in zip(ends.tolist(), sizes.tolist()):
        chosen[end - size : end] = True
    return chosen


class _Domain:
    """The rows that a domain gives at one length: a row per puzzle, a row per window of other documents."""

    def __init__(self, name: str, shard: Shard, length: int, answers: bool) -> None:
        self.name, self.shard, self.length, self.answers = name, shard, length, answers
        windows = np.ones(len(shard), np.int64) if answers else -(-shard.lengths // length)
        self.ends = np.cumsum(windows)
        self.key = zlib.crc32(name.encode())

    def row(self, ordinal: int, phase: int, seed: int, blanks: SpanMasker) -> Example:
        """The ordinal-th row of a phase; each epoch has an order of its own."""
        epoch, index = divmod(ordinal, int(self.ends[-1]))
        secret = keyed(abs(seed), phase, self.key, epoch)
        at = int(permuted(np.array([index]), self.ends[-1:], secret)[0])
        document = int(np.searchsorted(self.ends, at, side="right"))
        tokens = self.shard.tokens(document)
        if self.answers and (row := blanks.answer(tokens, self.length)) is not None:
            return row
        first = at - (int(self.ends[document - 1]) if document else 0)
        draw = np.random.default_rng([abs(seed), _SPANS, phase, self.key, ordinal])
        if self.answers:  # too long or of no known form: any window, read as text
            first = int(draw.integers(-(-len(tokens) // self.length)))
        return blanks.spans(tokens[first * self.length : (first + 1) * self.length], self.length, draw)


class InfillDataset:
    """Examples for `train.recursion.CarriedRows`: a function of shards, phases, seed, phase and number.

    `mixture.Schedule` assigns a domain to each row; a phase visits a domain's rows in a random order, each once per epoch.
    answers: domains of puzzles. Raises UserError for a mixture without shards.
    """

    def __init__(
        self,
        shards: Mapping[str, Shard],
        phases: Sequence[PhaseLike],
        seed: int,
        tokenizer: Decoder,
        answers: Iterable[str] = (),
    ) -> None:
        self.seed, self.blanks = seed, SpanMasker(tokenizer)
        self.answers = frozenset(answers)
        self.parts = [self._prepare(i, phase, shards) for i, phase in enumerate(phases)]
        self._shape = [[p.sequence_length, sorted(p.mixture.items())] for p in phases]
        self._shards = shards

    def fingerprint(self, begun: int) -> str:
        """Of all that the rows of the first `begun` phases depend on."""
        text = json.dumps([self.seed, self._shape[:begun], sorted(self.answers)])
        digest = hashlib.sha256(text.encode())
        for domain in sorted(self._shards):
            digest.update(domain.encode() + np.ascontiguousarray(self._shards[domain].offsets).tobytes())
        return digest.hexdigest()

    def _prepare(
        self, index: int, phase: PhaseLike, shards: Mapping[str, Shard]
    ) -> tuple[list[_Domain], Schedule]:
        key = f"pretrain.phases.{index}.mixture"
        weights = {domain: w for domain, w in sorted(phase.mixture.items()) if w > 0}
        known = ", ".join(sorted(shards)) or "none"
        if not weights:
            raise UserError(f"{key}: no domain has a weight above 0; domains are {known}")
        for domain in weights:
            if domain not in shards or not shards[domain].total_tokens:
                raise UserError(f"{key}.{domain}: no training tokens; domains are {known}")
        length = phase.sequence_length
        domains = [_Domain(name, shards[name], length, name in self.answers) for name in weights]
        return domains, Schedule(list(weights.values()))

    def example(self, phase: int, number: int) -> Example:
        """The phase's row of that number, 0, 1, 2, ..."""
        domains, schedule = self.parts[phase]
        domain, ordinal = (int(part[0]) for part in schedule.rows(number, number + 1))
        return domains[domain].row(ordinal, phase, self.seed, self.blanks)
