"""A module's documentation out of its source: the docstrings of module, classes and functions, by `ast`."""

from __future__ import annotations

import ast
import gc
import warnings
from collections.abc import Iterator

Node = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
LEVELS = 6  # headings below this depth do not exist in Markdown
TRIVIAL = 200  # characters of docstrings below which a module has no documentation worth a document


def documentation(source: str, module: str) -> str | None:
    """Markdown with a heading per documented thing (its signature for functions), or None where the source is no
    Python of this version or its docstrings have fewer than TRIVIAL characters together."""
    if '"""' not in source and "'''" not in source:
        return None
    tree = _parse(source)
    if tree is None:
        return None
    parts = [f"# {module}"]
    length = 0
    if text := ast.get_docstring(tree):
        parts.append(text)
        length += len(text)
    for heading, text in _members(tree, "", 2):
        parts += [heading, text]
        length += len(text)
    return "\n\n".join(parts) + "\n" if length >= TRIVIAL else None


def _parse(source: str) -> ast.Module | None:
    # The collector would walk the growing tree again and again; without it parsing is a fifth faster.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    finally:
        if collecting:
            gc.enable()


def _members(parent: ast.Module | Node, prefix: str, level: int) -> Iterator[tuple[str, str]]:
    for node in parent.body:
        if not isinstance(node, Node):
            continue
        name = prefix + node.name
        if text := ast.get_docstring(node):
            yield f"{'#' * min(level, LEVELS)} {_signature(node, name)}", text
        if isinstance(node, ast.ClassDef):
            yield from _members(node, f"{name}.", level + 1)


def _signature(node: Node, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {name}({bases})" if bases else f"class {name}"
    return f"{name}({ast.unparse(node.args)})"
