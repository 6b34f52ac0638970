"""Small puzzles with one solution each, split so that no held-out puzzle is a training puzzle in another guise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

HELDOUT = 5  # one class of puzzles in so many is held out


@dataclass(frozen=True)
class Task:
    """tokens and labels int64 [N, cells] of both sides; every label of a row belongs to its one solution."""

    name: str
    vocabulary: int
    train: tuple[np.ndarray, np.ndarray]
    heldout: tuple[np.ndarray, np.ndarray]
    note: str


def _split(
    name: str,
    vocabulary: int,
    puzzles: np.ndarray,
    answers: np.ndarray,
    forms: list[bytes],
    heldout: int,
    note: str,
) -> Task:
    """By the hash of each puzzle's canonical form; held out is one puzzle of each class, at most `heldout`."""
    held = np.array([hashlib.sha256(f).digest()[0] % HELDOUT == 0 for f in forms])
    first: dict[bytes, int] = {}
    for i in np.flatnonzero(held).tolist():
        first.setdefault(forms[i], i)
    chosen = sorted(first.values())[:heldout]
    classes = len({f for f, h in zip(forms, held) if not h})
    sides = f"{int((~held).sum()):,} training puzzles of {classes:,} classes, {len(chosen):,} held out, one of a class"
    train = puzzles[~held].astype(np.int64), answers[~held].astype(np.int64)
    return Task(
        name,
        vocabulary,
        train,
        (puzzles[chosen].astype(np.int64), answers[chosen].astype(np.int64)),
        f"{note}; {sides}",
    )


# ---------------------------------------------------------------- sudoku


def _lines(side: int, box: int) -> list[list[int]]:
    """All orders of the lines that keep bands together."""
    bands = side // box
    orders = []
    for band in permutations(range(bands)):
        for within in product(*(permutations(range(box)) for _ in range(bands))):
            orders.append([b * box + w for b, ws in zip(band, within) for w in ws])
    return orders


def _first_appearance(cells: np.ndarray, colours: int) -> np.ndarray:
    """Digits renamed in the order in which they first appear in each row of cells [N, C]; 0 stays, the others that do
    not appear do not matter."""
    count = cells.shape[1]
    first = np.full((len(cells), colours + 1), count)
    for place in range(count - 1, -1, -1):
        first[np.arange(len(cells)), cells[:, place]] = place
    first[:, 0] = -1
    names = np.argsort(np.argsort(first, axis=1, kind="stable"), axis=1)
    return np.take_along_axis(names, cells, axis=1).astype(np.uint8)


def sudoku4(draws: int, heldout: int, seed: int) -> Task:
    """4 x 4, boxes of 2 x 2: 4 to 8 givens, one solution among all 288 boards. Classes: digits renamed, rows and
    columns exchanged within and with their bands, mirrored along the diagonal (3,072 guises)."""
    rows = [r for r in product(range(1, 5), repeat=4) if len(set(r)) == 4]
    boards = [
        np.array(b).ravel()
        for b in product(rows, repeat=4)
        if all(len({r[c] for r in b}) == 4 for c in range(4))
        and all(
            len({b[i][j], b[i][j + 1], b[i + 1][j], b[i + 1][j + 1]}) == 4 for i in (0, 2) for j in (0, 2)
        )
    ]
    boards = np.array(boards, dtype=np.uint8)
    rng = np.random.default_rng(seed)
    answers = boards[rng.integers(0, len(boards), draws)]
    order = rng.random((draws, 16)).argsort(1).argsort(1)
    puzzles = np.where(order < rng.integers(4, 9, (draws, 1)), answers, 0).astype(np.uint8)
    fits = np.concatenate(
        [((part[:, None] == boards) | (part[:, None] == 0)).all(-1).sum(1) for part in np.split(puzzles, 8)]
    )
    puzzles, answers = puzzles[fits == 1], answers[fits == 1]
    _, kept = np.unique(puzzles, axis=0, return_index=True)
    kept = rng.permutation(kept)
    puzzles, answers = puzzles[kept], answers[kept]
    best: list[bytes] = []
    for r, c, turned in product(_lines(4, 2), _lines(4, 2), (False, True)):
        cells = np.array([i * 4 + j for i in r for j in c])
        cells = cells.reshape(4, 4).T.ravel() if turned else cells
        forms = [f.tobytes() for f in _first_appearance(puzzles[:, cells], 4)]
        best = forms if not best else [min(a, b) for a, b in zip(best, forms)]
    return _split(
        "sudoku4", 5, puzzles, answers, best, heldout, "4 x 4 sudokus of 4 to 8 givens, one solution"
    )


# ---------------------------------------------------------------- mazes

WALL, OPEN, START, GOAL, PATH = 1, 2, 3, 4, 5


def _shortest(grid: np.ndarray, start: int, goal: int, side: int) -> list[int] | None:
    """The shortest path where it is the only one, else None."""
    ways, distance, queue = {start: 1}, {start: 0}, [start]
    for cell in queue:
        row, column = divmod(cell, side)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            other = r * side + c
            if not (0 <= r < side and 0 <= c < side) or grid[other] == WALL:
                continue
            if other not in distance:
                distance[other], ways[other] = distance[cell] + 1, 0
                queue.append(other)
            if distance[other] == distance[cell] + 1:
                ways[other] += ways[cell]
    if ways.get(goal) != 1:
        return None
    path = [goal]
    while path[-1] != start:
        row, column = divmod(path[-1], side)
        near = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
        path.append(
            next(
                r * side + c
                for r, c in near
                if 0 <= r < side and 0 <= c < side and distance.get(r * side + c) == distance[path[-1]] - 1
            )
        )
    return path


def maze7(draws: int, heldout: int, seed: int, side: int = 7, shortest: int = 6) -> Task:
    """Walls at random in a 7 x 7 grid, start and goal with one shortest path of at least 6 steps, which the answer marks.
    Classes: the square's eight symmetries, start and goal exchanged."""
    rng = np.random.default_rng(seed)
    puzzles, answers = [], []
    while len(puzzles) < draws:
        grid = np.where(rng.random(side * side) < 0.2 + 0.2 * rng.random(), WALL, OPEN).astype(np.uint8)
        free = np.flatnonzero(grid == OPEN)
        start, goal = (int(c) for c in rng.choice(free, 2, replace=False))
        path = _shortest(grid, start, goal, side)
        if path is None or len(path) <= shortest:
            continue
        grid[start], grid[goal] = START, GOAL
        solved = grid.copy()
        solved[path[1:-1]] = PATH
        puzzles.append(grid)
        answers.append(solved)
    made, solutions = np.array(puzzles), np.array(answers)
    best: list[bytes] = []
    swap = np.array([0, WALL, OPEN, GOAL, START], dtype=np.uint8)
    for turns, mirrored, exchanged in product(range(4), (False, True), (False, True)):
        forms = np.rot90(made.reshape(-1, side, side), turns, (1, 2))
        forms = forms[:, :, ::-1] if mirrored else forms
        forms = np.ascontiguousarray(swap[forms] if exchanged else forms).reshape(len(made), -1)
        rows = [f.tobytes() for f in forms]
        best = rows if not best else [min(a, b) for a, b in zip(best, rows)]
    return _split(
        "maze7", 6, made, solutions, best, heldout, "7 x 7 mazes, one shortest path of 6 or more steps"
    )


# ---------------------------------------------------------------- 9 x 9


def sudoku9(draws: int, heldout: int, seed: int) -> Task:
    """9 x 9 with 40 to 55 givens, from the package's own generator. Classes: the puzzle that others are guises of, by the
    board's family, so that no board is on both sides."""
    import random

    from ikirere.corpus.readers.puzzles.sudoku import CELLS, Board, dig, shuffled

    draw = random.Random(seed)
    puzzles, answers, families = [], [], []
    for family in range(draws // 16):
        solution = next(Board().solutions(draw))
        puzzle = dig(solution, draw.randint(40, 55), draw)
        for _ in range(16):
            guise, solved, _ = shuffled(puzzle, solution, (), draw)
            puzzles.append([0 if c == "." else int(c) for c in guise])
            answers.append([int(c) for c in solved])
            families.append(f"{seed}/{family}".encode())
    assert len(puzzles[0]) == CELLS
    note = "9 x 9 sudokus of 40 to 55 givens, one solution"
    return _split("sudoku9", 10, np.array(puzzles), np.array(answers), families, heldout, note)


TASKS: dict[str, Callable[[int, int, int], Task]] = {"sudoku4": sudoku4, "maze7": maze7, "sudoku9": sudoku9}
