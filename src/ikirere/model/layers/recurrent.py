"""What mixers with a state of fixed size share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ikirere.model.layers.mixer import CacheStep


def run_rule(
    recurrent: Callable[..., tuple[Tensor, Tensor]],
    chunked: Callable[..., tuple[Tensor, Tensor]],
    kernel: Callable[..., tuple[Tensor, Tensor]] | None,
    tokens: tuple[Tensor, ...],
    state: Tensor,
    resets: Tensor | None,
    chunk: int,
    piece: int,
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, ...] and the state after the last token, by the form that fits: the device's kernel where there is
    one, the rule as written for one token, else chunks, `piece` tokens at once where no gradient is wanted.

    tokens: what the rule has of each token, [B, T, ...] each. All forms take (*tokens, state, resets), chunked also
    the chunk. Autocast is off inside.
    """
    length = tokens[0].shape[1]
    with torch.autocast(tokens[0].device.type, enabled=False):
        if kernel is not None:
            return kernel(*tokens, state, resets)
        if length == 1:
            return recurrent(*tokens, state, resets)
        if length <= piece or torch.is_grad_enabled():
            return chunked(*tokens, state, resets, chunk)
        done = []
        for start in range(0, length, piece):
            part = slice(start, start + piece)
            cut = None if resets is None else resets[:, part]
            o, state = chunked(*(t[:, part] for t in tokens), state, cut, chunk)
            done.append(o)
        return torch.cat(done, dim=1), state


class RecurrentState:
    """What one layer holds of `batch` rows: the last inputs of its convolution, and the state of each head.

    tail: [batch, conv_size - 1, channels] in the cache's dtype, empty without a convolution.
    memory: fp32 [batch, heads, keys, values].
    """

    def __init__(
        self,
        batch: int,
        tail: tuple[int, int],
        memory: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.tail = torch.zeros(batch, *tail, dtype=dtype, device=device)
        self.memory = torch.zeros(batch, *memory, dtype=torch.float32, device=device)

    def reset(self, row: int) -> None:
        self.tail[row] = 0
        self.memory[row] = 0

    def copy(self, source: int, target: int, length: int) -> None:
        self.tail[target] = self.tail[source]
        self.memory[target] = self.memory[source]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.tail, self.memory))

    def before(self, step: CacheStep) -> Tensor:
        """The memory of a step's rows, [B, heads, keys, values]."""
        held = self.memory[step.rows]
        # A slice is a view, which is written after the pass; autograd must not find it changed.
        return held.clone() if torch.is_grad_enabled() else held


def padding(step: CacheStep | None, length: int) -> Tensor | None:
    """Which of `length` tokens are padding on the right, bool [B, length]; None where all are real."""
    if step is None or step.counts is None:
        return None
    return torch.arange(length, device=step.counts.device) >= step.counts.unsqueeze(1)


def document_positions(document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where documents begin, bool [B, T], and each token's position within its own, LongTensor [B, T]."""
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    order = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    return begins, order - torch.where(begins, order, 0).cummax(dim=1).values
