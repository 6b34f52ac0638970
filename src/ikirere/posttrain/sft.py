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
from ikirere.posttrain.checks import check_batch
from ikirere.posttrain.rows import Encoded
from ikirere.tokens.batch import IGNORE, Batch
from ikirere.tokens.packing import best_fit


def pack(lengths: Sequence[int], capacity: int, order: Sequence[int]) -> list[list[int]]:
    """Groups of indices whose lengths add up to at most `capacity`: `tokens.packing.best_fit`, with the indices of
    equal lengths taken in `order`. Every index is in one group. Lengths are within 1..capacity."""
    by_length: dict[int, list[int]] = {}
    for index in order:
        by_length.setdefault(lengths[index], []).append(index)
    classes = sorted(by_length, reverse=True)
    layout = best_fit(classes, [len(by_length[length]) for length in classes], capacity)
    groups: list[list[int]] = []
    for number, rows in enumerate(layout.rows.tolist()):
        entries = slice(layout.first_entry[number], layout.first_entry[number + 1])
        parts = [
            (by_length[classes[kind]], each, base)
            for kind, each, base in zip(
                layout.kind[entries].tolist(), layout.each[entries].tolist(), layout.base[entries].tolist()
            )
        ]
        for row in range(rows):
            groups.append(
                [i for same, each, base in parts for i in same[base + row * each : base + (row + 1) * each]]
            )
    return groups


class SftSource:
    """Batches of packed conversations, without end.

    Every conversation comes once per epoch; each epoch is packed and shuffled from (seed, epoch), and a
    batch that an epoch does not fill takes the first rows of the next. Conversations in a row do not see each
    other (`document_ids`, positions from 0). The state is the exact number of packed rows returned so far and the hash
    of the conversations: a state of other conversations, lengths or seeds is refused, one of another batch size is not.

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
        check_batch("sft", batch_size, world)
        self.rows = rows
        self.share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.pad = pad
        self.seed = seed
        self.lengths = [row.length for row in rows]
        self.epoch = 0
        self.position = 0
        self._groups = self._packed(0)
        self.fingerprint = self._fingerprint()

    def _fingerprint(self) -> str:
        """Hash of all that the sequence of packed rows depends on."""
        digest = hashlib.sha256(f"{self.sequence_length} {self.pad} {self.seed}".encode())
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
        if self.position >= len(self._groups):
            self.epoch, self.position = self.epoch + 1, 0
            self._groups = self._packed(self.epoch)
        self.position += 1
        return self._groups[self.position - 1]

    def next(self) -> Batch:
        """This rank's rows of the next batch, [batch_size / world, sequence_length]."""
        groups = [self._group() for _ in range(self.batch_size)][self.share]
        return collate([[self.rows[i] for i in group] for group in groups], self.sequence_length, self.pad)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "rows": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["rows"] != self.fingerprint:
            raise UserError(
                "sft: the checkpoint was trained on other conversations (sft.rows, mixture, rows_files, sequence_length "
                "or seed changed); it cannot be continued with these"
            )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._groups = self._packed(self.epoch)


def collate(groups: Sequence[Sequence[Encoded]], length: int, pad: int) -> Batch:
    """One row of `length` positions per group, its conversations one after another, padded at the end."""
    shape = (len(groups), length)
    tokens = np.full(shape, pad, np.int64)
    labels = np.full(shape, IGNORE, np.int64)
    positions = np.zeros(shape, np.int64)
    documents = np.full(shape, -1, np.int64)
    for line, group in enumerate(groups):
        start = 0
        for number, row in enumerate(group):
            end = start + row.length
            tokens[line, start:end] = row.ids[:-1]
            labels[line, start:end] = np.where(row.trained[1:], row.ids[1:], IGNORE)
            positions[line, start:end] = np.arange(row.length)
            documents[line, start:end] = number
            start = end
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(labels),
        torch.from_numpy(positions),
        torch.from_numpy(documents),
    )
