"""Ship gates: what was measured against what was asked.

| verdict | when |
|---|---|
| NOT RUN | the metric was not measured (never a pass) |
| INSIDE NOISE | the metric has a noise band and the target lies in it (ends included) |
| PASS, MISS | otherwise, by comparison of the value with the target |

A band of no width is no noise, so value and target are compared. Only MISS sets off `on_miss`. A value
that is not a number is a MISS. A band says how far chance moves the number on questions of this kind; it
does not cover a wrong question set, a wrong reference answer, or another seed of training.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ikirere.common.intervals import inside_noise
from ikirere.programme.metrics import Metric
from ikirere.recipe.sections import Gate

Verdict = Literal["PASS", "MISS", "INSIDE NOISE", "NOT RUN"]

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}


@dataclass(frozen=True)
class GateResult:
    """A gate with its measured value, noise band and verdict."""

    name: str
    metric: str
    op: str
    target: float
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    on_miss: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def stops(self) -> bool:
        return self.verdict == "MISS" and self.on_miss == "stop"


def verdict(value: float, low: float | None, high: float | None, op: str, target: float) -> Verdict:
    """The verdict on a measured value."""
    if math.isnan(value):
        return "MISS"
    if inside_noise(target, low, high):
        return "INSIDE NOISE"
    return "PASS" if OPERATORS[op](value, target) else "MISS"


def judge(gate: Gate, metric: Metric | None) -> GateResult:
    """Judge one gate; `metric` is None where it was not measured."""
    if metric is None:
        return GateResult(
            gate.name, gate.metric, gate.op, gate.target, None, None, None, "NOT RUN", gate.on_miss
        )
    result = verdict(metric.value, metric.low, metric.high, gate.op, gate.target)
    return GateResult(
        gate.name,
        gate.metric,
        gate.op,
        gate.target,
        metric.value,
        metric.low,
        metric.high,
        result,
        gate.on_miss,
    )


def judge_all(gates: Iterable[Gate], metrics: Iterable[Metric]) -> list[GateResult]:
    """Judge a stage's gates by the names of its metrics."""
    by_name = {metric.name: metric for metric in metrics}
    return [judge(gate, by_name.get(gate.metric)) for gate in gates]
