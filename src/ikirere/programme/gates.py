"""Ship gates: what was measured against what was asked.

| verdict | when | passed |
|---|---|---|
| NOT RUN | the metric was not measured | never |
| INSIDE NOISE | the metric has a noise band and the target lies in it (ends included) | as `inside_noise` sets: by default not where `on_miss` is stop |
| PASS, MISS | otherwise, by comparison of the value with the target | PASS |

A gate that has not passed and whose `on_miss` is stop blocks: the run ends there, DO NOT SHIP. A gate with `stop_beyond`
has three decisions instead: go (passed), investigate (between target and that bound: the run continues, the gate is
listed), stop (beyond it, or not measured).

A value that is not a number is a MISS. A band shows how far chance moves the number on questions of this kind; it does
not cover a wrong question set, a wrong reference answer, or another seed of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ikirere.common.intervals import Verdict, verdict
from ikirere.programme.metrics import Metric
from ikirere.recipe.sections import Gate

Decision = Literal["go", "investigate", "stop"]


@dataclass(frozen=True)
class GateResult:
    """A gate with its measured value, noise band, verdict and what follows from it."""

    name: str
    metric: str
    op: str
    target: float
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    on_miss: str
    passed: bool
    decision: Decision
    stop_beyond: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def stops(self) -> bool:
        """Whether the run ends here and the result is not to be shipped."""
        return self.decision == "stop"

    def line(self) -> str:
        """`perplexity at 50k: 27.1, wanted <= 25 (INSIDE NOISE)`."""
        value = "not measured" if self.value is None else f"{self.value:.6g}"
        return f"{self.name}: {value}, wanted {self.op} {self.target:g} ({self.verdict})"


def _decision(gate: Gate, value: float | None, passed: bool) -> Decision:
    if passed:
        return "go"
    if gate.stop_beyond is None:
        return "stop" if gate.on_miss == "stop" else "investigate"
    if value is None or math.isnan(value):
        return "stop"
    # Of a bound that itself still goes, `<` and `<=` are alike: beyond it is beyond it.
    beyond = value > gate.stop_beyond if "<" in gate.op else value < gate.stop_beyond
    return "stop" if beyond else "investigate"


def judge(gate: Gate, metric: Metric | None) -> GateResult:
    """Judge one gate; `metric` is None where it was not measured."""
    value, low, high = (metric.value, metric.low, metric.high) if metric else (None, None, None)
    found: Verdict = "NOT RUN" if value is None else verdict(value, low, high, gate.op, gate.target)
    noise = gate.inside_noise or ("miss" if gate.on_miss == "stop" else "pass")
    passed = found == "PASS" or (found == "INSIDE NOISE" and noise == "pass")
    return GateResult(
        gate.name, gate.metric, gate.op, gate.target, value, low, high, found, gate.on_miss, passed,
        _decision(gate, value, passed), gate.stop_beyond,
    )  # fmt: skip


def judge_all(gates: Iterable[Gate], metrics: Iterable[Metric]) -> list[GateResult]:
    """Judge a stage's gates by the names of its metrics."""
    by_name = {metric.name: metric for metric in metrics}
    return [judge(gate, by_name.get(gate.metric)) for gate in gates]
