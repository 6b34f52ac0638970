"""Metrics are derived from rows: values, bands, and what has none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ikirere.common.intervals import RESAMPLES
from ikirere.programme.metrics import measure


def written(folder: Path, rows: list[dict[str, float]]) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_ratio_is_of_sums_and_its_band_of_rows_drawn_again(tmp_path: Path) -> None:
    drawn = np.random.default_rng(1)
    a, b = drawn.uniform(1, 2, 40), drawn.uniform(3, 9, 40)
    folder = written(tmp_path, [{"nats": x, "bytes": y} for x, y in zip(a.tolist(), b.tolist(), strict=True)])
    found = measure(folder, "ratio", "ratio", "rows.jsonl", "nats", "bytes")
    assert found.value == pytest.approx(a.sum() / b.sum())
    again = np.random.default_rng(0)
    ratios = []
    for _ in range(RESAMPLES):
        pick = again.integers(0, 40, 40)
        ratios.append(a[pick].sum() / b[pick].sum())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))
    exp = measure(folder, "perplexity", "exp-ratio", "rows.jsonl", "nats", "bytes")
    assert exp.value == pytest.approx(math.exp(found.value))
    assert exp.low == pytest.approx(math.exp(found.low or 0.0), rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_draws_of_nothing_are_left_out_of_a_band(tmp_path: Path) -> None:
    """A third of the draws of three rows hold none that has a denominator."""
    folder = written(tmp_path, [{"n": 1.0, "of": 2.0}, {"n": 0.0, "of": 0.0}, {"n": 0.0, "of": 0.0}])
    found = measure(folder, "share", "ratio", "rows.jsonl", "n", "of")
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
