"""What the tests of near-duplicates share: texts, their edits, exact similarities, and a search."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ikirere.corpus.dedup.near import NearResult, find_near_duplicates
from ikirere.corpus.executor import Engine
from ikirere.recipe.hygiene import NearDuplicates

SCHEMA = pa.schema(
    [(n, pa.string()) for n in ("id", "text", "source", "path", "domain")] + [("order", pa.int64())]
)
VOCABULARY = [
    "".join(letters)
    for letters in (random.Random(i).choices("abcdefghijklmnopqrstuvwxyz", k=2 + i % 8) for i in range(6000))
]


def identity(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def document(text: str, order: int, source: str = "s", id: str = "") -> dict[str, Any]:
    return {
        "id": id or identity(f"{order} {text}"),
        "text": text,
        "source": source,
        "path": f"{order}.txt",
        "domain": "d",
        "order": order,
    }


def write(folder: Path, rows: Sequence[dict[str, Any]], parts: int = 1) -> list[Path]:
    folder.mkdir(parents=True)
    paths = []
    for index in range(parts):
        path = folder / f"{index:03d}.parquet"
        pq.write_table(pa.Table.from_pylist(list(rows[index::parts]), schema=SCHEMA), path)
        paths.append(path)
    return paths


@lru_cache
def one_worker() -> Engine:
    return Engine("native", workers=1)


def searcher(folder: Path) -> Callable[..., NearResult]:
    """Texts or rows to the result, with few words per shingle unless set."""

    def run(
        given: Sequence[Any], against: Sequence[Sequence[str]] = (), parts: int = 1, **keys: Any
    ) -> NearResult:
        count = len(list(folder.iterdir()))
        rows = [document(row, order) if isinstance(row, str) else row for order, row in enumerate(given)]
        sets = []
        for index, texts in enumerate(against):
            path = folder / f"set-{count}" / f"seen{index}.parquet"
            path.parent.mkdir(exist_ok=True)
            kind = pa.large_string() if index else pa.string()
            table = pa.table({"id": list(map(identity, texts)), "text": pa.array(texts, kind)})
            pq.write_table(table, path)
            sets.append(path)
        files = write(folder / f"parts-{count}", rows, parts)
        return find_near_duplicates(
            files, NearDuplicates(**keys), one_worker(), folder / f"work-{count}", sets
        )

    return run


def words(text: str) -> list[str]:
    """By other means than the product's: for ASCII texts."""
    return re.sub(r"[^\w\s]|_", "", text).lower().split()


def similarity(one: str, other: str, size: int = 5) -> float:
    def shingles(text: str) -> set[tuple[str, ...]]:
        w = words(text)
        return {tuple(w[i : i + size]) for i in range(max(1, len(w) - size + 1))} if w else set()

    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b) if a | b else 0.0


def prose(rng: random.Random, count: int) -> list[str]:
    """Words as they are spread in texts: few of them often."""
    return [VOCABULARY[int(len(VOCABULARY) * rng.random() ** 2.5)] for _ in range(count)]


def edited(rng: random.Random, text: list[str], target: float) -> str:
    """The text with words, punctuation and case changed, at about the Jaccard similarity `target`."""
    copy = list(text)
    for position in rng.sample(range(len(copy)), round(len(copy) * (1 - target) / (1 + target) / 5)):
        copy[position] = "other" + str(rng.randrange(1000))
    if rng.random() < 0.3:
        copy[0] = copy[0].capitalize() + ","
    return ("\n" if rng.random() < 0.2 else " ").join(copy)
