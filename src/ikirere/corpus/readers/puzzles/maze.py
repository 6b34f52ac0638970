"""Mazes with a shortest path drawn in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import ClassVar

from ikirere.corpus.readers.puzzles.generator import verify

WALL, OPEN, START, GOAL, PATH = "#.SGo"
_WALL, _OPEN, _PATH = WALL.encode()[0], OPEN.encode()[0], PATH.encode()[0]
SHORTEST_SIDE = 11  # smaller mazes are so few that they repeat
_TRIES = 1000  # draws until start and goal meet; of scattered walls about every second does


def maze_text(maze: Sequence[str], solved: Sequence[str]) -> str:
    """The text of a maze and of the same with its path: `#` wall, `.` open, `S` start, `G` goal, `o` path. A space
    counts as open. The path is also given as moves from start to goal: up, down, left or right by a number of cells.
    Raises ValueError where the path does not lead from start to goal."""
    drawn, way = ("\n".join(part).replace(" ", OPEN) for part in (maze, solved))
    moves, steps = _moves(way, len(maze[0]) + 1)
    return f"maze:\n{drawn}\nshortest path, {steps} steps:\n{moves}\n{way}\n"


def _moves(way: str, width: int) -> tuple[str, int]:
    """The drawn path as `D3 R2`, and its number of steps. A shortest path touches itself nowhere, so that one goes
    from `o` to `o`."""
    names = {-width: "U", -1: "L", 1: "R", width: "D"}
    at, goal = way.index(START), way.index(GOAL)
    text = way + "\n" * width  # no cell is beside one of another side
    seen, steps = {at}, []
    while at != goal:
        step = next((s for s in names if at + s not in seen and text[at + s] in (PATH, GOAL)), None)
        if step is None:
            raise ValueError("the path breaks off")
        at += step
        seen.add(at)
        steps.append(names[step])
    return " ".join(f"{name}{len(list(run))}" for name, run in groupby(steps)), len(steps)


def ways_to(cells: bytes | bytearray, width: int, goal: int) -> dict[int, int]:
    """For every cell from which the goal can be reached the next one on a shortest way to it, the nearest cells first
    (breadth first; of equally short ways that which leads up before left before right before down as seen from the
    goal).

    cells: rows end to end, with a wall all around.
    """
    after = {goal: goal}
    for cell in (queue := [goal]):
        for beside in (cell - width, cell - 1, cell + 1, cell + width):
            if beside not in after and cells[beside] != _WALL:
                after[beside] = cell
                queue.append(beside)
    return after


def carve(height: int, width: int, draw: random.Random) -> bytearray:
    """A tree of corridors: every open cell reaches every other by one way (depth-first walk). Sides are odd."""
    cells = bytearray([_WALL]) * (height * width)
    inside = {r * width + c for r in range(1, height, 2) for c in range(1, width, 2)}
    chance = draw.random
    at = 1 + width
    cells[at] = _OPEN
    inside.discard(at)
    way = [at]
    around = (-2 * width, -2, 2, 2 * width)
    while way:
        at = way[-1]
        free = [step for step in around if at + step in inside]
        if not free:
            way.pop()
            continue
        step = free[int(chance() * len(free))]
        cells[at + step // 2] = cells[at + step] = _OPEN
        inside.discard(at + step)
        way.append(at + step)
    return cells


def braid(cells: bytearray, width: int, number: int, draw: random.Random) -> None:
    """Open up to `number` walls between two corridors, so that there are several ways."""
    height = len(cells) // width
    for _ in range(number):
        at = draw.randrange(1, height - 1) * width + draw.randrange(1, width - 1)
        across = (at - 1, at + 1), (at - width, at + width)
        if cells[at] == _WALL and any(cells[a] != _WALL and cells[b] != _WALL for a, b in across):
            cells[at] = _OPEN


def scatter(height: int, width: int, density: float, draw: random.Random) -> bytearray:
    """Single walls at random within a wall all around."""
    share = (density, 1 - density)
    rows = [WALL + "".join(draw.choices(WALL + OPEN, share, k=width - 2)) + WALL for _ in range(height - 2)]
    return bytearray("".join([WALL * width, *rows, WALL * width]).encode())


class Maze:
    """A family is a kind of maze (a tree, a tree with loops, scattered walls) of one size; start and goal are drawn
    far apart. Sides are from 11 to `longest` cells."""

    name: ClassVar[str] = "maze"
    items: ClassVar[int] = 8

    def __init__(self, longest: int = 30) -> None:
        self.longest = longest

    def key(self, draw: random.Random, number: str) -> str:
        return number

    def family(self, key: str, draw: random.Random) -> tuple[str, int, int]:
        kind = draw.choice(("tree", "loops", "scatter"))
        height, width = (draw.randint(SHORTEST_SIDE, self.longest) for _ in range(2))
        if kind != "scatter":
            height, width = (n - 1 + n % 2 for n in (height, width))
        return kind, height, width

    def item(self, family: tuple[str, int, int], number: int, draw: random.Random) -> str:
        kind, height, width = family
        for _ in range(_TRIES):
            if kind == "scatter":
                cells = scatter(height, width, 0.2 + 0.15 * draw.random(), draw)
            else:
                cells = carve(height, width, draw)
                if kind == "loops":
                    braid(cells, width, height * width // 8, draw)
            if (path := self._way(cells, width, draw)) is not None:
                return self._text(cells, width, path)
        raise RuntimeError(f"no {kind} maze of {height} x {width} has a way")

    def _way(self, cells: bytearray, width: int, draw: random.Random) -> list[int] | None:
        """A shortest path to a random goal from a cell among the farther ones, both included; None where it has fewer
        cells than half of the sides together: a short path shows little."""
        goal = draw.choice([i for i, cell in enumerate(cells) if cell == _OPEN] or [0])
        after = ways_to(cells, width, goal)
        path = [list(after)[int(len(after) * (0.4 + 0.6 * draw.random()))]]
        while path[-1] != goal:
            path.append(after[path[-1]])
        return path if len(path) >= (width + len(cells) // width) // 2 else None

    def _text(self, cells: bytearray, width: int, path: list[int]) -> str:
        start, goal = path[0], path[-1]
        holds = all(cells[i] == _OPEN for i in path) and all(
            abs(a - b) in (1, width) for a, b in pairwise(path)
        )
        verify(holds, "a maze's path goes through a wall")
        cells[start], cells[goal] = map(ord, START + GOAL)
        solved = cells.copy()
        for i in path[1:-1]:
            solved[i] = _PATH
        rows = range(0, len(cells), width)
        return maze_text(*([part.decode()[i : i + width] for i in rows] for part in (cells, solved)))
