"""The training log: one JSON row per `log_every` steps, the same whether the run was killed or not, and one per
change of settings by `--go-on`: {"go_on": {key: [old, new]}, "step": S}."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from ikirere.common.files import write_bytes

Scalar = tuple[str, Tensor, float]
"""(name, value, its share of the step's mean)."""


class Log:
    """Appends rows to a JSONL file. Except for timings, rows depend on the steps only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: TextIO | None = None

    def cut(self, step: int) -> dict[str, Any] | None:
        """Keeps the rows up to `step`, drops later and torn ones; returns the last that is kept and has a loss."""
        self.close()
        kept: list[bytes] = []
        if self.path.exists():
            for line in self.path.read_bytes().splitlines(keepends=True):
                row = _row(line)
                if row is None or row["step"] > step:
                    break
                kept.append(line)
        write_bytes(self.path, b"".join(kept))
        rows = (_row(line) for line in reversed(kept))
        return next((row for row in rows if row is not None and "loss" in row), None)

    def changed(self, step: int, changes: Mapping[str, Any]) -> None:
        """Adds the row of a change of settings after `step`, once."""
        row = json.dumps({"go_on": dict(changes), "step": step})
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        if row not in lines[-1:]:
            self.write(json.loads(row))

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row and flushes it to the operating system (`sync` to the disk)."""
        if self._handle is None:
            self._handle = self.path.open("a", encoding="utf-8")
        self._handle.write(json.dumps(row) + "\n")
        self._handle.flush()

    def sync(self) -> None:
        """Puts all rows on the disk."""
        if self._handle is not None:
            os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Closes the file; the next `write` opens it again."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def _row(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


class Meter:
    """Running sums of scalars since the last row. They stay on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def step(self, scalars: Iterable[Scalar]) -> None:
        """Adds the scalars of one optimiser step, share * value each; the shares of a name add up to 1."""
        self.count += 1
        for name, value, share in scalars:
            value = value.detach().float()
            value = value if share == 1.0 else value * share
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def values(self) -> dict[str, float]:
        """The sums, fetched."""
        if not self.sums:
            return {}
        fetched = torch.stack(list(self.sums.values())).tolist()
        return dict(zip(self.sums, fetched, strict=True))

    def clear(self) -> None:
        self.sums, self.count = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """The sums and the number of steps in them, JSON-able."""
        return {"sums": self.values(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """fp32 values pass through Python floats and JSON unchanged."""
        self.sums = {name: torch.tensor(v, device=device) for name, v in state["sums"].items()}
        self.count = state["count"]
