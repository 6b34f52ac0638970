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
class ReportSection:
    """A heading, figures, tables, texts and transcripts. warning: why its numbers are not current. marks: how they were
    made otherwise than they would be now. Both are empty where nothing is reported."""

    title: str
    note: str = ""
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    texts: list[dict[str, str]] = field(default_factory=list)
    chats: list[dict[str, Any]] = field(default_factory=list)
    warning: str = ""
    marks: str = ""

    @property
    def empty(self) -> bool:
        return not (self.figures or self.tables or self.texts or self.chats)
