"""ARC tasks as text, and altered copies of them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ikirere.corpus.document import Document
from ikirere.corpus.licence import spdx
from ikirere.corpus.readers.files import existing, files_below, hash_files, total_size
from ikirere.corpus.readers.puzzles.grids import DIGITS, SYMMETRIES, Grid, grid_text, recolour, to_grid
from ikirere.corpus.readers.reader import Say, SourcePosition, resume_after
from ikirere.corpus.readers.text import BAD_ROW, Skipped, read_text
from ikirere.recipe.data import Arc

Pair = tuple[Grid, Grid]
Task = tuple[tuple[Pair, ...], tuple[Pair, ...]]  # demonstrations, tests

ATTEMPTS = 20  # draws of an alteration that gives a text of its own


def _pairs(value: Any) -> tuple[Pair, ...]:
    # A list of pairs in the files; a mapping of two lists where the hub's library has turned it over.
    if isinstance(value, Mapping):
        value = [{"input": i, "output": o} for i, o in zip(value["input"], value["output"], strict=True)]
    pairs = tuple((to_grid(pair["input"]), to_grid(pair["output"])) for pair in value)
    if not pairs:
        raise ValueError("no pair")
    return pairs


def parse_task(train: Any, test: Any) -> Task:
    """A task of the two lists of pairs. Raises ValueError, TypeError or KeyError for what is none."""
    return _pairs(train), _pairs(test)


def serialise(task: Task) -> str:
    """The text of a task.

    A block per pair, demonstrations before tests and all alike, so that the last output is what follows from the rest:
    a line `input:`, the grid with a row per line and a digit per cell, a line `output:`, the grid, an empty line.
    """
    return "\n".join(
        f"input:\n{grid_text(given)}\noutput:\n{grid_text(wanted)}\n"
        for given, wanted in (*task[0], *task[1])
    )


def task_text(train: Any, test: Any) -> str:
    """`serialise` of the lists as files and datasets have them. Raises as `parse_task` does."""
    return serialise(parse_task(train, test))


def altered(task: Task, symmetry: int, colours: str) -> Task:
    """Every grid turned or mirrored by one of the 8 SYMMETRIES and colour i made `colours[i]`; the task's rule,
    turned the same way, still holds."""
    turn, table = SYMMETRIES[symmetry], str.maketrans(DIGITS, colours)

    def change(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
        return tuple((turn(recolour(a, table)), turn(recolour(b, table))) for a, b in pairs)

    return change(task[0]), change(task[1])


def alterations(task: Task, number: int, seed: str) -> Iterator[Task]:
    """Up to `number` altered copies whose texts differ from the task's and each other's; fewer of a task that looks
    the same from all sides. The background 0 keeps its colour."""
    draw = random.Random(seed)
    seen = {_digest(serialise(task))}
    for _ in range(number):
        for _ in range(ATTEMPTS):
            copy = altered(task, draw.randrange(8), "0" + "".join(draw.sample(DIGITS[1:], 9)))
            mark = _digest(serialise(copy))
            if mark not in seen:
                seen.add(mark)
                yield copy
                break


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class ArcSource:
    """A document per task; the group is the task's id, its file's name without the ending, so that a task and its
    copies stay on one side of the split. Original tasks come first, then each task's first copy, and so on. A file
    that is no task is skipped as `bad-row`."""

    row = None
    of_machine = False

    def __init__(self, config: Arc, recipe_folder: Path) -> None:
        self.config = config
        self.root = existing(config.path, config.name, recipe_folder)

    def files(self, skipped: Skipped = lambda path, reason: None) -> list[tuple[Path, str]]:
        return files_below(self.root, self.config.pattern, lambda p, r: skipped(f"{self.config.name}/{p}", r))

    def documents(self, skipped: Skipped, say: Say, start: int | SourcePosition = 0) -> Iterator[Document]:
        return resume_after(self._all, skipped, start)

    def _all(self, skipped: Skipped) -> Iterator[Document]:
        tasks = list(self._tasks(skipped))
        for identity, shown, task in tasks:
            yield self._document(identity, shown, task)
        copies = [
            (identity, shown, alterations(task, self.config.augment, f"{self.config.seed}/{identity}"))
            for identity, shown, task in tasks
        ]
        for number in range(1, self.config.augment + 1):
            for identity, shown, stream in copies:
                if (copy := next(stream, None)) is not None:
                    yield self._document(identity, f"{shown}#{number}", copy)

    def _tasks(self, skipped: Skipped) -> Iterator[tuple[str, str, Task]]:
        for path, name in self.files(skipped):
            shown = f"{self.config.name}/{name}"
            text = read_text(path, shown, skipped)
            if text is None:
                continue
            try:
                value = json.loads(text)
                task = parse_task(value["train"], value["test"])
            except (ValueError, TypeError, KeyError, RecursionError):
                skipped(shown, BAD_ROW)
                continue
            yield name.split("/")[-1].split(".")[0], shown, task

    def _document(self, identity: str, path: str, task: Task) -> Document:
        group = f"{self.config.name}/{identity}"
        return Document(
            serialise(task), self.config.name, group, path, self.config.domain, spdx(self.config.licence)
        )

    def fingerprint(self) -> str:
        return hash_files(self.files())

    def size(self) -> int:
        # A digit of the text stands for a digit, a comma and a space of the JSON.
        return int(total_size(self.files()) * 0.35 * (1 + self.config.augment))
