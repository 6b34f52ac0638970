"""What training minimises, computed without ever holding all logits.

Logits of a step are [tokens, vocab_size]: at 16k tokens and 150k words that is 10 GB, far more than the
model. Here the head runs in chunks of tokens, and the gradient of a chunk is formed while its logits are at
hand ("Cut Your Losses", Wijmans et al. 2024, arXiv 2411.09009, section 3, has the idea), so the memory is
one chunk and the head's matrix products are done three times, not four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ikirere.tokens.batch import Batch

IGNORE = -100  # label of a position without loss
# Measured on the CPU: smaller chunks starve the matrix product, larger ones the cache.
CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 28}
LEAST_ROWS = 256


class LanguageModel(Protocol):
    """What an objective needs of a model; `model.decoder.Decoder` is one."""

    @property
    def output_weight(self) -> Tensor:
        """[vocab_size, hidden_size]."""

    def hidden(self, tokens: Tensor, positions: Tensor | None, document_ids: Tensor | None) -> Tensor:
        """[B, T] -> [B, T, hidden_size]."""


Objective = Callable[[Any, "Batch"], tuple[Tensor, dict[str, Tensor]]]
"""(model, batch) -> (loss to minimise, further scalars for the log, detached).

The loss is a mean. An optional method `weight(batch) -> int` gives the number of its terms (default: labelled
positions); the loop uses it so that micro-batches and ranks of unequal weight add up to the mean over the whole batch.
An optional attribute `rows` is the number of rows of the batch that make one example (2 for pairs; default 1).
"""


@runtime_checkable
class Weighted(Protocol):
    """An objective whose loss is not a mean over labelled positions."""

    def weight(self, batch: Batch) -> int:
        """Size of what the loss of this batch is a mean over."""


def weight_of(objective: Objective, batch: Batch) -> int:
    """What `objective`'s loss on `batch` is a mean over."""
    return objective.weight(batch) if isinstance(objective, Weighted) else batch.tokens_used


class CrossEntropy:
    """Mean negative log-likelihood in nats of the labels that are not -100, plus z_loss * mean(logsumexp^2).

    The z-loss is PaLM's (Chowdhery et al. 2022, section 5): it keeps the normaliser near 1. Without labels the
    loss is 0 and so are the gradients.
    """

    def __init__(self, z_loss: float = 0.0) -> None:
        self.z_loss = z_loss

    def __call__(self, model: LanguageModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = model.hidden(batch.tokens, batch.positions, batch.document_ids)
        loss, nll, z = cross_entropy(hidden, model.output_weight, batch.labels, self.z_loss)
        scalars = {"nll": nll, "z_loss": z} if self.z_loss else {}
        if added := getattr(model, "auxiliary", None):
            scalars = {"nll": nll, **scalars, **{name: value.detach() for name, value in added.items()}}
            loss = torch.stack([loss, *added.values()]).sum()
        return loss, scalars


def cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, z_loss: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [..., D], weight [V, D], labels [...] -> scalars (loss, nats per label, z-loss); the last two detached.

    loss = nats + z-loss. Softmax and sums are fp32; the matrix products are in autocast's dtype where it is on.
    """
    rows, labels = _labelled(hidden, labels)
    if not len(labels):
        zero = (hidden.sum() + weight.sum()) * 0.0
        return zero, zero.detach(), zero.detach()
    loss, nll, z = _MeanLoss.apply(rows, weight, labels, z_loss, _products(rows), torch.is_grad_enabled())
    return loss, nll, z


def token_logprobs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Log-probability (nats, fp32) of each label, 0 where it is -100. hidden [..., D], labels [...] -> [...].

    For losses that are not a mean of these: the backward pass computes the logits a second time.
    """
    used = labels != IGNORE
    rows, picked = _labelled(hidden, labels)
    values = torch.zeros(labels.shape, dtype=torch.float32, device=hidden.device)
    if not len(picked):
        return values + (hidden.sum() + weight.sum()) * 0.0
    found: Tensor = _TokenLogprobs.apply(rows, weight, picked, _products(rows))
    return values.masked_scatter(used, found)


def sequence_logprobs(model: LanguageModel, batch: Batch) -> Tensor:
    """Sum over each row of its labels' log-probabilities, fp32 [B]; differentiable."""
    hidden = model.hidden(batch.tokens, batch.positions, batch.document_ids)
    return token_logprobs(hidden, model.output_weight, batch.labels).sum(-1)


def _labelled(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The positions that have a label: ([n, D], [n]). The others cost nothing further."""
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    used = labels != IGNORE
    if used.all():
        return hidden, labels
    return hidden[used], labels[used]


def _products(hidden: Tensor) -> torch.dtype:
    """Dtype of the head's matrix products."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of fp32 logits made at once."""
    return max(LEAST_ROWS, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * vocabulary))


class _MeanLoss(torch.autograd.Function):
    """Loss and, where wanted, its gradients in one pass over the chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        z_loss: float,
        dtype: torch.dtype,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, device = len(labels), hidden.device
        size = chunk_rows(len(weight), device)
        nll, z = (torch.zeros((), dtype=torch.float32, device=device) for _ in range(2))
        dh = torch.empty_like(hidden) if with_gradient else None
        dw: Tensor | None = None
        with torch.autocast(device.type, enabled=False):
            w = weight.to(dtype)
            for start in range(0, n, size):
                h, y = hidden[start : start + size].to(dtype), labels[start : start + size, None]
                logits = (h @ w.T).float()
                label_logits, top = logits.gather(1, y), logits.amax(1, keepdim=True)
                # The largest probability is at least 1 / V, so its logarithm is safe where others underflow.
                p = torch.softmax(logits, 1, out=logits)
                lse = top - p.amax(1, keepdim=True).log()
                nll += (lse - label_logits).sum()
                z += lse.square().sum()
                if dh is None:
                    continue
                if z_loss:
                    p *= lse.mul(2 * z_loss).add_(1)
                p.scatter_add_(1, y, torch.full_like(label_logits, -1.0))
                g = p.to(dtype)
                dh[start : start + size] = g @ w
                dw = _accumulate(dw, g, h, weight.dtype)
        nll, z = nll / n, z * (z_loss / n)
        ctx.mark_non_differentiable(nll, z)
        if dh is not None and dw is not None:
            ctx.save_for_backward(dh.mul_(1 / n), dw.mul_(1 / n))
        return nll + z, nll, z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dh, dw = ctx.saved_tensors
        return dh * grads[0], dw * grads[0], None, None, None, None


class _TokenLogprobs(torch.autograd.Function):
    """Log-probability of each label, [n]; logits are computed again for the gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        size, lses, found = chunk_rows(len(weight), hidden.device), [], []
        with torch.autocast(hidden.device.type, enabled=False):
            w = weight.to(dtype)
            for h, y in zip(hidden.split(size), labels.split(size), strict=True):
                logits = (h.to(dtype) @ w.T).float()
                lses.append(logits.logsumexp(1))
                found.append(logits.gather(1, y[:, None]).squeeze(1) - lses[-1])
        ctx.save_for_backward(hidden, weight, labels, torch.cat(lses))
        ctx.dtype = dtype
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, lse = ctx.saved_tensors
        size = chunk_rows(len(weight), hidden.device)
        dh, dw = torch.empty_like(hidden), None
        with torch.autocast(hidden.device.type, enabled=False):
            w = weight.to(ctx.dtype)
            for start in range(0, len(labels), size):
                part = slice(start, start + size)
                h, y, scale = hidden[part].to(ctx.dtype), labels[part, None], grads[0][part, None]
                p = (h @ w.T).float().sub_(lse[part, None]).exp_().mul_(-scale)
                g = p.scatter_add_(1, y, scale).to(ctx.dtype)
                dh[part] = g @ w
                dw = _accumulate(dw, g, h, weight.dtype)
        return dh, dw, None, None


def _accumulate(total: Tensor | None, g: Tensor, h: Tensor, dtype: torch.dtype) -> Tensor:
    """total + g^T h in `dtype`: g [n, V], h [n, D] -> [V, D]."""
    if total is None:
        return (g.T @ h).to(dtype)
    return total.addmm_(g.T, h) if g.dtype == dtype else total.add_(g.T @ h)
