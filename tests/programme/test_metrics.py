"""Metrics are derived from rows: values, bands, and what has none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ikirere.common.intervals import RESAMPLES, bootstrap, wilson
from ikirere.errors import UserError
from ikirere.programme.metrics import Metric, measure


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
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


DRAWN = np.random.default_rng(3)
GAINS = [
    {"ours": float(a), "theirs": float(b), "right": int(a > 0), "set": "even" if i % 2 == 0 else "odd"}
    for i, (a, b) in enumerate(zip(DRAWN.normal(0.2, 1, 21), DRAWN.normal(0, 1, 21), strict=True))
]


def test_a_mean_and_its_band(tmp_path: Path) -> None:
    found = measure(written(tmp_path, GAINS), "gain", "mean", "rows.jsonl", "ours", confidence=0.8)
    values = np.array([row["ours"] for row in GAINS])
    assert (found.value, found.n) == (pytest.approx(values.mean()), 21)
    assert (found.low, found.high) == pytest.approx(bootstrap(values, None, 0.8))
    assert found.low is not None and found.high is not None and found.low < found.value < found.high


def test_a_difference_is_of_rows_in_pairs(tmp_path: Path) -> None:
    found = measure(written(tmp_path, GAINS), "gain", "difference", "rows.jsonl", "ours", "theirs")
    pairs = np.array([row["ours"] - row["theirs"] for row in GAINS])
    assert found.value == pytest.approx(pairs.mean())
    assert (found.low, found.high) == pytest.approx(bootstrap(pairs, None, 0.95))


def test_a_proportion_has_wilsons_interval(tmp_path: Path) -> None:
    found = measure(written(tmp_path, GAINS), "right", "proportion", "rows.jsonl", "right", confidence=0.9)
    right = sum(row["right"] for row in GAINS)
    assert 0 < right < 21 and found.value == pytest.approx(right / 21)
    assert (found.low, found.high) == pytest.approx(wilson(right, 21, 0.9))


def test_only_rows_with_the_named_fields_count(tmp_path: Path) -> None:
    folder = written(tmp_path, [*GAINS, {"set": "even", "ours": 99.0, "seed": 1}])
    found = measure(folder, "gain", "mean", "rows.jsonl", "ours", where={"set": "odd"})
    assert (found.n, found.where) == (10, {"set": "odd"})
    assert found.value == pytest.approx(np.mean([row["ours"] for row in GAINS[1::2]]))
    both = measure(folder, "one", "scalar", "rows.jsonl", "ours", where={"set": "even", "seed": 1})
    assert both.value == 99.0


def test_a_scalar_and_a_single_row_have_no_band(tmp_path: Path) -> None:
    folder = written(tmp_path, [{"x": 3.0, "of": 4.0}])
    for kind, over, value in (
        ("scalar", None, 3.0), ("mean", None, 3.0), ("difference", "of", -1.0), ("ratio", "of", 0.75),
        ("exp-ratio", "of", math.exp(0.75)),
    ):  # fmt: skip
        found = measure(folder, "m", kind, "rows.jsonl", "x", over)  # type: ignore[arg-type]
        assert (found.value, found.low, found.high, found.n) == (pytest.approx(value), None, None, 1)


def test_two_rows_have_a_band(tmp_path: Path) -> None:
    folder = written(tmp_path, [{"x": 1.0, "of": 2.0}, {"x": 3.0, "of": 2.0}])
    for kind, over, ends in (("mean", None, (1.0, 3.0)), ("ratio", "of", (0.5, 1.5))):
        found = measure(folder, "m", kind, "rows.jsonl", "x", over)  # type: ignore[arg-type]
        assert (found.low, found.high) == ends


def test_a_metric_names_where_it_comes_from(tmp_path: Path) -> None:
    found = measure(
        written(tmp_path, GAINS), "m", "ratio", "rows.jsonl", "ours", "theirs", {"set": "odd"}, confidence=0.5
    )
    assert Metric(**json.loads(json.dumps(found.to_json()))) == found
    assert (found.name, found.kind, found.raw, found.field, found.over, found.confidence) == (
        "m", "ratio", "rows.jsonl", "ours", "theirs", 0.5,
    )  # fmt: skip


def test_bands_are_of_95_percent_unless_said(tmp_path: Path) -> None:
    found = measure(written(tmp_path, GAINS), "right", "proportion", "rows.jsonl", "right")
    assert (found.low, found.high) == pytest.approx(wilson(sum(row["right"] for row in GAINS), 21, 0.95))
    assert found.confidence == Metric("m", 1.0, None, None, 1, "mean", "rows.jsonl", "x").confidence == 0.95


@pytest.mark.parametrize(
    ("kind", "field", "over", "where", "message"),
    [
        (
            "mean",
            "ours",
            None,
            {"set": "none"},
            r"rows\.jsonl: no rows for metric m where \{'set': 'none'\}$",
        ),
        ("mean", "absent", None, None, r"rows\.jsonl: rows lack the field 'absent' of metric m$"),
        ("ratio", "ours", "absent", None, r"rows\.jsonl: rows lack the field 'absent' of metric m$"),
        ("ratio", "ours", None, None, r"metric m: kind ratio needs `over`$"),
        ("scalar", "ours", None, None, r"metric m is a scalar, 21 rows match$"),
    ],
)
def test_what_cannot_be_derived_is_named(
    tmp_path: Path, kind: Any, field: str, over: str | None, where: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        measure(written(tmp_path, GAINS), "m", kind, "rows.jsonl", field, over, where)


def test_no_rows_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl: no rows for metric m$"):
        measure(written(tmp_path, []), "m", "mean", "rows.jsonl", "x")
