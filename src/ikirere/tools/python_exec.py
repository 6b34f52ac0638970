"""`python_exec(code)`: runs Python in the sandbox. `sandbox.py` lists what that protects against."""

from __future__ import annotations

from typing import Any

from ikirere.tools import sandbox
from ikirere.tools.result import ToolResult


class PythonExec:
    """Runs code and gives back what it printed and the value of its last expression."""

    name = "python_exec"
    description = "run Python"
    parameters: dict[str, Any] = {  # noqa: RUF012
        "type": "object",
        "properties": {"code": {"type": "string"}},
        "required": ["code"],
        "additionalProperties": False,
    }

    def __init__(self, limits: sandbox.Limits | None = None) -> None:
        self.limits = limits or sandbox.Limits()

    def call(self, arguments: dict[str, Any]) -> ToolResult:
        """{"code": str} -> the output; "(no output)" where there is none."""
        result = sandbox.run(arguments["code"], self.limits)
        return ToolResult(result.ok, result.content or "(no output)")
