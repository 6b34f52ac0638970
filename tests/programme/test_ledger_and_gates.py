"""The ledger's durability and chain; the logic of verdicts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.common.intervals import OPERATORS, verdict, wilson
from ikirere.programme.gates import judge, judge_all
from ikirere.programme.ledger import Ledger, broken_at, damaged_lines, last, read_events
from ikirere.programme.metrics import Metric
from ikirere.recipe.sections import Gate

QUICK = settings(max_examples=60, deadline=None)
finite = st.floats(-1e6, 1e6)
values = st.dictionaries(
    st.sampled_from(["stage", "key", "note", "many"]),
    st.one_of(st.text(), st.integers(), st.none(), st.booleans(), finite, st.lists(st.text())),
)


@QUICK
@given(st.lists(values, max_size=6), st.data())
def test_a_ledger_cut_anywhere_is_a_true_beginning(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger = Ledger(path)
    for row in rows:
        ledger.append("note", **row)
    whole = read_events(path) if rows else []
    assert [{key: event[key] for key in row} for event, row in zip(whole, rows)] == rows
    content = path.read_bytes() if rows else b""
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    cut = read_events(path)
    assert cut == whole[: len(cut)]
    again = Ledger(path)
    again.append("after")
    assert [event["event"] for event in read_events(path)] == ["note"] * len(cut) + ["after"]
    assert broken_at(read_events(path)) is None


def test_a_changed_line_breaks_the_chain_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for number in range(5):
        ledger.append("note", number=number)
    assert broken_at(read_events(path)) is None
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([*lines[:2], lines[2].replace('"number": 2', '"number": 9'), *lines[3:]]) + "\n"
    )
    assert broken_at(read_events(path)) == 3
    path.write_text("\n".join([*lines[:2], *lines[3:]]) + "\n")
    assert broken_at(read_events(path)) == 3


def test_a_spoilt_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append("one")
    ledger.append("two")
    first, second = path.read_text().splitlines()
    path.write_text(f"{first[:-5]}\n{second}\n")
    assert [event["event"] for event in read_events(path)] == ["two"], "nothing but the line is lost"
    assert damaged_lines(path) == [1]
    assert broken_at(read_events(path)) == 1
    again = Ledger(path)
    again.append("three")
    assert [event["event"] for event in read_events(path)] == ["two", "three"]
    assert damaged_lines(path) == [1]


def test_last_finds_the_newest_of_the_kinds(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("started", stage="a")
    ledger.append("ended", stage="a", value=1)
    ledger.append("ended", stage="b", value=2)
    found = last(ledger.events, "a", "started", "ended")
    assert found is not None
    assert (found[0], found[1]["value"]) == (1, 1)
    assert last(ledger.events, "c", "ended") is None


def metric(value: float, low: float | None = None, high: float | None = None) -> Metric:
    return Metric("m", value, low, high, 10, "mean", "rows.jsonl", "x")


@QUICK
@given(finite, finite, st.sampled_from(sorted(OPERATORS)))
def test_without_a_band_the_comparison_decides(value: float, target: float, op: str) -> None:
    right = {">=": value >= target, "<=": value <= target, ">": value > target, "<": value < target}
    expected = right.get(op, value == target)
    assert verdict(value, None, None, op, target) == ("PASS" if expected else "MISS")
    assert verdict(value, value, value, op, target) == ("PASS" if expected else "MISS"), "no width, no noise"


@QUICK
@given(finite, st.floats(0.001, 100), st.floats(0.001, 100), finite, st.sampled_from(sorted(OPERATORS)))
def test_inside_noise_exactly_when_the_band_holds_the_target(
    value: float, below: float, above: float, target: float, op: str
) -> None:
    low, high = value - below, value + above
    found = verdict(value, low, high, op, target)
    assert (found == "INSIDE NOISE") == (low <= target <= high)
    if found != "INSIDE NOISE":
        assert found == verdict(value, None, None, op, target)


@QUICK
@given(st.integers(1, 500), st.data(), st.floats(0, 1))
def test_a_pass_is_never_bought_by_noise(n: int, data: st.DataObject, target: float) -> None:
    """With Wilson's band, PASS of >= means that even the low end reaches the target."""
    right = data.draw(st.integers(0, n))
    low, high = wilson(right, n, 0.95)
    if verdict(right / n, low, high, ">=", target) == "PASS":
        assert low >= target
    if verdict(right / n, low, high, ">=", target) == "MISS":
        assert high < target


def test_all_right_does_not_prove_always_right() -> None:
    for n in range(1, 300):
        assert verdict(1.0, *wilson(n, n, 0.95), ">=", 1.0) == "INSIDE NOISE"
        assert verdict(0.0, *wilson(0, n, 0.95), "<=", 0.0) == "INSIDE NOISE"


def test_not_measured_is_never_a_pass() -> None:
    gate = Gate(name="g", metric="m", op="<=", target=1e9, on_miss="stop")
    judged = judge(gate, None)
    assert (judged.verdict, judged.value, judged.stops) == ("NOT RUN", None, True)
    assert not judge(gate.model_copy(update={"on_miss": "warn"}), None).passed
    assert verdict(math.nan, 0.0, 1.0, ">=", 0.5) == "MISS"
    assert verdict(math.inf, None, None, ">=", 0.5) == "PASS"


def test_gates_find_their_metric_by_name_and_what_has_not_passed_stops() -> None:
    gates = [
        Gate(name="a", metric="m", op=">=", target=0.5, on_miss="stop"),
        Gate(name="b", metric="m", op=">=", target=2.0, on_miss="stop"),
        Gate(name="c", metric="m", op=">=", target=2.0, on_miss="record"),
        Gate(name="d", metric="other", op=">=", target=0.5, on_miss="stop"),
        Gate(name="e", metric="m", op=">=", target=1.05, on_miss="stop"),
    ]
    judged = judge_all(gates, [metric(1.0, 0.9, 1.1)])
    assert [gate.verdict for gate in judged] == ["PASS", "MISS", "MISS", "NOT RUN", "INSIDE NOISE"]
    assert [gate.stops for gate in judged] == [False, True, False, True, True]
    assert json.loads(json.dumps(judged[0].to_json()))["low"] == 0.9


@pytest.mark.parametrize(
    ("op", "stop", "value", "decision"),
    [
        ("<=", 30.0, 25.0, "go"),
        ("<=", 30.0, 25.1, "investigate"),
        ("<=", 30.0, 30.0, "investigate"),
        ("<=", 30.0, 30.1, "stop"),
        ("<=", 30.0, math.nan, "stop"),
        ("<=", 30.0, None, "stop"),
        (">=", 20.0, 24.9, "investigate"),
        (">=", 20.0, 20.0, "investigate"),
        (">=", 20.0, 19.9, "stop"),
    ],
)
def test_a_milestone_goes_is_investigated_or_stops(
    op: Any, stop: float, value: float | None, decision: str
) -> None:
    gate = Gate(name="g", metric="m", op=op, target=25.0, stop_beyond=stop)
    judged = judge(gate, None if value is None else metric(value, None, None))
    assert (judged.decision, judged.stops) == (decision, decision == "stop")


@pytest.mark.parametrize(("noise", "on_miss", "passed"), [(None, "stop", False), (None, "warn", True),
                                                          ("pass", "stop", True), ("miss", "warn", False)])  # fmt: skip
def test_a_gate_says_what_noise_counts_as(noise: Any, on_miss: Any, passed: bool) -> None:
    gate = Gate(name="g", metric="m", op=">=", target=0.5, on_miss=on_miss, inside_noise=noise)
    judged = judge(gate, metric(0.55, 0.45, 0.65))
    assert (judged.verdict, judged.passed) == ("INSIDE NOISE", passed)
