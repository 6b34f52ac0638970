"""Every step's rate against the schedules' published formulas, written out here; spans of steps and fractions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.recipe.sections import Schedule
from ikirere.train.schedule import lr_factor, span

EXAMPLES = settings(max_examples=100, deadline=None)


def factors(config: Schedule, total: int) -> list[float]:
    return [lr_factor(config, step, total) for step in range(total)]


@EXAMPLES
@given(st.integers(0, 40), st.integers(1, 60), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_cosine_is_loshchilov_and_hutters_equation_5(warmup: int, rest: int, least: float) -> None:
    """eta_min + (1 - eta_min) (1 + cos(pi t / T)) / 2, t from 1; T has one step more where the end would be 0."""
    steps = rest + (least == 0)
    expected = [(step + 1) / warmup for step in range(warmup)]
    expected += [least + (1 - least) * (1 + math.cos(math.pi * t / steps)) / 2 for t in range(1, rest + 1)]
    found = factors(Schedule(name="cosine", warmup=warmup, min_ratio=least), warmup + rest)
    assert found == pytest.approx(expected, abs=1e-12)


@EXAMPLES
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 30), st.sampled_from([0.0, 0.1, 1.0]))
def test_wsd_rises_stays_and_falls_in_straight_lines(
    warmup: int, stable: int, decay: int, least: float
) -> None:
    total = warmup + stable + decay
    if decay == 0 or total == 0:
        return
    stride = (1 - least) / (decay + (least == 0))
    expected = [(step + 1) / warmup for step in range(warmup)] + [1.0] * stable
    expected += [1 - stride * t for t in range(1, decay + 1)]
    found = factors(Schedule(name="wsd", warmup=warmup, decay=decay, min_ratio=least), total)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("decay", [10, 1000, 1.0 - 1e-9])
def test_wsd_may_decay_over_all_steps(decay: float) -> None:
    config = Schedule(name="wsd", warmup=0, decay=decay, min_ratio=0.0)
    assert factors(config, 10) == pytest.approx([t / 11 for t in range(10, 0, -1)])
    warmed = Schedule(name="wsd", warmup=5, decay=decay, min_ratio=0.5)
    assert factors(warmed, 10) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5])


def test_wsd_without_decay_stays_at_the_peak() -> None:
    for least in (0.0, 0.1):
        assert factors(Schedule(name="wsd", warmup=2, decay=0, min_ratio=least), 5) == [0.5, 1, 1, 1, 1]


def test_a_warm_up_longer_than_the_run_is_cut_at_its_end() -> None:
    for name in ("constant", "cosine", "wsd"):
        config = Schedule(name=name, warmup=50, decay=3, min_ratio=0.1)
        assert factors(config, 4) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_the_rate_is_constant_after_warm_up() -> None:
    config = Schedule(name="constant", warmup=4, decay=3, min_ratio=0.1)
    assert factors(config, 7) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "total", "steps"),
    [
        (0, 100, 0),
        (0.25, 100, 25),
        (0.026, 100, 3),
        (0.99, 100, 99),
        (1, 100, 1),
        (1.0, 100, 1),
        (37, 100, 37),
    ],
)
def test_a_number_below_one_is_a_fraction_of_all_steps(value: float, total: int, steps: int) -> None:
    assert span(value, total) == steps
