"""What the tests of a whole build share: a small corpus, and what is in a finished folder."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

WORDS = (
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
)


def text(number: int, words: int = 80) -> str:
    """Words that no other number has in this order."""
    rng = random.Random(number)
    return " ".join(rng.choice(WORDS) + str(rng.randrange(40)) for _ in range(words))


def corpus(folder: Path, texts: dict[str, str] | None = None) -> dict[str, Any]:
    """Thirty files below `folder/notes`, with these put in, and the section `data` that reads them."""
    notes = folder / "notes"
    notes.mkdir()
    for name, body in ({f"n{i:02d}.txt": text(i) for i in range(30)} | (texts or {})).items():
        (notes / name).write_text(body + "\n")
    source = {"kind": "local", "name": "notes", "path": "notes", "domain": "docs", "licence": "MIT"}
    return {"sources": [source], "heldout": 0.1, "workers": 1}


def questions(folder: Path, *items: str) -> str:
    """An evaluation set of one's own."""
    (folder / "items.jsonl").write_text("".join(json.dumps({"question": item}) + "\n" for item in items))
    return "path:items.jsonl#question"


def documents(out: Path, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / f"documents-{split}.parquet").to_pylist()
    return rows


def products(out: Path) -> dict[str, bytes]:
    """All that a build leaves, by name, but its work."""
    files = {p.relative_to(out).as_posix(): p for p in sorted(out.rglob("*")) if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("work/")}
