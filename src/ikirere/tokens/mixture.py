"""Which domain each row of a phase comes from.

The j-th row of a domain with weight w falls due at time (j + 1/2) / w; rows are assigned in the order in which
they fall due (Sainte-Laguë apportionment, one row after another: always the domain that is furthest below its
share). So the count of a domain after n rows is within 1/2 + D w / 2 of w n for D domains, at every n, and any
stretch of the sequence can be computed without what went before: no state, no random draw.
"""

from __future__ import annotations

import numpy as np


class Schedule:
    """The endless sequence of domain indices for some weights (normalised here; each above 0)."""

    def __init__(self, weights: list[float]) -> None:
        total = sum(weights)
        self.weights = np.array([w / total for w in weights], dtype=np.float64)

    def _due_before(self, time: float) -> np.ndarray:
        """Rows of each domain that fall due strictly before `time`."""
        counts = np.maximum(np.ceil(self.weights * time - 0.5), 0).astype(np.int64)
        # The estimate can be one off by rounding; the test below is the very expression that `rows` sorts by.
        while (late := (counts > 0) & ((counts - 0.5) / self.weights >= time)).any():
            counts -= late
        while (early := (counts + 0.5) / self.weights < time).any():
            counts += early
        return counts

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """For rows start..stop-1: the domain of each, and how many rows of that domain came before it."""
        slack = len(self.weights) + 2
        low = self._due_before(max(0.0, start - slack))
        high = self._due_before(stop + slack)
        domain = np.repeat(np.arange(len(low)), high - low)
        ordinal = np.concatenate([np.arange(a, b) for a, b in zip(low, high)])
        order = np.lexsort((domain, (ordinal + 0.5) / self.weights[domain]))
        first = start - int(low.sum())
        chosen = order[first : first + stop - start]
        return domain[chosen], ordinal[chosen]

    def counts(self, n: int) -> np.ndarray:
        """Rows of each domain among the first n."""
        low = self._due_before(max(0.0, n - len(self.weights) - 2))
        domain, _ = self.rows(int(low.sum()), n)
        return low + np.bincount(domain, minlength=len(low))
