"""What the tests of decontamination share: steps against small sets, and what an outcome holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ikirere.corpus.contamination.evaluation_sets import read as reading
from ikirere.corpus.document import DOCUMENT_SCHEMA, Document
from ikirere.corpus.steps.decontaminate import Decontaminator
from ikirere.corpus.steps.step import Outcome, StepContext
from ikirere.recipe.data import Data

SOURCES = [{"kind": "local", "name": "here", "path": "here", "domain": "docs"}]


def decontaminator(
    folder: Path, sets: Sequence[str], said: list[str] | None = None, **keys: Any
) -> Decontaminator:
    data = Data.model_validate({"sources": SOURCES, "evaluation_sets": sets, "decontaminate": keys})
    folder.mkdir(parents=True, exist_ok=True)
    said = [] if said is None else said
    return Decontaminator(StepContext(data, folder, folder, 0, said.append))


def prepared(folder: Path, items: Sequence[dict[str, Any]], **keys: Any) -> Decontaminator:
    """A step against one set of questions and answers."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"id": f"item{i}", "q": "", "a": ""} | item for i, item in enumerate(items))
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = decontaminator(folder, ["path:set.jsonl#q,a"], **keys)
    step.prepare([])
    return step


def table(texts: Sequence[str | None], **columns: str) -> pa.Table:
    rows = []
    for number, text in enumerate(texts):
        document = Document(
            text or "", "here", f"g{number}", f"p{number}", columns.get("domain", "docs"), "MIT"
        )
        rows.append(document.row() | {"text": text})
    return pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)


def logged(outcome: Outcome) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = outcome.logs["matches"].to_pylist()
    return rows


def kept(outcome: Outcome) -> list[str]:
    paths: list[str] = outcome.kept.column("path").to_pylist()
    return paths


def words(count: int, seed: str) -> str:
    """So many different words that no other seed gives."""
    return " ".join(f"{seed}{i}" for i in range(count))


def empty_mirror(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IKIRERE_DATA", str(folder / "mirror"))
    monkeypatch.setattr(reading, "hub_away", lambda: "no network (said by the test)")
    (folder / "mirror/benchmarks").mkdir(parents=True)
    return folder / "mirror/benchmarks"
