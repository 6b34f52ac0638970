"""The calculator against Python's own arithmetic, and against what people and models may send it."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.tools.calculator import MAX_DIGITS, CalculatorError, calculate, show
from ikirere.tools.registry import execute

FEW = settings(max_examples=60, deadline=None)


def answer(expression: str) -> str:
    return execute("calculator", {"expression": expression}).content


@FEW
@given(
    st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), st.sampled_from(["+", "-", "*", "//", "%"])
)
def test_integers_are_exact(a: int, b: int, op: str) -> None:
    if op in ("//", "%") and b == 0:
        assert answer(f"{a}{op}({b})") == "error: division by zero"
        return
    expected = {"+": a + b, "-": a - b, "*": a * b, "//": b and a // b, "%": b and a % b}[op]
    assert answer(f"{a}{op}({b})") == str(expected)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[str, Fraction]:
    """An expression of + - * / and parentheses, with its value as a fraction."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 9999))
        return str(number), Fraction(number)
    (left, a), (right, b) = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    op = draw(st.sampled_from("+-*/" if b else "+-*"))
    value = {"+": a + b, "-": a - b, "*": a * b, "/": b and a / b}[op]
    return f"({left} {op} {right})", value


@FEW
@given(expressions())
def test_nested_expressions_are_right(case: tuple[str, Fraction]) -> None:
    text, value = case
    got = calculate(text)
    if isinstance(got, int):
        assert got == value
    else:
        assert float(got) == pytest.approx(float(value), rel=1e-9, abs=1e-9)


@FEW
@given(st.text(max_size=60))
def test_any_text_gets_an_answer(text: str) -> None:
    result = execute("calculator", {"expression": text})
    assert result.ok != result.content.startswith("error:")
    assert "\n" not in result.content


@FEW
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_shown_numbers_are_close_and_short(x: float) -> None:
    text = show(x)
    assert float(text) == pytest.approx(x, rel=1e-11, abs=1e-300)
    assert len(text) <= 20 and not (("." in text) and "e" not in text and text.endswith("0"))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("2+3*4", "14"),
        ("-(3)**2", "-9"),
        ("2**-1", "0.5"),
        ("10/4", "2.5"),
        ("12/4", "3"),
        ("1/3", "0.333333333333"),
        ("0.1+0.2", "0.3"),
        ("sqrt(144)", "12"),
        ("sqrt(2)", "1.41421356237"),
        ("round(2.71828, 2)", "2.72"),
        ("max(3, 9, 4) - min(1, 2) + abs(-5)", "13"),
        ("7 // 2 + 7 % 4", "6"),
        ("(98.6-32)*5/9", "37"),
        ("10**99", "1" + "0" * 99),
        ("1e20*3", "3e+20"),
    ],
)
def test_values(expression: str, expected: str) -> None:
    assert answer(expression) == expected


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("", "empty"),
        ("9" * 201, "longer than 200 characters"),
        ("9**9**9**9", "exponent"),
        ("10**1000", "digits"),
        ("2**1001", "exponent"),
        ("2.0**5000", "exponent"),
        ("1e308*10", "too large"),
        ("1e999", "too large"),
        ("(-8)**0.5", "not real"),
        ("0**-1", "division by zero"),
        ("sqrt(-1)", "negative"),
        ("2^3", "** is the power"),
        ("x+1", "unknown name 'x'"),
        ("__import__('os').system('id')", "unknown function"),
        ("(1).__class__", "only numbers"),
        ("'a'*10", "only numbers"),
        ("True+1", "only numbers"),
        ("1j", "only numbers"),
        ("[1,2]", "only numbers"),
        ("lambda: 1", "only numbers"),
        ("1 if 2 else 3", "only numbers"),
        ("1 < 2", "only numbers"),
        ("abs()", "abs takes 1 numbers"),
        ("max(*[1,2])", "max takes"),
        ("round(1.5, 99)", "round takes"),
        ("round(1, ndigits=2)", "round takes"),
        ("2 +", "not an arithmetic expression"),
        ("1\n2", "not an arithmetic expression"),
        ("(" * 100 + "1" + ")" * 99, "not an arithmetic expression"),
        ("-" * 199 + "1", ""),
        ("1\x002", "not an arithmetic expression"),
    ],
)
def test_hostile_expressions_get_one_clear_line(expression: str, part: str) -> None:
    begin = time.perf_counter()
    text = answer(expression)
    assert time.perf_counter() - begin < 5.0
    assert part in text and "\n" not in text
    if part:
        assert text.startswith("error: ")


def test_results_are_bounded() -> None:
    with pytest.raises(CalculatorError, match="digits"):
        calculate(f"{'9' * 99}*{'9' * 99}")
    assert len(answer("9**104")) == MAX_DIGITS
