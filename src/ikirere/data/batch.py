"""What every training objective is fed: one step's rows of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

IGNORE = -100  # label of a place without loss, as in torch.nn.functional.cross_entropy


@dataclass
class Batch:
    """B rows of T tokens. All integer tensors are int64 of shape [B, T].

    labels: the next token of the same document at each place, -100 where there is none or no loss is wanted.
    positions: place within the document, from 0 at its first token in the row.
    document_ids: which document of the row a token is in, from 0 per row, -1 on padding; None where each row
        is one document without padding, so that attention needs no mask but the causal one.
    extras: further tensors of an objective (reference log-probabilities, pair ids), first dimension B.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    document_ids: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tokens_used(self) -> int:
        """Places that carry loss."""
        return int((self.labels != IGNORE).sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.tokens.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.positions.to(device, non_blocking=non_blocking),
            None if self.document_ids is None else self.document_ids.to(device, non_blocking=non_blocking),
            {name: value.to(device, non_blocking=non_blocking) for name, value in self.extras.items()},
        )

    def split(self, rows: int) -> Iterator[Batch]:
        """Micro-batches of at most `rows` rows, in order; views, no copies."""
        for start in range(0, len(self.tokens), rows):
            part = slice(start, start + rows)
            yield Batch(
                self.tokens[part],
                self.labels[part],
                self.positions[part],
                None if self.document_ids is None else self.document_ids[part],
                {name: value[part] for name, value in self.extras.items()},
            )
