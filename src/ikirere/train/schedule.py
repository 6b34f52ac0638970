"""Learning rates over a run, as a factor of the peak rate."""

from __future__ import annotations

import math

from ikirere.recipe.sections import Schedule


def lr_factor(config: Schedule, step: int, total: int) -> float:
    """Rate of a step over the peak rate. step counts from 0, total is the number of steps of the run.

    Warm-up is linear and ends at 1 on its last step. Then: `constant` stays; `cosine` (Loshchilov and Hutter
    2017, arXiv 1608.03983) falls over all that is left; `wsd` (Hu et al. 2024, arXiv 2404.06395, section 4) stays
    and falls linearly over its last `decay` steps. The last step's factor is `min_ratio`; where that is 0 it is
    one stride above, since a step at rate zero would be wasted.
    """
    warmup = min(span(config.warmup, total), total)
    if step < warmup:
        return (step + 1) / warmup
    if config.name == "constant":
        return 1.0
    fall = total - warmup if config.name == "cosine" else min(span(config.decay, total), total - warmup)
    into = step + 1 - (total - fall)
    if into <= 0:
        return 1.0
    progress = into / (fall + (config.min_ratio == 0))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if config.name == "cosine" else 1 - progress
    return config.min_ratio + (1 - config.min_ratio) * shape


def span(value: float, total: int) -> int:
    """A recipe's number in steps: below 1 it is a fraction of `total`, else a number of steps."""
    return round(value * total) if value < 1 else int(value)
