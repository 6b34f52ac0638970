"""Arithmetic by a walk over the syntax tree, within bounds.

Accepted: decimal and hexadecimal numbers, + - * / // % **, unary + and -, parentheses, and the functions
abs, max, min, round, sqrt. Everything else is refused by name. Nothing is ever evaluated as code.

Integers stay exact; a division that comes out even is an integer; other numbers have up to 12 significant
digits. The bounds (length, exponent, digits) keep any call below a few milliseconds.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

from ikirere.tools.result import ToolResult

MAX_LENGTH = 200  # characters of an expression
MAX_EXPONENT = 1000
MAX_DIGITS = 100  # of any integer, on the way and in the result
_LIMIT = 10**MAX_DIGITS

Number = int | float


class CalculatorError(Exception):
    """One line that names what is wrong with the expression."""


def _power(base: Number, exponent: Number) -> Number:
    if abs(exponent) > MAX_EXPONENT:
        raise CalculatorError(f"exponent larger than {MAX_EXPONENT}")
    if base == 0 and exponent < 0:
        raise CalculatorError("division by zero")
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        if abs(base) > 1 and (abs(base).bit_length() - 1) * exponent > _LIMIT.bit_length():
            raise CalculatorError(f"result has more than {MAX_DIGITS} digits")
        return base**exponent
    value: Any = base**exponent
    if isinstance(value, complex):
        raise CalculatorError("power of a negative number is not real")
    return value


def _divide(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int) and b and a % b == 0:
        return a // b
    return a / b


def _sqrt(x: Number) -> Number:
    if x < 0:
        raise CalculatorError("sqrt of a negative number")
    if isinstance(x, int) and math.isqrt(x) ** 2 == x:
        return math.isqrt(x)
    return math.sqrt(x)


def _round(x: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > 15:
        raise CalculatorError("round takes between -15 and 15 decimals")
    return round(x, digits) if digits else round(x)


_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
FUNCTIONS: dict[str, tuple[Callable[..., Number], int, int]] = {  # name: function, least and most arguments
    "abs": (abs, 1, 1),
    "max": (max, 2, 50),
    "min": (min, 2, 50),
    "round": (_round, 1, 2),
    "sqrt": (_sqrt, 1, 1),
}


def _checked(value: Number) -> Number:
    if isinstance(value, int):
        if abs(value) >= _LIMIT:
            raise CalculatorError(f"result has more than {MAX_DIGITS} digits")
    elif not math.isfinite(value):
        raise CalculatorError("result is too large")
    return value


def _call(node: ast.Call) -> Number:
    name = node.func.id if isinstance(node.func, ast.Name) else None
    if name not in FUNCTIONS:
        raise CalculatorError(f"unknown function; functions are {', '.join(FUNCTIONS)}")
    function, least, most = FUNCTIONS[name]
    if node.keywords or not least <= len(node.args) <= most:
        raise CalculatorError(f"{name} takes {least if least == most else f'{least} to {most}'} numbers")
    return function(*(_walk(argument) for argument in node.args))


def _walk(node: ast.AST) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _checked(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _checked(_BINARY[type(node.op)](_walk(node.left), _walk(node.right)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_walk(node.operand))
    if isinstance(node, ast.Call):
        return _checked(_call(node))
    if isinstance(node, ast.Name):
        raise CalculatorError(f"unknown name {node.id[:20]!r}; only numbers are known")
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
        raise CalculatorError("^ is not an operator here; ** is the power")
    raise CalculatorError("only numbers, + - * / // % ** and parentheses are accepted")


def calculate(expression: str) -> Number:
    """The value of an expression. Raises CalculatorError."""
    text = expression.strip()
    if not text:
        raise CalculatorError("empty expression")
    if len(text) > MAX_LENGTH:
        raise CalculatorError(f"expression longer than {MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as "invalid decimal literal" for 1if
            tree = ast.parse(text, mode="eval")
        return _walk(tree.body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise CalculatorError("not an arithmetic expression") from None
    except ZeroDivisionError:
        raise CalculatorError("division by zero") from None
    except OverflowError:
        raise CalculatorError("result is too large") from None


def show(value: Number) -> str:
    """Integers in full, other numbers with up to 12 significant digits and no trailing zeros."""
    if isinstance(value, int):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.12g}"


class Calculator:
    """`calculator(expression)`: the value of an arithmetic expression."""

    name = "calculator"
    description = "math"
    parameters: dict[str, Any] = {  # noqa: RUF012
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
        "additionalProperties": False,
    }

    def call(self, arguments: dict[str, Any]) -> ToolResult:
        """{"expression": str} -> the number, or a line that names what is wrong."""
        try:
            return ToolResult(True, show(calculate(arguments["expression"])))
        except CalculatorError as error:
            return ToolResult(False, f"error: {error}")
