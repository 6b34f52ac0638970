"""Small faults in Python source: each mutant changes one expression or deletes one statement.

Left alone: annotations, decorators, imports, docstrings, assertions and the text of messages.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,), ast.Add: (ast.Sub,), ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Mult,), ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,), ast.LShift: (ast.RShift,), ast.RShift: (ast.LShift,), ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}  # fmt: skip
# Calls of these with one argument may become the argument.
FUNCTIONS = frozenset({"abs", "ceil", "cumsum", "exp", "floor", "log", "round", "sorted", "sqrt", "square"})
SKIPPED = (ast.Import, ast.ImportFrom, ast.Assert, ast.JoinedStr)
SKIPPED_FIELDS = frozenset({"annotation", "returns", "decorator_list", "bases"})
DELETED = (ast.Raise, ast.Continue, ast.Break, ast.Delete, ast.AugAssign)


class Mutant(NamedTuple):
    """One change. `name` is the same for as long as the code that it changes is."""

    line: int
    name: str


def mutants(tree: ast.AST) -> Iterator[Mutant]:
    """Every mutant of `tree`, which is that mutant from its turn until the iterator goes on."""
    seen: Counter[str] = Counter()
    for scope, parent, field, index, node in _slots(tree, "module"):
        for replacement in _replacements(field, node):
            name = f"{scope}: {_shown(node)} -> {_shown(replacement)}"
            seen[name] += 1
            _put(parent, field, index, replacement)
            yield Mutant(node.lineno, name if seen[name] == 1 else f"{name} #{seen[name]}")
            _put(parent, field, index, node)


def _slots(node: ast.AST, scope: str) -> Iterator[tuple[str, ast.AST, str, int | None, Any]]:
    """(enclosing function or class, parent, field, index in the field, node) of all statements and expressions."""
    for field, value in ast.iter_fields(node):
        if field in SKIPPED_FIELDS:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if not isinstance(child, ast.AST) or isinstance(child, SKIPPED) or text:
                continue
            if isinstance(child, ast.stmt | ast.expr):
                yield scope, node, field, index, child
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            yield from _slots(child, child.name if named else scope)


def _replacements(field: str, node: Any) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in SWAPS[type(op)]:
                yield ast.Compare(node.left, [*node.ops[:i], other(), *node.ops[i + 1 :]], node.comparators)
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and not _joins_text(node):
        fields = dict(ast.iter_fields(node))
        for other in SWAPS.get(type(node.op), ()):
            yield type(node)(**{**fields, "op": other()})
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
        yield ast.Constant(node.value - 1)
    elif isinstance(node, ast.Call) and len(node.args) == 1 and _last_name(node.func) in FUNCTIONS:
        yield node.args[0]
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield ast.Return(ast.Constant(None))
    if (
        isinstance(node, DELETED)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript))
    ):
        yield ast.Pass()
    if field == "test" and not isinstance(node, ast.Compare | ast.UnaryOp):
        yield ast.UnaryOp(ast.Not(), node)


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _last_name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _joins_text(node: Any) -> bool:
    """Texts have no other arithmetic than +."""
    ends = (getattr(node, "left", None), getattr(node, "right", None))
    return any(
        isinstance(e, ast.JoinedStr) or (isinstance(e, ast.Constant) and isinstance(e.value, str))
        for e in ends
    )


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else text[:87] + "..."
