"""The gated delta rule with one decay for each key channel, token by token and by chunks.

    S <- diag(e^g) S;    S <- S + beta k (v - S^T k)^T;    o = S^T q

(Kimi Linear, Kimi Team 2025, arXiv 2510.26692, section 3; the chunked form follows Yang et al. 2024, arXiv
2406.06484, section 3.) All arithmetic is fp32, or fp64 where that is given, also under autocast.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ikirere.model.layers.delta_chunks import Inverse, Scan, Within
from ikirere.model.layers.recurrent import run_rule

CHUNK = 64
_PIECE = 4096
"""Tokens handled at once where no gradient is wanted: it bounds what long prompts take."""


class DeltaRule(Protocol):
    """q, k, g [B, T, H, K], v [B, T, H, V], beta [B, T, H], state [B, H, K, V], resets bool [B, T] ->
    o [B, T, H, V] and the state after the last token."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        state: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...


KERNELS: dict[str, DeltaRule] = {}
"""By type of device, what `delta_rule` uses there instead of the forms below. A kernel may be entered here
once it has been compared with them on that device; the forms are what it is compared with."""


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """o [B, T, H, V] and the state after the last token [B, H, K, V].

    q, k: [B, T, H, K], used as they are: norms and scales are the caller's. v: [B, T, H, V]. g: [B, T, H, K],
    the logarithm of the decay, at most 0. beta: [B, T, H]. state: [B, H, K, V] to begin with, zeros by
    default. resets: bool [B, T], True where a token begins a document and finds an empty state. A position with
    g = 0 and beta = 0 leaves the state as it is. chunk: a power of two. Both results are fp32, or fp64 where
    an input is. Raises ValueError for a chunk that is no power of two.
    """
    if torch.compiler.is_compiling():
        # A compiler would unroll the loop over chunks, minutes of work for products that it cannot improve.
        found: tuple[Tensor, Tensor] = torch.compiler.disable(_choose)(q, k, v, g, beta, state, resets, chunk)
        return found
    return _choose(q, k, v, g, beta, state, resets, chunk)


def _choose(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None,
    resets: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if torch.float64 in (q.dtype, v.dtype, g.dtype) else torch.float32
    q, k, v, g, beta = (t.to(wide) for t in (q, k, v, g, beta))
    state = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]) if state is None else state.to(wide)
    kernel = KERNELS.get(q.device.type)
    return run_rule(recurrent, chunked, kernel, (q, k, v, g, beta), state, resets, chunk, _PIECE)


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, resets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The rule as it is written, token by token; arguments as in `delta_rule`."""
    done = []
    for t in range(q.shape[1]):
        if resets is not None:
            state = state.masked_fill(resets[:, t, None, None, None], 0.0)
        state = state * g[:, t].exp().unsqueeze(-1)
        wrong = v[:, t] - (k[:, t].unsqueeze(-2) @ state).squeeze(-2)
        state = state + k[:, t].unsqueeze(-1) * (beta[:, t].unsqueeze(-1) * wrong).unsqueeze(-2)
        done.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(done, dim=1), state


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor,
    resets: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The same by chunks of `chunk` tokens, matrix products throughout; arguments as in `delta_rule`.

    Documents may begin anywhere: inside a chunk, pairs of different documents are masked, and a token that
    follows a beginning neither reads nor passes on what lies before it. Masks cost [chunk, chunk] numbers per
    chunk and one factor on q and k each, whatever the number of documents.
    """
    batch, length, heads, _ = q.shape
    if chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"a chunk of {chunk} tokens; a power of two is needed")
    chunk = min(chunk, 1 << (length - 1).bit_length())
    missing = -length % chunk
    count = (length + missing) // chunk

    def split(t: Tensor) -> Tensor:
        """[B, T, H, D] -> [chunks, B, H, chunk, D], padded with positions that leave the state unchanged."""
        t = F.pad(t, (0, 0, 0, 0, 0, missing)) if missing else t
        return t.view(batch, count, chunk, heads, -1).permute(1, 0, 3, 2, 4).contiguous()

    q, k, v, g = split(q), split(k), split(v), split(g)
    beta = split(beta.unsqueeze(-1)).squeeze(-1)
    keys, scores, reading, erasing, writing, decay = Within.apply(q, k, g)
    if resets is not None:
        resets = F.pad(resets, (0, missing)) if missing else resets
        document = resets.view(batch, count, chunk).transpose(0, 1).cumsum(-1).unsqueeze(2)
        same = (document.unsqueeze(-1) == document.unsqueeze(-2)).to(q.dtype)
        first, last = (document == 0).to(q.dtype), (document == document[..., -1:]).to(q.dtype)
        keys, scores = keys * same, scores * same
        reading, writing = reading * first.unsqueeze(-1), writing * last.unsqueeze(-1)
        decay = decay * first[..., -1:]
    # The corrections that tokens of one chunk make to each other: (I + diag(beta) keys)^-1 diag(beta).
    solved = Inverse.apply(keys * beta.unsqueeze(-1)) * beta.unsqueeze(-2)
    new = solved @ v
    old = (solved if resets is None else solved * first.unsqueeze(-1)) @ erasing
    states, values, state = Scan.apply(new, old, writing, decay, state)
    o = reading @ states + scores @ values
    o = o.permute(1, 0, 3, 2, 4).reshape(batch, count * chunk, heads, -1)
    return (o[:, :length] if missing else o), state
