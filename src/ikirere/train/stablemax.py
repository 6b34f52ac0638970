"""Stablemax cross-entropy (Prieto et al. 2025, arXiv 2501.04697, section 4), as the Tiny Recursive Model is trained:
a softmax whose exponential is replaced by s(v) = v + 1 from 0 on and 1 / (1 - v) below, computed in fp64."""

from __future__ import annotations

import torch
from torch import Tensor

from ikirere.tokens.batch import IGNORE


def log_stablemax(logits: Tensor) -> Tensor:
    """log(s(v_i) / sum_j s(v_j)) over the last axis, in fp64 whatever the logits are. [..., V] -> the same shape."""
    v = logits.double()
    # Autograd differentiates both branches, so each is clamped away from its pole.
    s = torch.where(v < 0, 1 / (1 - v.clamp_max(0)), v.clamp_min(0) + 1)
    return s.log() - s.sum(-1, keepdim=True).log()


def stablemax_nats(logits: Tensor, labels: Tensor) -> Tensor:
    """-log of each label's stablemax probability, fp64, 0 where the label is -100. logits [..., V], labels [...]."""
    used = labels != IGNORE
    picked = log_stablemax(logits).gather(-1, labels.masked_fill(~used, 0).unsqueeze(-1)).squeeze(-1)
    return -picked.masked_fill(~used, 0.0)
