"""The source of puzzles: items by their index."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator
from itertools import count as numbers
from pathlib import Path
from typing import Any

from ikirere.corpus.document import Document
from ikirere.corpus.licence import spdx
from ikirere.corpus.readers.puzzles.generator import Generator
from ikirere.corpus.readers.puzzles.graph import Graph
from ikirere.corpus.readers.puzzles.grid_transforms import GridTransforms
from ikirere.corpus.readers.puzzles.maze import Maze
from ikirere.corpus.readers.puzzles.program_traces import ProgramTraces
from ikirere.corpus.readers.puzzles.sudoku import Sudoku
from ikirere.corpus.readers.reader import Say, SourcePosition, count
from ikirere.corpus.readers.text import Skipped
from ikirere.recipe.data import Puzzles

SAMPLE = 40  # documents whose mean length stands for all


class PuzzleSource:
    """A document per item, the generators in turn. An item is a function of the recipe's keys and its index, so that
    a reading may start anywhere.

    Groups are families: `<name>/<generator>/<hash of the family's key>`. Items of one family never come to both sides
    of a split, and equal programs drawn twice are one family. Slices `i/n` of one seed or of different ones share no
    program; they share no board, graph or maze either but for a chance that is nil at their numbers.
    """

    row = None
    of_machine = True  # Python's `random`, on which the draws depend

    def __init__(self, config: Puzzles, recipe_folder: Path) -> None:
        self.config = config
        made: dict[str, Generator] = {
            "grid_transforms": GridTransforms(),
            "graph": Graph(),
            "sudoku": Sudoku(*config.givens),
            "maze": Maze(config.maze_size),
            "program_traces": ProgramTraces(),
        }
        self.generators = [made[name] for name in config.generators]
        index, parts = (int(n) for n in config.slice.split("/"))
        self.part, self.parts = index - 1, parts
        self._families: dict[str, tuple[int, str, Any]] = {}  # the latest of each generator

    def documents(self, skipped: Skipped, say: Say, start: int | SourcePosition = 0) -> Iterator[Document]:
        indices = (
            numbers(count(start)) if self.config.count is None else range(count(start), self.config.count)
        )
        return map(self.document, indices)

    def document(self, index: int) -> Document:
        """The document of an index."""
        generator = self.generators[index % len(self.generators)]
        number, item = divmod(index // len(self.generators), generator.items)
        key, family = self._family(generator, number)
        text = generator.item(family, item, self._draw(generator, f"{number}/{item}"))
        name = self.config.name
        return Document(
            text,
            name,
            f"{name}/{generator.name}/{key}",
            f"{name}/{generator.name}/{number}/{item}",
            self.config.domain,
            spdx(self.config.licence),
        )

    def _family(self, generator: Generator, number: int) -> tuple[str, Any]:
        known = self._families.get(generator.name)
        if known is None or known[0] != number:
            for attempt in numbers():
                name = f"{number}.{attempt}"
                draw = self._draw(generator, name)
                key = generator.key(draw, f"{self.config.seed}/{name}")
                digest = hashlib.blake2b(f"{generator.name}/{key}".encode(), digest_size=8)
                if int.from_bytes(digest.digest()) % self.parts == self.part:
                    break
            known = (number, digest.hexdigest(), generator.family(key, draw))
            self._families[generator.name] = known
        return known[1:]

    def _draw(self, generator: Generator, name: str) -> random.Random:
        return random.Random(f"{self.config.seed}/{generator.name}/{name}")

    def fingerprint(self) -> str:
        """Hash of the Python release."""
        return hashlib.sha256(repr(sys.version_info[:2]).encode()).hexdigest()

    def size(self) -> int:
        if self.config.count is None:
            return self.config.max_bytes or 0
        sample = min(SAMPLE, self.config.count)
        return sum(self.document(i).n_bytes for i in range(sample)) * self.config.count // sample
