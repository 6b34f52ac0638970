"""The input of every training objective: one step's rows of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

IGNORE = -100  # label of a position without loss, as in torch.nn.functional.cross_entropy


@dataclass
class Batch:
    """B rows of T tokens. All integer tensors are int64 of shape [B, T].

    labels: the next token of the same document at each position, -100 where there is none or no loss is wanted.
    positions: index within the document, from 0 at its first token in the row; on padding without meaning.
    document_ids: which document of the row a token is in, from 0 per row, -1 on padding; None where each row
        is one document without padding, so that attention needs no mask but the causal one.
    extras: further tensors of an objective (reference log-probabilities, pair ids), first dimension B.
    bounds: `cu_seqlens` and `max_seqlen` where they are known; else made from document_ids when asked for.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    document_ids: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    bounds: tuple[Tensor, int] | None = field(default=None, repr=False)

    @property
    def cu_seqlens(self) -> Tensor:
        """Where documents begin and end in the flattened [B * T] positions: int32 [n + 1], from 0 to B * T.

        The form that kernels for sequences of varying length (flash-attention's `varlen`) take. A document's part in
        one row is one segment, and so is the padding at a row's end, so that every position is in a segment.
        """
        return self._known_bounds()[0]

    @property
    def max_seqlen(self) -> int:
        """Positions in the longest segment of `cu_seqlens`."""
        return self._known_bounds()[1]

    def _known_bounds(self) -> tuple[Tensor, int]:
        if self.bounds is None:
            rows, length = self.tokens.shape
            begins = torch.zeros(rows, length, dtype=torch.bool, device=self.tokens.device)
            begins[:, 0] = True
            if self.document_ids is not None:
                begins[:, 1:] = self.document_ids[:, 1:] != self.document_ids[:, :-1]
            end = torch.tensor([rows * length], device=self.tokens.device)
            bounds = torch.cat([begins.flatten().nonzero()[:, 0], end])
            self.bounds = bounds.to(torch.int32), int(bounds.diff().max())
        return self.bounds

    def _bounds_of(self, start: int, stop: int) -> tuple[Tensor, int] | None:
        """Of some of the rows, where those of all are known. No segment crosses rows."""
        if self.bounds is None or self.bounds[0].is_cuda:
            return None
        length = self.tokens.shape[1]
        edges = torch.tensor([start * length, min(stop, len(self.tokens)) * length], dtype=torch.int32)
        first, last = torch.searchsorted(self.bounds[0], edges).tolist()
        part = self.bounds[0][first : last + 1] - edges[0]
        return part, int(part.diff().max())

    @property
    def tokens_used(self) -> int:
        """Number of positions that carry loss."""
        return int((self.labels != IGNORE).sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.tokens.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.positions.to(device, non_blocking=non_blocking),
            None if self.document_ids is None else self.document_ids.to(device, non_blocking=non_blocking),
            {name: value.to(device, non_blocking=non_blocking) for name, value in self.extras.items()},
            self.bounds and (self.bounds[0].to(device, non_blocking=non_blocking), self.bounds[1]),
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
                self._bounds_of(start, start + rows),
            )
