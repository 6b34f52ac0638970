"""What the tests of evaluation sets share: a mirror without a network, and files in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ikirere.corpus.contamination.evaluation_sets import Item, read_evaluation_set
from ikirere.corpus.contamination.evaluation_sets import read as reading


def benchmarks_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IKIRERE_DATA", str(folder))
    monkeypatch.setattr(reading, "hub_away", lambda: "no network (said by the test)")
    return folder / "benchmarks"


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def only(name: str) -> Item:
    (item,) = read_evaluation_set(name)
    return item
