"""Puzzles as a source: items that differ, families, slices, limits, mistakes in the recipe, and speed."""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parent))
from puzzle_helpers import GENERATORS, made, thousand

from ikirere.corpus.document import Document
from ikirere.corpus.readers import fingerprint, open_source, size
from ikirere.corpus.readers.puzzles.source import PuzzleSource
from ikirere.recipe.data import Puzzles


@pytest.fixture(scope="module")
def thousands() -> dict[str, list[Document]]:
    return {name: thousand(name) for name in GENERATORS}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_thousand_items_are_a_thousand(thousands: dict[str, list[Document]], name: str) -> None:
    documents = thousands[name]
    assert len({d.text for d in documents}) == 1000
    assert {(d.domain, d.licence, d.source) for d in documents} == {("synthesis", "Apache-2.0", "puzzles")}
    assert all(re.fullmatch(rf"puzzles/{name}/[0-9a-f]{{16}}", d.group) for d in documents)
    assert len({d.group for d in documents}) >= 15 and len({d.path for d in documents}) == 1000


def test_generators_take_turns_and_depend_on_nothing_else(thousands: dict[str, list[Document]]) -> None:
    mixed = made(50)
    for i, name in enumerate(GENERATORS):
        assert mixed[i :: len(GENERATORS)] == thousands[name][:10]
    assert made(50) == mixed
    assert [d.text for d in made(50, seed=1)] != [d.text for d in mixed]


def test_any_item_by_its_index(thousands: dict[str, list[Document]]) -> None:
    for name in GENERATORS:
        source = PuzzleSource(Puzzles(kind="puzzles", generators=(name,), count=1000), Path())
        for index in (999, 0, 517, 518, 3):
            assert source.document(index) == thousands[name][index]


def test_items_are_the_same_in_another_process(thousands: dict[str, list[Document]]) -> None:
    """Nothing hangs on the order of sets or on salted hashes."""
    import subprocess

    program = (
        "from pathlib import Path; from ikirere.recipe.data import Puzzles\n"
        "from ikirere.corpus.readers.puzzles.source import PuzzleSource\n"
        "print(*[d.id for d in PuzzleSource(Puzzles(kind='puzzles', count=100), Path()).documents(None, None)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    assert done.stdout.split() == [d.id for d in made(100)]


def test_slices_share_no_family() -> None:
    seen: list[set[str]] = []
    for index in (1, 2, 3):
        documents = made(300, slice=f"{index}/3", seed=index % 2)
        seen.append({d.group for d in documents} | {d.text for d in documents})
    assert not any(a & b for a, b in itertools.combinations(seen, 2))
    programs = [{d.group for d in made(480, generators=("grid_transforms",), slice=f"{i}/2")} for i in (1, 2)]
    assert not programs[0] & programs[1] and min(map(len, programs)) > 100


def test_equal_programs_are_one_group(thousands: dict[str, list[Document]]) -> None:
    for name, begin in (("grid_transforms", "program: "), ("program_traces", "")):
        by_program: dict[str, set[str]] = {}
        for document in thousands[name]:
            body = document.text.split("\n\n")[0] if begin else "".join(_body(document.text))
            by_program.setdefault(body, set()).add(document.group)
        assert all(len(groups) == 1 for groups in by_program.values())
        assert len(by_program) == len({d.group for d in thousands[name]})


def _body(text: str) -> list[str]:
    """Lines of the program without numbers, given values and the last line."""
    lines = text.partition("\ntrace:\n")[0].split("\n")[1:]
    lines = [line.split(" ", 1)[1] for line in lines]
    given = next(i for i, line in enumerate(lines) if not re.fullmatch(r"[a-e] = \d+", line) or i == 5)
    names = re.fullmatch(r"print\((.*)\)", lines[-1]).group(1).split(", ")  # type: ignore[union-attr]
    return lines[min(given, len(names)) : -1]


def test_limits_and_size() -> None:
    config = Puzzles(kind="puzzles", max_bytes=30_000)
    documents = list(open_source(config, Path(), lambda *s: None))
    total = sum(d.n_bytes for d in documents)
    assert 30_000 <= total < 34_000 and size(config, Path()) == 30_000
    whole = sum(d.n_bytes for d in made(300))
    assert size(Puzzles(kind="puzzles", count=300), Path()) == pytest.approx(whole, rel=0.3)
    assert fingerprint(config, Path()) == fingerprint(Puzzles(kind="puzzles", count=2, seed=9), Path())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "no end: give `count` or `max_bytes`"),
        ({"count": 1, "slice": "3/2"}, "no part 3 of 2"),
        ({"count": 1, "givens": (40, 30)}, "the fewest .40. are more"),
        ({"count": 1, "generators": ("maze", "maze")}, "each once"),
        ({"count": 1, "generators": ()}, "generators"),
        ({"count": 1, "maze_size": 4}, "maze_size"),
    ],
)
def test_mistakes_in_the_recipe(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Puzzles(kind="puzzles", **fields)


def test_speed() -> None:
    """At least 1 MB of text per second and core; of processor time, since tests share their machine."""
    best = 0.0
    for seed in range(4):
        source = PuzzleSource(Puzzles(kind="puzzles", count=500, seed=seed), Path())
        began = time.process_time()
        total = sum(d.n_bytes for d in source.documents(lambda *s: None, lambda line: None))
        best = max(best, total / (time.process_time() - began))
    assert best > 1e6
