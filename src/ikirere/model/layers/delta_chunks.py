"""The parts of the chunked delta rule that have a backward pass of their own: products with decays, the
inverse of a unit triangular matrix, and the state from chunk to chunk. `delta.chunked` puts them together.

e^(G_i - G_j) is needed for all pairs j < i of a chunk, G being the running sum of the logarithms of decays.
Both a difference of two large sums and e^(-G_j) alone lose everything once decays are strong. A chunk is
therefore halved again and again: the pairs that a halving separates meet at its middle m as e^(G_i - G_m)
e^(G_m - G_j). Both factors are products of decays, at most 1 and never a quotient, so nothing overflows or
cancels however strong the decay is, and each halving is one batched matrix product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SLAB = 1 << 18
"""Elements of q processed at once on the CPU: what its caches hold."""


def _rows(q: Tensor, k: Tensor, since: Tensor, half: int) -> Tensor:
    """(q, k) e^(G_i - G_m) of all second halves, m being their run's middle: [M, runs, 2 * half, K]."""
    factor = _halves(since, half)[1]
    rows = q.new_empty(len(q), factor.shape[1], 2, half, q.shape[-1])
    torch.mul(_halves(q, half)[1], factor, out=rows[:, :, 0])
    torch.mul(_halves(k, half)[1], factor, out=rows[:, :, 1])
    return rows.flatten(2, 3)


class Within(torch.autograd.Function):
    """What a chunk needs of its decays. q, k, g [..., C, K] ->

    keys [..., C, C]: k_i . (e^(G_i - G_j) k_j) for j < i. scores: q_i . (e^(G_i - G_j) k_j) for j <= i.
    reading: q e^G. erasing: k e^G. writing: k e^(G_C - G), all [..., C, K]. decay: e^(G_C), [..., K].

    Keeps its inputs only: every factor is built again in the backward pass, and never for all chunks at once.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(q, k, g)
        size, width = q.shape[-2:]
        square = (*q.shape[:-1], size)
        made = [q.new_empty(s) for s in (square, square, q.shape, q.shape, q.shape)]
        made.append(q.new_empty(*q.shape[:-2], width))
        flat = [t.view(-1, *t.shape[-2:]) for t in (q, k, g, *made[:5])] + [made[5].view(-1, width)]
        for parts in zip(*(t.split(_slab(q)) for t in flat), strict=True):
            _within(*parts)
        return tuple(made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        given = (*ctx.saved_tensors, *(t.contiguous() for t in grads))
        made = [torch.empty_like(given[0]) for _ in range(3)]
        width = given[0].shape[-1]
        flat = [t.view(-1, *t.shape[-2:]) for t in (*given[:8], *made)]
        flat.insert(8, given[8].view(-1, width))
        for parts in zip(*(t.split(_slab(given[0])) for t in flat), strict=True):
            _within_backward(*parts)
        return tuple(made)


def _slab(t: Tensor) -> int:
    """Chunks to work on at once: on the CPU, what its caches hold."""
    return max(1, _SLAB // (t.shape[-1] * t.shape[-2])) if t.is_cpu else t[..., 0, 0].numel()


def _within(
    q: Tensor,
    k: Tensor,
    g: Tensor,
    keys: Tensor,
    scores: Tensor,
    reading: Tensor,
    erasing: Tensor,
    writing: Tensor,
    decay: Tensor,
) -> None:
    """`Within` for [M, C, K]: the first three are read, the others filled."""
    since, until = g.exp(), torch.ones_like(g)
    keys.zero_()
    scores.zero_().diagonal(dim1=1, dim2=2).copy_((q * k).sum(-1))
    half = 1
    while half < q.shape[1]:
        columns = _halves(k, half)[0] * _halves(until, half)[0]
        found = _rows(q, k, since, half) @ columns.mT
        _corners(scores, half).copy_(found[:, :, :half])
        _corners(keys, half).copy_(found[:, :, half:])
        _grow(since, until, half)
        half *= 2
    torch.mul(q, since, out=reading)
    torch.mul(k, since, out=erasing)
    torch.mul(k, until, out=writing)
    decay.copy_(since[:, -1])


def _within_backward(
    q: Tensor,
    k: Tensor,
    g: Tensor,
    d_keys: Tensor,
    d_scores: Tensor,
    d_reading: Tensor,
    d_erasing: Tensor,
    d_writing: Tensor,
    d_decay: Tensor,
    dq: Tensor,
    dk: Tensor,
    dg: Tensor,
) -> None:
    """Fills the last three. What reaches an exponent is what reaches its factor, times that factor."""
    since, until = g.exp(), torch.ones_like(g)
    own = d_scores.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    torch.mul(own, k, out=dq)
    torch.mul(own, q, out=dk)
    exponents: list[tuple[int, Tensor, Tensor]] = []
    half = 1
    while half < q.shape[1]:
        (k_first, k_second), factor = _halves(k, half), _halves(until, half)[0]
        d = torch.cat((_corners(d_scores, half), _corners(d_keys, half)), dim=2)
        of_column = (d.mT @ _rows(q, k, since, half)).mul_(factor)
        of_row = (d @ (k_first * factor)).unflatten(2, (2, half)).mul_(_halves(since, half)[1].unsqueeze(2))
        of_q, of_k = of_row[:, :, 0], of_row[:, :, 1]
        _halves(dq, half)[1].add_(of_q)
        _halves(dk, half)[1].add_(of_k)
        _halves(dk, half)[0].add_(of_column)
        of_q.mul_(_halves(q, half)[1]).addcmul_(of_k, k_second)
        exponents.append((half, of_q, of_column.mul_(k_first)))
        _grow(since, until, half)
        half *= 2
    of_q, of_k, of_column = d_reading * since, d_erasing * since, d_writing * until
    dq.add_(of_q)
    dk.add_(of_k).add_(of_column)
    torch.mul(of_q, q, out=dg).addcmul_(of_k, k)
    dg[:, -1].addcmul_(d_decay, since[:, -1])
    d_until = of_column.mul_(k)
    # The inverse of `_grow`: from the exponents of long runs to those of single tokens, which are g.
    for half, of_q, of_column in reversed(exponents):
        (first, second), (before, _) = _halves(dg, half), _halves(d_until, half)
        first[:, :, -1] += second.sum(2)
        second[:, :, -1] += before.sum(2)
        second.add_(of_q)
        before.add_(of_column)


class Inverse(torch.autograd.Function):
    """(I + a)^-1 for a [..., C, C] of which only what lies below the diagonal is read, by halves: the corner
    between two inverted halves x and y is -y a x. Gradients reach only what is read."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        size = a.shape[-1]
        inverse = torch.eye(size, dtype=a.dtype, device=a.device).expand_as(a).contiguous()
        flat, given = inverse.view(-1, size, size), a.reshape(-1, size, size)
        half = 1
        while half < size:
            first, second = _blocks(flat, half)
            _corners(flat, half).copy_(second @ _corners(given, half) @ first).neg_()
            half *= 2
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return (inverse.mT @ grads[0] @ inverse.mT).tril_(-1).neg_()


class Scan(torch.autograd.Function):
    """The state from chunk to chunk: V_n = new_n - old_n S_n, S_(n+1) = diag(decay_n) S_n + writing_n^T V_n.

    new [N, B, H, C, V], old and writing [N, B, H, C, K], decay [N, B, H, K], state S_0 [B, H, K, V] ->
    all S_n [N, B, H, K, V], all V_n [N, B, H, C, V], S_N [B, H, K, V].
    """

    @staticmethod
    def forward(
        ctx: Any, new: Tensor, old: Tensor, writing: Tensor, decay: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        states = state.new_empty(len(new), *state.shape)
        values = torch.empty_like(new)
        for n in range(len(new)):
            states[n] = state
            torch.sub(new[n], old[n] @ state, out=values[n])
            state = torch.addcmul(writing[n].mT @ values[n], decay[n].unsqueeze(-1), state)
        ctx.save_for_backward(old, writing, decay, states, values)
        return states, values, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        old, writing, decay, states, values = ctx.saved_tensors
        d_states, d_values, d_state = grads
        d_new = torch.empty_like(values)
        after = torch.empty_like(states)
        for n in reversed(range(len(values))):
            after[n] = d_state
            torch.add(d_values[n], writing[n] @ d_state, out=d_new[n])
            d_state = torch.addcmul(d_states[n], decay[n].unsqueeze(-1), d_state)
            d_state -= old[n].mT @ d_new[n]
        d_old = (d_new @ states.mT).neg_()
        d_writing = values @ after.mT
        d_decay = (after * states).sum(-1)
        return d_new, d_old, d_writing, d_decay, d_state


def _halves(t: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """First and second halves of all runs of 2 * half tokens: two views [M, runs, half, D] of [M, C, D]."""
    runs = t.view(len(t), -1, 2, half, t.shape[-1])
    return runs[:, :, 0], runs[:, :, 1]


def _blocks(square: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """The two blocks on the diagonal of each run, views [M, runs, half, half] of [M, C, C]."""
    runs = square.shape[-1] // (2 * half)
    blocks = square.view(-1, runs, 2, half, runs, 2, half).diagonal(dim1=1, dim2=4).movedim(-1, 1)
    return blocks[:, :, 0, :, 0], blocks[:, :, 1, :, 1]


def _corners(square: Tensor, half: int) -> Tensor:
    """Of each run, rows of its second half and columns of its first: a view [M, runs, half, half]."""
    runs = square.shape[-1] // (2 * half)
    blocks = square.view(-1, runs, 2, half, runs, 2, half).diagonal(dim1=1, dim2=4).movedim(-1, 1)
    return blocks[:, :, 1, :, 0]


def _grow(since: Tensor, until: Tensor, half: int) -> None:
    """Decays within runs of `half` tokens become those within runs of 2 * half, in place.

    since: over the tokens of a run up to each, itself included. until: over those after each.
    """
    (first, second), (before, _) = _halves(since, half), _halves(until, half)
    before *= second[:, :, -1:]
    second *= first[:, :, -1:]
