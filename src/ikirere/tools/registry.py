"""The tools, by name: their definitions for a prompt, and their execution.

`execute` never raises: whatever a model wrote, it gets a result to read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from ikirere.errors import UserError
from ikirere.tools.calculator import Calculator
from ikirere.tools.python_exec import PythonExec
from ikirere.tools.result import ToolResult

__all__ = ["TOOLS", "Tool", "ToolCall", "ToolResult", "definitions", "execute"]


class Tool(Protocol):
    """Something a model may call. `parameters` is a JSON schema of type object."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def parameters(self) -> dict[str, Any]: ...

    def call(self, arguments: dict[str, Any]) -> ToolResult:
        """The result for arguments that satisfy `parameters`."""


@dataclass(frozen=True)
class ToolCall:
    """A tool's name and the arguments it is to be called with."""

    name: str
    arguments: dict[str, Any]


TOOLS: dict[str, Tool] = {tool.name: tool for tool in (Calculator(), PythonExec())}


def definitions(names: Iterable[str]) -> list[dict[str, Any]]:
    """OpenAI tool definitions, in the order of `names`. Raises UserError for a name that is not a tool."""
    found = []
    for name in names:
        tool = TOOLS.get(name)
        if tool is None:
            raise UserError(f"tool {name!r}: no such tool; tools are {', '.join(TOOLS)}")
        found.append(
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                },
            }
        )
    return found


@lru_cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(TOOLS[name].parameters)


def execute(name: str, arguments: Any) -> ToolResult:
    """Validate `arguments` against the tool's schema and call it. Failures are results with ok False."""
    if name not in TOOLS:
        return ToolResult(False, f"error: no tool {str(name)[:40]!r}; tools are {', '.join(TOOLS)}")
    try:
        problem = next(_validator(name).iter_errors(arguments), None)
        if problem is not None:
            return ToolResult(False, f"error: arguments: {problem.message[:200]}")
        return TOOLS[name].call(arguments)
    except Exception as error:
        return ToolResult(False, f"error: {type(error).__name__}: {str(error)[:200]}")
