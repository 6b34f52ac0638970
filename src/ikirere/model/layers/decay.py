"""A linear state that decays by one number per head and token, token by token and by chunks.

    S <- e^g S + k v^T;    o = S^T q

This is the state space duality of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, section 6) and, with a constant g,
retention (Sun et al. 2023, arXiv 2307.08621, section 2). All arithmetic is fp32, or fp64 where that is given,
also under autocast.

Within a chunk e^(g_(j+1) + ... + g_i) is needed for all pairs j <= i. Each exponent is summed up from its own
terms, never as a difference of two long sums: those lose what is weak beside what is strong. What lies above the
diagonal or in another document is set to minus infinity before the exponential, so nothing overflows.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ikirere.model.layers.recurrent import run_rule

CHUNK = 64
_PIECE = 4096
"""Tokens handled at once where no gradient is wanted: it bounds what long prompts take."""


class DecayRule(Protocol):
    """q, k [B, T, G, K], v [B, T, H, V], g [B, T, H], state [B, H, K, V], resets bool [B, T] ->
    o [B, T, H, V] and the state after the last token."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        state: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...


KERNELS: dict[str, DecayRule] = {}
"""By type of device, what `decay_rule` uses there instead of the forms below. A kernel may be entered here
once it has been compared with them on that device; the forms are what it is compared with."""


def decay_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """o [B, T, H, V] and the state after the last token [B, H, K, V].

    q, k: [B, T, G, K], used as they are: scales are the caller's. G divides H, and head h reads and writes with
    group h // (H / G). v: [B, T, H, V]. g: [B, T, H], the logarithm of the decay, at most 0. state: [B, H, K, V] to
    begin with, zeros by default. resets: bool [B, T], True where a token begins a document and finds an empty
    state. A position with g = 0 and v = 0 leaves the state as it is. Both results are fp32, or fp64 where an input
    is. Raises ValueError for a chunk below 1 and for groups that do not divide the heads.
    """
    if chunk < 1:
        raise ValueError(f"a chunk of {chunk} tokens; at least 1 is needed")
    if v.shape[2] % q.shape[2]:
        raise ValueError(f"{q.shape[2]} groups do not divide {v.shape[2]} heads")
    if torch.compiler.is_compiling():
        # A compiler would unroll the loop over chunks, minutes of work for products that it cannot improve.
        found: tuple[Tensor, Tensor] = torch.compiler.disable(_choose)(q, k, v, g, state, resets, chunk)
        return found
    return _choose(q, k, v, g, state, resets, chunk)


def _choose(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor | None, resets: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if torch.float64 in (q.dtype, v.dtype, g.dtype) else torch.float32
    q, k, v, g = (t.to(wide) for t in (q, k, v, g))
    batch, _, heads, values = v.shape
    state = q.new_zeros(batch, heads, q.shape[-1], values) if state is None else state.to(wide)
    kernel = KERNELS.get(q.device.type)
    return run_rule(recurrent, chunked, kernel, (q, k, v, g), state, resets, chunk, _PIECE)


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The rule as it is written, token by token; arguments as in `decay_rule`."""
    shared = v.shape[2] // q.shape[2]
    if shared > 1:
        q, k = (t.repeat_interleave(shared, dim=2) for t in (q, k))
    done = []
    for t in range(q.shape[1]):
        if resets is not None:
            state = state.masked_fill(resets[:, t, None, None, None], 0.0)
        state = state * g[:, t, :, None, None].exp() + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        done.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(done, dim=1), state


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor,
    resets: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The same by chunks of `chunk` tokens, matrix products throughout; arguments as in `decay_rule`.

    Heads of one group stand side by side as columns of one matrix wherever they meet the group's queries or keys,
    so these are never repeated. Kept for the backward pass: [chunk, chunk] numbers per chunk and head, a state per
    chunk and head, and a few times the inputs, so memory is linear in T.
    """
    batch, length, heads, values = v.shape
    groups, keys = q.shape[2:]
    shared = heads // groups
    chunk = min(chunk, length)
    missing = -length % chunk
    count = (length + missing) // chunk

    def split(t: Tensor) -> Tensor:
        """[B, T, G, D] -> [chunks, B, G, chunk, D], padded with positions that leave the state unchanged."""
        t = F.pad(t, (0, 0, 0, 0, 0, missing)) if missing else t
        return t.reshape(batch, count, chunk, groups, -1).permute(1, 0, 3, 2, 4).contiguous()

    q, k, v, g = split(q), split(k), split(v.flatten(2).unflatten(2, (groups, -1))), split(g.unsqueeze(-1))
    document = None
    if resets is not None:
        resets = F.pad(resets, (0, missing)) if missing else resets
        document = resets.view(batch, count, chunk).transpose(0, 1).cumsum(-1)[:, :, None, None]
    # [chunks, B, G, heads of the group, chunk] from here on wherever heads have their own factors.
    scores, reading, writing = Within.apply(q, k, g.mT.contiguous(), document)
    parts = v.unflatten(-1, (shared, values))
    written = k.mT @ (parts * writing.mT.unsqueeze(-1)).flatten(-2)
    first = state.view(batch, groups, shared, keys, values).transpose(2, 3).flatten(-2)
    states, last = Scan.apply(written.unflatten(-1, (shared, values)), reading[..., -1], first)
    o = (q @ states).unflatten(-1, (shared, values)) * reading.mT.unsqueeze(-1)
    o = o + (scores @ parts.transpose(3, 4)).transpose(3, 4)  # [chunks, B, G, chunk, heads of the group, V]
    o = o.permute(1, 0, 3, 2, 4, 5).reshape(batch, count * chunk, heads, values)
    state = last.transpose(2, 3).reshape(batch, heads, keys, values)
    return (o[:, :length] if missing else o), state


def _decays(g: Tensor, document: Tensor | None) -> tuple[Tensor, Tensor]:
    """From g [..., C]: e^(g_(j+1) + ... + g_i) for j <= i, else 0, [..., C, C]; and e^(g_0 + ... + g_i), [..., C].

    document: LongTensor [..., C], how many documents began up to each token; factors across a beginning are 0.
    """
    size = g.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool, device=g.device).tril()
    pairs = torch.where(lower.tril(-1), g.unsqueeze(-1), 0.0).cumsum(-2)
    since = g.cumsum(-1)
    if document is not None:
        lower = lower & (document.unsqueeze(-1) == document.unsqueeze(-2))
        since = since.masked_fill(document > 0, float("-inf"))
    return pairs.masked_fill_(~lower, float("-inf")).exp_(), since.exp()


class Within(torch.autograd.Function):
    """What a chunk needs of its decays. q, k [..., C, K], g [..., R, C], document LongTensor [..., 1, C] or None ->

    scores [..., R, C, C]: e^(g_(j+1) + ... + g_i) q_i . k_j for j <= i of one document. reading [..., R, C]: what is
    left at each token of the state before the chunk. writing [..., R, C]: what is left of each token at the end.

    Keeps its inputs only: all factors are built again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, g: Tensor, document: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(q, k, g, document)
        pairs, reading = _decays(g, document)
        writing = pairs[..., -1, :].clone()
        return pairs.mul_((q @ k.mT).unsqueeze(-3)), reading, writing

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, g, document = ctx.saved_tensors
        d_scores, d_reading, d_writing = grads
        pairs, reading = _decays(g, document)
        of_product = (d_scores * pairs).sum(-3)
        dq, dk = of_product @ k, of_product.mT @ q
        # What reaches an exponent is what reaches its factor, times that factor; a token's g is in the exponents
        # of all pairs that it stands between.
        of_pairs = d_scores * (q @ k.mT).unsqueeze(-3)
        of_pairs[..., -1, :] += d_writing
        dg = _reverse_cumsum(of_pairs.mul_(pairs), -2).tril_(-1).sum(-1)
        dg += _reverse_cumsum(d_reading * reading, -1)
        return dq, dk, dg, None


def _reverse_cumsum(t: Tensor, dim: int) -> Tensor:
    """Running sums that start at the end."""
    return t.flip(dim).cumsum(dim).flip(dim)


class Scan(torch.autograd.Function):
    """The state from chunk to chunk: S_(n+1) = decay_n S_n + written_n.

    written [N, B, G, K, R, V], decay [N, B, G, R], state S_0 [B, G, K, R * V] -> all S_n [N, B, G, K, R * V], and the
    last one [B, G, K, R, V].
    """

    @staticmethod
    def forward(ctx: Any, written: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        states, decay = torch.empty_like(written), decay[..., None, :, None]
        state = state.view_as(written[0])
        for n in range(len(written)):
            states[n] = state
            state = torch.addcmul(written[n], decay[n], state)
        ctx.save_for_backward(states, decay)
        return states.flatten(-2), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        states, decay = ctx.saved_tensors
        d_states, d_state = grads[0].view_as(states), grads[1]
        after = torch.empty_like(states)
        for n in reversed(range(len(states))):
            after[n] = d_state
            d_state = torch.addcmul(d_states[n], decay[n], d_state)
        return after, (after * states).sum((-1, -3)), d_state.flatten(-2)
