"""Gates, every case written out: verdict, whether it passed, what follows, and the line that says so."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ikirere.programme.gates import GateResult, judge, judge_all, verdict
from ikirere.programme.metrics import Metric
from ikirere.recipe.sections import Gate


def metric(value: float, low: float | None = None, high: float | None = None, name: str = "m") -> Metric:
    return Metric(name, value, low, high, 10, "mean", "rows.jsonl", "x")


@pytest.mark.parametrize(
    ("op", "below", "equal", "above"),
    [
        (">=", "MISS", "PASS", "PASS"),
        ("<=", "PASS", "PASS", "MISS"),
        (">", "MISS", "MISS", "PASS"),
        ("<", "PASS", "MISS", "MISS"),
        ("==", "MISS", "PASS", "MISS"),
    ],
)
def test_each_comparison(op: str, below: str, equal: str, above: str) -> None:
    assert [verdict(value, None, None, op, 2.0) for value in (1.9, 2.0, 2.1)] == [below, equal, above]


@pytest.mark.parametrize("on_miss", ["stop", "warn", "record"])
@pytest.mark.parametrize("noise", [None, "pass", "miss"])
@pytest.mark.parametrize(
    ("value", "found", "passed"),
    [(None, "NOT RUN", False), (math.nan, "MISS", False), (0.7, "INSIDE NOISE", None), (0.9, "MISS", False), (0.1, "PASS", True)],
)  # fmt: skip
def test_what_follows_from_a_verdict(
    on_miss: Any, noise: Any, value: float | None, found: str, passed: bool | None
) -> None:
    """The target is 0.5, at most. Inside the noise band it depends: unless said, only a gate that stops misses."""
    gate = Gate(name="g", metric="m", op="<=", target=0.5, on_miss=on_miss, inside_noise=noise)
    band = {0.7: (0.5, 0.9), 0.9: (0.8, 1.0), 0.1: (0.0, 0.2)}.get(value or 0, (None, None))
    if passed is None:
        passed = noise == "pass" or (noise is None and on_miss != "stop")
    result = judge(gate, None if value is None else metric(value, *band))
    assert (result.verdict, result.passed) == (found, passed)
    assert result.decision == ("go" if passed else "stop" if on_miss == "stop" else "investigate")
    assert result.stops is (result.decision == "stop")
    assert (result.low, result.high) == (band if value is not None else (None, None))


@pytest.mark.parametrize(
    ("op", "bound", "value", "decision"),
    [
        ("<", 3.0, 1.9, "go"), ("<", 3.0, 2.0, "investigate"), ("<", 3.0, 3.0, "investigate"), ("<", 3.0, 3.1, "stop"),
        ("<=", 2.0, 2.0, "go"), ("<=", 2.0, 2.1, "stop"), (">", 1.0, 2.1, "go"), (">", 1.0, 2.0, "investigate"),
        (">", 1.0, 1.0, "investigate"), (">", 1.0, 0.9, "stop"), (">=", 2.0, 1.9, "stop"), (">=", 1.0, math.nan, "stop"),
        ("<=", 3.0, None, "stop"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("on_miss", ["stop", "warn"])
def test_of_a_milestone_the_bound_decides_whatever_on_miss_says(
    op: Any, bound: float, value: float | None, decision: str, on_miss: Any
) -> None:
    gate = Gate(name="g", metric="m", op=op, target=2.0, stop_beyond=bound, on_miss=on_miss)
    result = judge(gate, None if value is None else metric(value))
    assert (result.decision, result.stops, result.stop_beyond) == (decision, decision == "stop", bound)


def test_a_result_holds_gate_and_measurement() -> None:
    gate = Gate(name="short answers", metric="m", op="<=", target=25, on_miss="stop", stop_beyond=30)
    result = judge(gate, metric(27.125, 26.5, 27.5))
    assert result == GateResult(
        "short answers", "m", "<=", 25.0, 27.125, 26.5, 27.5, "MISS", "stop", False, "investigate", 30.0
    )
    assert GateResult(**json.loads(json.dumps(result.to_json()))) == result


@pytest.mark.parametrize(
    ("op", "value", "line"),
    [
        ("<=", 27.1234567, "g: 27.1235, wanted <= 25 (MISS)"),
        (">", 27.0, "g: 27, wanted > 25 (PASS)"),
        ("==", None, "g: not measured, wanted == 25 (NOT RUN)"),
    ],
)
def test_the_line_of_a_gate(op: Any, value: float | None, line: str) -> None:
    gate = Gate(name="g", metric="m", op=op, target=25)
    assert judge(gate, None if value is None else metric(value)).line() == line


def test_each_gate_gets_its_own_metric() -> None:
    gates = [Gate(name=n, metric=n, op=">=", target=2) for n in ("a", "c", "b", "a")]
    results = judge_all(gates, [metric(1, name="a"), metric(2, name="b"), metric(3, name="z")])
    assert [(r.name, r.value, r.verdict) for r in results] == [
        ("a", 1, "MISS"), ("c", None, "NOT RUN"), ("b", 2, "PASS"), ("a", 1, "MISS"),
    ]  # fmt: skip
