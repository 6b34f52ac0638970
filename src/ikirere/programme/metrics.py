"""Metrics that can be derived again from raw results.

A stage never reports a bare number: it writes raw results to a JSONL file in its folder and names how
the metric follows from them. `ikirere verify` reads the same description and computes it anew.

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

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from ikirere.errors import UserError

Kind = Literal["scalar", "mean", "proportion", "ratio", "difference", "exp-ratio"]
BOOTSTRAP = 2000


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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file. Raises UserError naming file and line."""
    rows = []
    try:
        with path.open(encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise UserError(f"{path}:{number}: not JSON ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return rows


def wilson(successes: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson score interval of a proportion."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The interval holds p itself; at 0 and 1 rounding would put an end just beside it.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def _bootstrap(
    a: np.ndarray, b: np.ndarray | None, confidence: float, exp: bool
) -> tuple[float, float] | tuple[None, None]:
    """Percentiles over resampled rows. A draw of rows whose denominators add up to 0 says nothing and is left out; no
    band where none is left."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(BOOTSTRAP):
        pick = rng.integers(0, len(a), len(a))
        below = len(pick) if b is None else b[pick].sum()
        if below:
            found.append(a[pick].sum() / below)
    if not found:
        return None, None
    values = np.exp(found) if exp else np.array(found)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


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
            low, high = _bootstrap(a, None, confidence, False)
    else:
        if b is None:
            raise UserError(f"metric {name}: kind {kind} needs `over`")
        exp = kind == "exp-ratio"
        value = float(a.sum() / b.sum())
        value = math.exp(value) if exp else value
        if len(a) > 1:
            low, high = _bootstrap(a, b, confidence, exp)
    return Metric(name, value, low, high, len(a), kind, raw, field, over, where, confidence)
