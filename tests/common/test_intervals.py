"""Intervals against published values, the definition of Wilson's interval, and the distribution of the mean."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.common.intervals import RESAMPLES, bootstrap, inside_noise, verdict, wilson

QUICK = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_has_the_published_values(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert wilson(successes, n, 0.95) == pytest.approx((low, high), abs=6e-5)


@QUICK
@given(st.integers(1, 400), st.data(), st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_wilsons_ends_are_the_proportions_that_the_score_test_just_accepts(
    n: int, data: st.DataObject, confidence: float
) -> None:
    """An end other than p itself solves |p - q| = z sqrt(q (1 - q) / n), by which Wilson (1927) defines it."""
    p = data.draw(st.integers(0, n)) / n
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = wilson(p * n, n, confidence)
    assert 0 <= low <= p <= high <= 1
    assert (low == 0) == (p == 0) and (high == 1) == (p == 1)
    for end in (low, high):
        if end not in (0, 1):
            assert abs(p - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-7, abs=1e-9)


def rows(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(7)
    return drawn.normal(3.0, 2.0, n), drawn.uniform(1.0, 5.0, n)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_the_bootstrap_of_a_mean_is_close_to_the_normal_interval(confidence: float) -> None:
    a, _ = rows()
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    error = float(a.std()) / math.sqrt(len(a))
    low, high = bootstrap(a, None, confidence)
    assert low is not None and high is not None
    assert low == pytest.approx(a.mean() - z * error, abs=error / 8)
    assert high == pytest.approx(a.mean() + z * error, abs=error / 8)


def test_the_bootstrap_is_of_the_named_number_of_resamples_and_always_the_same() -> None:
    """Written out here once more, with the generator of seed 0."""
    a, b = rows(30)
    again = np.random.default_rng(0)
    picks = [again.integers(0, 30, 30) for _ in range(RESAMPLES)]
    ratios = [a[pick].sum() / b[pick].sum() for pick in picks]
    assert RESAMPLES == 2000
    assert bootstrap(a, b, 0.9) == pytest.approx(tuple(np.quantile(ratios, [0.05, 0.95])), rel=1e-12)
    assert bootstrap(a, b, 0.9, exp=True) == pytest.approx(
        tuple(np.quantile(np.exp(ratios), [0.05, 0.95])), rel=1e-12
    )


def test_without_a_denominator_there_is_no_interval() -> None:
    assert bootstrap(np.ones(3), np.zeros(3), 0.95) == (None, None)
    assert bootstrap(np.array([1.0, 0.0]), np.array([2.0, 0.0]), 0.95) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("target", "low", "high", "inside"),
    [
        (0.5, 0.4, 0.6, True),
        (0.4, 0.4, 0.6, True),
        (0.6, 0.4, 0.6, True),
        (0.39, 0.4, 0.6, False),
        (0.61, 0.4, 0.6, False),
        (0.5, 0.5, 0.5, False),
        (0.5, 0.6, 0.4, False),
        (0.5, None, 0.6, False),
        (0.5, 0.4, None, False),
        (0.5, None, None, False),
    ],
)
def test_a_target_is_inside_noise_with_the_ends_included(
    target: float, low: float | None, high: float | None, inside: bool
) -> None:
    assert inside_noise(target, low, high) is inside


@pytest.mark.parametrize(
    ("value", "low", "high", "op", "found"),
    [
        (0.6, 0.55, 0.7, ">=", "PASS"), (0.4, 0.35, 0.45, ">=", "MISS"), (0.4, 0.35, 0.45, "<=", "PASS"),
        (0.6, 0.4, 0.8, ">=", "INSIDE NOISE"), (0.5, 0.5, 0.5, ">=", "PASS"), (0.5, None, None, ">", "MISS"),
        (0.5, None, None, "==", "PASS"), (0.5, 0.4, 0.45, "<", "MISS"), (math.nan, 0.4, 0.6, ">=", "MISS"),
    ],
)  # fmt: skip
def test_a_verdict_compares_value_and_target_unless_the_band_holds_it(
    value: float, low: float | None, high: float | None, op: str, found: str
) -> None:
    assert verdict(value, low, high, op, target=0.5) == found
