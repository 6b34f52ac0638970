"""What the tests of quality share: a step's context and tables of documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from ikirere.corpus.document import DOCUMENT_SCHEMA, Document
from ikirere.corpus.steps.step import StepContext
from ikirere.recipe.data import Data


def context(folder: Path, say: Any = lambda line: None, seed: int = 0, **keys: Any) -> StepContext:
    sources = [{"kind": "local", "name": "here", "path": "here", "domain": "docs"}]
    return StepContext(Data.model_validate({"sources": sources, "quality": keys}), folder, folder, seed, say)


def table(*rows: dict[str, Any]) -> pa.Table:
    plain = {"source": "here", "group": "g", "path": "p", "domain": "docs", "licence": "MIT"}
    return pa.Table.from_pylist([Document(**(plain | row)).row() for row in rows], schema=DOCUMENT_SCHEMA)
