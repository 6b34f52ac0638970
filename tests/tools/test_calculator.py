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


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("7/2", "3.5"),
        ("-7/2", "-3.5"),
        ("7/2.0", "3.5"),
        ("6/2.0", "3"),
        ("0/5", "0"),
        ("2/4", "0.5"),
        ("sqrt(0)", "0"),
        ("sqrt(2.25)", "1.5"),
        (f"sqrt({7 * 10**49}**2)", str(7 * 10**49)),
        ("round(2.5)", "2"),
        ("round(1234.5678, -2)", "1200"),
        ("round(1250, -2)", "1200"),
        ("round(1/3, 15) * 10**15", "333333333333333"),
        ("round(10**15 + 4, -15)", "1000000000000000"),
        ("0**0", "1"),
        ("1**-1", "1"),
        ("1**-1000", "1"),
        ("0**2", "0"),
        ("0.0**0.5", "0"),
        ("0**1.5", "0"),
        ("5**1", "5"),
        ("(-2)**3", "-8"),
        ("(-2)**-2", "0.25"),
        ("4**0.5", "2"),
        ("1**1000", "1"),
        ("(-1)**999", "-1"),
        ("2**-1000", "9.33263618503e-302"),
        ("10.0**200", "1e+200"),
        ("2**332", str(2**332)),
        ("(-2)**331", str(-(2**331))),
        ("3**209", str(3**209)),
        ("+3 - -2", "5"),
        ("max(" + ",".join(map(str, range(50))) + ")", "49"),
        ("1" + "+1" * 99 + " ", "100"),
        (" " * 300 + "1" * 100 + " " * 300, "1" * 100),
        ("0x1F", "31"),
        ("999999999999999.0", "999999999999999"),
        ("1e15", "1e+15"),
        ("-1e15", "-1e+15"),
        ("1.5e14 + 0.5", "1.5e+14"),
    ],
)
def test_more_values(expression: str, expected: str) -> None:
    assert answer(expression) == expected


@pytest.mark.parametrize(
    ("expression", "line"),
    [
        ("1**1001", "exponent larger than 1000"),
        ("2**-1001", "exponent larger than 1000"),
        ("0**-0.5", "division by zero"),
        ("0.0**-1", "division by zero"),
        ("1/0", "division by zero"),
        ("1/0.0", "division by zero"),
        ("1.5//0", "division by zero"),
        ("sqrt()", "sqrt takes 1 numbers"),
        ("sqrt(1, 2)", "sqrt takes 1 numbers"),
        ("abs(1, 2)", "abs takes 1 numbers"),
        ("max(1)", "max takes 2 to 50 numbers"),
        ("min(1)", "min takes 2 to 50 numbers"),
        ("min(" + ",".join("1" * 51) + ")", "min takes 2 to 50 numbers"),
        ("round(1, 2, 3)", "round takes 1 to 2 numbers"),
        ("round()", "round takes 1 to 2 numbers"),
        ("round(1.5, 16)", "round takes between -15 and 15 decimals"),
        ("round(1.5, -16)", "round takes between -15 and 15 decimals"),
        ("round(1.5, 1.0)", "round takes between -15 and 15 decimals"),
        ("sqrt(-0.5)", "sqrt of a negative number"),
        ("2**333", "result has more than 100 digits"),
        ("10**99 * 10", "result has more than 100 digits"),
        ("-(10**99) * 10", "result has more than 100 digits"),
        ("1" * 101, "result has more than 100 digits"),
        ("1e200 * 1e200", "result is too large"),
        ("10.0**999", "result is too large"),
        ("1" + "+1" * 100, "expression longer than 200 characters"),
        ("hypot(1, 2)", "unknown function; functions are abs, max, min, round, sqrt"),
        ("abs.real(1)", "unknown function; functions are abs, max, min, round, sqrt"),
        ("a_name_of_more_than_twenty_letters", "unknown name 'a_name_of_more_than_'; only numbers are known"),
        ("1 @ 2", "only numbers, + - * / // % ** and parentheses are accepted"),
        ("~1", "only numbers, + - * / // % ** and parentheses are accepted"),
        ("1 | 2", "only numbers, + - * / // % ** and parentheses are accepted"),
        ("   ", "empty expression"),
    ],
)
def test_what_is_refused_is_named(expression: str, line: str) -> None:
    assert answer(expression) == f"error: {line}"


def test_integers_stay_integers() -> None:
    for expression in ("12/4", "sqrt(144)", "2**10", "round(2.7)", "-(3)", "7//2", "max(1, 2)"):
        assert isinstance(calculate(expression), int), expression
    for expression in ("12/5", "sqrt(2)", "2**-1", "round(2.75, 1)", "12/4.0"):
        assert isinstance(calculate(expression), float), expression


def test_a_warning_of_the_parser_stays_quiet(recwarn: pytest.WarningsRecorder) -> None:
    assert answer("1if 2else 3").startswith("error: only numbers")
    assert not recwarn.list


def test_the_bound_on_powers_comes_before_the_work() -> None:
    """(10^99)^1000 has 99,001 digits; it is refused without being computed."""
    begin = time.perf_counter()
    for _ in range(200):
        with pytest.raises(CalculatorError, match="more than 100 digits"):
            calculate("(10**99)**1000")
    assert time.perf_counter() - begin < 1.0
