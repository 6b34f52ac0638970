"""What a tool gives back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ToolResult:
    """`content` is the text the model reads; where `ok` is False it says what went wrong."""

    ok: bool
    content: str
