"""Supervised fine-tuning: conversations packed into rows, loss on what the assistant wrote.

The objective is the pretraining loss itself (`train.objective.CrossEntropy`) on labels that the mask leaves.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ikirere.errors import UserError
from ikirere.posttrain.rows import Encoded
from ikirere.tokens.batch import IGNORE, Batch


def pack(lengths: Sequence[int], capacity: int, order: Sequence[int]) -> list[list[int]]:
    """Groups of indices whose lengths add up to at most `capacity`: best-fit decreasing.

    Longest first (equal ones in `order`), each into the fullest group that still takes it (Johnson 1974: at
    most 11/9 of the fewest possible groups). Every index is in one group. Lengths must not exceed capacity.
    """
    groups: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0  # bit s is set where a group with s free places exists
    for index in sorted(order, key=lambda i: -lengths[i]):
        length = lengths[index]
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            group = by_space[space].pop()
            if not by_space[space]:
                spaces &= ~(1 << space)
        else:
            space, group = capacity, len(groups)
            groups.append([])
        groups[group].append(index)
        by_space[space - length].append(group)
        spaces |= 1 << (space - length)
    return groups


class SftSource:
    """Batches of packed conversations, without end.

    Every conversation comes once per epoch; each epoch is packed and shuffled anew from (seed, epoch), and a
    batch that an epoch does not fill takes the first rows of the next. Conversations in a row do not see each
    other (`document_ids`, positions from 0). The state is the number of packed rows dealt so far, exact.

    sequence_length in tokens; batch_size in packed rows over all ranks; rank, world: this rank and how many there
    are. Raises UserError for a batch that does not divide.
    """

    def __init__(
        self,
        rows: Sequence[Encoded],
        sequence_length: int,
        batch_size: int,
        pad: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise UserError(f"sft.batch_size: {batch_size} is not divisible by the {world} ranks")
        self.rows = rows
        self.share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.pad = pad
        self.seed = seed
        self.lengths = [row.places for row in rows]
        self.epoch = 0
        self.place = 0
        self._groups = self._packed(0)
        self.fingerprint = self._fingerprint()

    def _fingerprint(self) -> str:
        """Of all that the sequence of batches depends on."""
        digest = hashlib.sha256(f"{self.sequence_length} {self.batch_size} {self.pad} {self.seed}".encode())
        for row in self.rows:
            digest.update(row.ids.tobytes() + row.trained.tobytes())
        return digest.hexdigest()

    def _packed(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"sft/{self.seed}/{epoch}")
        order = list(range(len(self.rows)))
        rng.shuffle(order)
        groups = pack(self.lengths, self.sequence_length, order)
        rng.shuffle(groups)
        return groups

    def _group(self) -> list[int]:
        if self.place >= len(self._groups):
            self.epoch, self.place = self.epoch + 1, 0
            self._groups = self._packed(self.epoch)
        self.place += 1
        return self._groups[self.place - 1]

    def next(self) -> Batch:
        """This rank's rows of the next batch, [batch_size / world, sequence_length]."""
        groups = [self._group() for _ in range(self.batch_size)][self.share]
        return collate([[self.rows[i] for i in group] for group in groups], self.sequence_length, self.pad)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "place": self.place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.place = int(state["epoch"]), int(state["place"])
        self._groups = self._packed(self.epoch)


def collate(groups: Sequence[Sequence[Encoded]], length: int, pad: int) -> Batch:
    """One row of `length` places per group, its conversations one after another, padded at the end."""
    shape = (len(groups), length)
    tokens = np.full(shape, pad, np.int64)
    labels = np.full(shape, IGNORE, np.int64)
    positions = np.zeros(shape, np.int64)
    documents = np.full(shape, -1, np.int64)
    for line, group in enumerate(groups):
        start = 0
        for number, row in enumerate(group):
            end = start + row.places
            tokens[line, start:end] = row.ids[:-1]
            labels[line, start:end] = np.where(row.trained[1:], row.ids[1:], IGNORE)
            positions[line, start:end] = np.arange(row.places)
            documents[line, start:end] = number
            start = end
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(labels),
        torch.from_numpy(positions),
        torch.from_numpy(documents),
    )
