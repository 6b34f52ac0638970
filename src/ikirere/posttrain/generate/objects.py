"""Python's own objects with the first line of their docstrings, as questions for ordinary chat."""

from __future__ import annotations

import builtins
import importlib
import inspect
from functools import lru_cache

MODULES = (
    "bisect",
    "collections",
    "copy",
    "fnmatch",
    "functools",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "os.path",
    "random",
    "shutil",
    "statistics",
    "string",
    "textwrap",
)
TYPES = (str, list, dict, set)
LONGEST = 70  # characters of an answer


def _line(thing: object) -> str | None:
    text = inspect.getdoc(thing)
    line = text.strip().split("\n")[0].strip() if text and text.strip() else ""
    fits = 12 <= len(line) <= LONGEST and line.isascii() and "(" not in line and " " in line
    return line.rstrip(".") + "." if fits else None


@lru_cache(maxsize=1)
def facts() -> tuple[tuple[str, str], ...]:
    """(name, first line of its docstring) of builtins, methods of the basic types and common modules."""
    found: dict[str, str] = {}
    things = [(name, getattr(builtins, name)) for name in dir(builtins) if name[0].islower()]
    for kind in TYPES:
        things += [(f"{kind.__name__}.{name}", getattr(kind, name)) for name in dir(kind) if name[0] != "_"]
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None) or [n for n in dir(module) if n[0] != "_"]
        things += [
            (f"{module_name}.{name}", getattr(module, name))
            for name in sorted(names)
            if name[0].islower() and callable(getattr(module, name, None))
        ]
    for name, thing in things:
        line = _line(thing)
        if line is not None:
            found.setdefault(name, line)
    return tuple(sorted(found.items()))
