"""The puzzles of benchmarks/model/trm.py: one solution each, and no held-out puzzle in training in another guise."""

from __future__ import annotations

import random
import sys
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "model"))

import trm_tasks


def filled(cells: list[int]) -> int:
    """Number of ways to complete a 4 x 4 sudoku, by trying."""
    if 0 not in cells:
        return 1
    at = cells.index(0)
    row, column = divmod(at, 4)
    beside = {
        cells[i]
        for i in range(16)
        if i // 4 == row or i % 4 == column or (i // 8 == at // 8 and i % 4 // 2 == column // 2)
    }
    return sum(filled([*cells[:at], d, *cells[at + 1 :]]) for d in range(1, 5) if d not in beside)


def test_sudokus_have_one_solution_and_stay_on_their_side() -> None:
    task = trm_tasks.sudoku4(4000, 200, 3)
    draw = random.Random(1)
    for puzzles, answers in (task.train, task.heldout):
        for i in draw.sample(range(len(puzzles)), 40):
            puzzle, answer = puzzles[i].tolist(), answers[i].tolist()
            assert filled(puzzle) == 1
            assert all(p in (0, a) for p, a in zip(puzzle, answer))
            assert filled(answer) == 1 and 0 not in answer
            assert 4 <= sum(p > 0 for p in puzzle) <= 8
    known = {p.tobytes() for p in task.train[0]}
    swaps = [(0, 1, 2, 3), (1, 0, 2, 3), (0, 1, 3, 2), (1, 0, 3, 2)]
    lines = [*swaps, *((c, d, a, b) for a, b, c, d in swaps)]
    for puzzle in task.heldout[0]:
        names = np.array([0, *draw.sample(range(1, 5), 4)])
        for rows, columns, turned in product(lines, lines, (False, True)):
            guise = names[puzzle.reshape(4, 4)[list(rows)][:, list(columns)]]
            assert (guise.T if turned else guise).ravel().tobytes() not in known


def test_mazes_have_one_shortest_path_and_stay_on_their_side() -> None:
    task = trm_tasks.maze7(150, 50, 3)
    for puzzle, answer in zip(*task.train):
        path = set(np.flatnonzero(answer == trm_tasks.PATH).tolist())
        start, goal = (int(np.flatnonzero(puzzle == kind)[0]) for kind in (trm_tasks.START, trm_tasks.GOAL))
        assert (puzzle[sorted(path)] == trm_tasks.OPEN).all()
        ways: dict[int, list[frozenset[int]]] = {start: [frozenset()]}  # to each cell by the number of steps
        steps = 0
        while goal not in ways:
            steps += 1
            following: dict[int, list[frozenset[int]]] = {}
            for cell, found in ways.items():
                row, column = divmod(cell, 7)
                near = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
                for r, c in near:
                    if 0 <= r < 7 and 0 <= c < 7 and puzzle[7 * r + c] != trm_tasks.WALL:
                        following.setdefault(7 * r + c, []).extend(w | {cell} for w in found if cell not in w)
            ways = {cell: list(set(found))[:500] for cell, found in following.items() if found}
        assert steps >= 6
        assert [set(way) - {start} for way in ways[goal]] == [path]
    known = {p.tobytes() for p in task.train[0]}
    swap = np.array([0, 1, 2, 4, 3])
    for puzzle in task.heldout[0]:
        for turns, mirrored, exchanged in product(range(4), (False, True), (False, True)):
            guise = np.rot90(puzzle.reshape(7, 7), turns)
            guise = guise[:, ::-1] if mirrored else guise
            guise = swap[guise] if exchanged else guise
            assert np.ascontiguousarray(guise).ravel().tobytes() not in known
