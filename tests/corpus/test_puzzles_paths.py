"""Mazes and graphs: every item against a search that shares nothing with its generator."""

from __future__ import annotations

import itertools
import re
import sys
from collections import deque
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from puzzle_helpers import made, thousand

from ikirere.corpus.document import Document


@pytest.fixture(scope="module")
def thousands() -> dict[str, list[Document]]:
    return {"maze": thousand("maze"), "graph": thousand("graph")}


# ---------------------------------------------------------------- mazes


def test_mazes_paths_are_shortest(thousands: dict[str, list[Document]]) -> None:
    sides = set()
    for document in thousands["maze"]:
        before, _, rest = document.text.removeprefix("maze:\n").partition("\nshortest path, ")
        steps, _, after = rest.partition(" steps:\n")
        moves, _, after = after.partition("\n")
        maze, solved = before.split("\n"), after.rstrip("\n").split("\n")
        sides |= {len(maze), len(maze[0])}
        assert {len(row) for row in maze + solved} == {len(maze[0])} and set(before) <= set("#.SG\n")
        assert [row.replace("o", ".") for row in solved] == maze
        cells = {(r, c): cell for r, row in enumerate(maze) for c, cell in enumerate(row)}
        (start,) = [p for p, cell in cells.items() if cell == "S"]
        (goal,) = [p for p, cell in cells.items() if cell == "G"]
        assert _distance({p for p, cell in cells.items() if cell != "#"}, start, goal) == int(steps)
        at, passed = start, 0
        for way, by in re.findall(r"([UDLR])(\d+)", moves):
            for _ in range(int(by)):
                at = (at[0] + {"U": -1, "D": 1}.get(way, 0), at[1] + {"L": -1, "R": 1}.get(way, 0))
                passed += 1
                assert at == goal or solved[at[0]][at[1]] == "o"
        assert at == goal and passed == int(steps)
        path = {(r, c) for r, row in enumerate(solved) for c, cell in enumerate(row) if cell == "o"}
        assert len(path) == int(steps) - 1 and _distance(path | {start, goal}, start, goal) == int(steps)
    assert min(sides) == 11 and max(sides) == 30


def _distance(free: set[tuple[int, int]], start: tuple[int, int], goal: tuple[int, int]) -> int | None:
    queue, seen = deque([(start, 0)]), {start}
    while queue:
        (r, c), steps = queue.popleft()
        if (r, c) == goal:
            return steps
        for beside in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if beside in free and beside not in seen:
                seen.add(beside)
                queue.append((beside, steps + 1))
    return None


def test_small_mazes() -> None:
    for document in made(100, generators=("maze",), maze_size=13):
        drawn = document.text.removeprefix("maze:\n").partition("\nshortest")[0].split("\n")
        assert 11 <= len(drawn) <= 13 and 11 <= len(drawn[0]) <= 13


# ---------------------------------------------------------------- graphs


def test_graphs_answers_by_another_algorithm(thousands: dict[str, list[Document]]) -> None:
    questions = set()
    for document in thousands["graph"]:
        lines = document.text.splitlines()
        size_, n_edges = map(int, re.findall(r"\d+", lines[0]))
        names = lines[1].removeprefix("nodes: ").split()
        index = {name: i for i, name in enumerate(names)}
        edges = [re.fullmatch(r"(\w+)-(\w+)(?: (\d+))?", line) for line in lines[2 : 2 + n_edges]]
        assert len(names) == size_ and all(edges)
        far = np.full((size_, size_), np.inf)
        np.fill_diagonal(far, 0)
        for edge in edges:
            a, b, length = edge.groups()  # type: ignore[union-attr]
            assert far[index[a], index[b]] == np.inf  # each once
            far[index[a], index[b]] = far[index[b], index[a]] = int(length or 1)
        direct = far.copy()
        for k in range(size_):
            far = np.minimum(far, far[:, k : k + 1] + far[k : k + 1])
        question, *answer = lines[2 + n_edges :]
        questions.add(question.split()[0])
        if question == "connected parts:":
            parts = [line.split() for line in answer[:-3]]
            assert sorted(itertools.chain(*parts)) == sorted(names)
            for part in parts:
                assert {names[i] for i in np.flatnonzero(np.isfinite(far[index[part[0]]]))} == set(part)
            for line in answer[-3:]:
                a, b, said = re.fullmatch(r"from (\w+) to (\w+): (yes|no)", line).groups()  # type: ignore[union-attr]
                assert np.isfinite(far[index[a], index[b]]) == (said == "yes")
            continue
        start, goal = question.removeprefix("shortest way from ").rstrip(":").split(" to ")
        way = answer[-2].removeprefix("way: ").split()
        assert (way[0], way[-1]) == (start, goal)
        length = sum(direct[index[a], index[b]] for a, b in itertools.pairwise(way))
        assert answer[-1] == f"length: {far[index[start], index[goal]]:.0f}" == f"length: {length:.0f}"
        settled = [re.fullmatch(r"(\w+) at (\d+)(?: by (\w+))?", line).groups() for line in answer[:-2]]  # type: ignore[union-attr]
        assert [int(n) for _, n, _ in settled] == sorted(far[index[start]])[: len(settled)]
        assert all(far[index[start], index[node]] == int(n) for node, n, _ in settled)
    assert questions == {"shortest", "connected"}
