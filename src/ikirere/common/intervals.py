"""Confidence intervals of measured numbers, and verdicts on them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal

import numpy as np

RESAMPLES = 2000
Verdict = Literal["PASS", "MISS", "INSIDE NOISE", "NOT RUN"]
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}


def wilson(successes: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson score interval of the proportion `successes / n`, n > 0, confidence within 0 to 1 (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The interval contains p; at 0 and 1 rounding would put an end just inside of it.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def bootstrap(
    a: np.ndarray, b: np.ndarray | None, confidence: float, exp: bool = False
) -> tuple[float, float] | tuple[None, None]:
    """Percentile bootstrap over rows of mean(a), or of sum(a) / sum(b), or with `exp` of its exponential.

    a, b: floats [n]. A resample whose denominators add up to 0 is left out; (None, None) where none is left.
    Deterministic.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        pick = rng.integers(0, len(a), len(a))
        below = len(pick) if b is None else b[pick].sum()
        if below:
            found.append(a[pick].sum() / below)
    if not found:
        return None, None
    values = np.exp(found) if exp else np.array(found)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def inside_noise(target: float, low: float | None, high: float | None) -> bool:
    """Whether the target lies in the interval, ends included. An interval of no width is no noise."""
    return low is not None and high is not None and low < high and low <= target <= high


def verdict(value: float, low: float | None, high: float | None, op: str, target: float) -> Verdict:
    """The verdict on a measured value and its interval, where it has one. A target inside the interval is INSIDE NOISE,
    else the comparison decides. NaN is a MISS."""
    if math.isnan(value):
        return "MISS"
    if inside_noise(target, low, high):
        return "INSIDE NOISE"
    return "PASS" if OPERATORS[op](value, target) else "MISS"
