"""What a section of the report is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ikirere.report.tables import Table


@dataclass
class Figure:
    svg: str
    caption: str


@dataclass
class Block:
    """One section: a heading, figures, tables, texts and transcripts."""

    title: str
    note: str = ""
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    texts: list[dict[str, str]] = field(default_factory=list)
    chats: list[dict[str, Any]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.figures or self.tables or self.texts or self.chats)
