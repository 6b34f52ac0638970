"""What a tool gives back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ToolResult:
    """`content` is the text the model reads; where `ok` is False it is the error message."""

    ok: bool
    content: str
