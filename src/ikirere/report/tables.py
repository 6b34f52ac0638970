"""Numbers as people read them, and small tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ikirere.programme.progress import clock

NOT_MEASURED = "not measured"


@dataclass
class Table:
    """Rows of text under a head; `numeric` are the columns set flush right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: set[int] = field(default_factory=set)
    title: str = ""


def number(value: float | None) -> str:
    """Three significant digits for small numbers, thousands separators for large ones."""
    if value is None:
        return NOT_MEASURED
    if value != value or abs(value) == float("inf"):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.1f}"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.2e}"


def band(item: Mapping[str, Any]) -> str:
    """The noise band of a metric or gate."""
    if item.get("low") is None or item.get("high") is None:
        return ""
    return f"{number(item['low'])} to {number(item['high'])}"


def measured(metric: Mapping[str, Any] | None) -> str:
    """A value with its band."""
    if metric is None:
        return NOT_MEASURED
    shown = band(metric)
    return number(metric["value"]) + (f" ({shown})" if shown else "")


def percent(metric: Mapping[str, Any] | None) -> str:
    """A proportion with its band, in percent."""
    if metric is None:
        return NOT_MEASURED
    shown = f"{100 * metric['value']:.1f}%"
    if metric.get("low") is not None:
        shown += f" ({100 * metric['low']:.0f} to {100 * metric['high']:.0f})"
    return shown


def setting(value: Any) -> str:
    """A value of the recipe, shortened."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list) else str(value)
    return text if len(text) <= 160 else text[:157] + "..."


def size(bytes_: float | None) -> str:
    """Bytes in decimal units."""
    if bytes_ is None:
        return NOT_MEASURED
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_ >= scale:
            return f"{bytes_ / scale:.2f} {unit}"
    return f"{bytes_:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds below a minute, then minutes:seconds or hours:minutes:seconds."""
    if seconds is None:
        return NOT_MEASURED
    return f"{seconds:.1f} s" if seconds < 59.95 else clock(seconds)
