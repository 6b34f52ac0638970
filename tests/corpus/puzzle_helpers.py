"""What the tests of puzzles share: the items of each generator."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from ikirere.corpus.document import Document
from ikirere.corpus.readers import open_source
from ikirere.recipe.data import Puzzle, Puzzles

GENERATORS = get_args(Puzzle)


def made(count: int = 200, **fields: Any) -> list[Document]:
    config = Puzzles(kind="puzzles", count=count, **fields)
    return list(open_source(config, Path(), lambda *s: None))


@lru_cache
def thousand(name: str) -> list[Document]:
    return made(1000, generators=(name,))
