"""Metrics that can be derived again from raw results.

A stage never reports a bare number: it writes raw results to a JSONL file in its folder and names how
the metric follows from them. `ikirere verify` reads the same description and computes it again.

| kind | value | interval |
|---|---|---|
| scalar | the field of the file's only row | none |
| mean | mean of a numeric field | bootstrap over rows |
| proportion | mean of a 0/1 field | Wilson score (Wilson 1927) |
| ratio | sum(field) / sum(over) | bootstrap over rows |
| difference | mean(field - over), rows paired | bootstrap over rows |
| exp-ratio | exp(sum(field) / sum(over)) | bootstrap over rows |
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ikirere.common.files import read_rows
from ikirere.common.intervals import bootstrap, wilson
from ikirere.errors import UserError

Kind = Literal["scalar", "mean", "proportion", "ratio", "difference", "exp-ratio"]


@dataclass(frozen=True)
class Metric:
    """A number, its noise band (None where it has none) and where it comes from."""

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    kind: Kind
    raw: str  # JSONL file, relative to the stage's folder
    field: str
    over: str | None = None
    where: dict[str, Any] | None = None  # rows used: those whose fields equal these
    confidence: float = 0.95

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    folder: Path,
    name: str,
    kind: Kind,
    raw: str,
    field: str,
    over: str | None = None,
    where: dict[str, Any] | None = None,
    confidence: float = 0.95,
) -> Metric:
    """Derive a metric from `folder/raw`. Deterministic. Raises UserError where rows or fields are missing."""
    rows = [row for row in read_rows(folder / raw) if all(row.get(k) == v for k, v in (where or {}).items())]
    if not rows:
        raise UserError(f"{folder / raw}: no rows for metric {name}" + (f" where {where}" if where else ""))
    try:
        a = np.array([float(row[field]) for row in rows])
        b = np.array([float(row[over]) for row in rows]) if over else None
    except KeyError as error:
        raise UserError(f"{folder / raw}: rows lack the field {error} of metric {name}") from None
    low: float | None = None
    high: float | None = None
    if kind == "scalar":
        if len(a) != 1:
            raise UserError(f"{folder / raw}: metric {name} is a scalar, {len(a)} rows match")
        value = float(a[0])
    elif kind == "proportion":
        value = float(a.mean())
        low, high = wilson(float(a.sum()), len(a), confidence)
    elif kind in ("mean", "difference"):
        a = a - b if b is not None else a
        value = float(a.mean())
        if len(a) > 1:
            low, high = bootstrap(a, None, confidence, False)
    else:
        if b is None:
            raise UserError(f"metric {name}: kind {kind} needs `over`")
        exp = kind == "exp-ratio"
        value = float(a.sum() / b.sum())
        value = math.exp(value) if exp else value
        if len(a) > 1:
            low, high = bootstrap(a, b, confidence, exp)
    return Metric(name, value, low, high, len(a), kind, raw, field, over, where, confidence)
