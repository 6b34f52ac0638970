"""Sudokus with one solution."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import permutations
from operator import itemgetter
from typing import ClassVar

from ikirere.corpus.readers.puzzles.generator import verify

SIDE, BLANK = 9, "."
CELLS = SIDE * SIDE
ALL = (1 << SIDE) - 1  # a bit per digit

_ROW = [i // 9 for i in range(CELLS)]
_COLUMN = [i % 9 for i in range(CELLS)]
_BOX = [i // 27 * 3 + i % 9 // 3 for i in range(CELLS)]
_UNITS = [
    itemgetter(*(i for i in range(CELLS) if unit[i] == n)) for unit in (_ROW, _COLUMN, _BOX) for n in range(9)
]
_BITS = [bin(mask).count("1") for mask in range(ALL + 1)]
_ORDERS = tuple(permutations(range(3)))
_NAMES = [f"r{i // 9 + 1}c{i % 9 + 1}=" for i in range(CELLS)]
_DIGIT = {1 << n: str(n + 1) for n in range(SIDE)}


def sudoku_text(puzzle: str, solution: str, order: Sequence[int] = ()) -> str:
    """The text of a puzzle: 81 characters by row each, `.` for a blank. order: the blanks as they are filled."""
    given = CELLS - puzzle.count(BLANK)
    steps = " ".join([_NAMES[i] + solution[i] for i in order])
    filled = f"filling the cell with the fewest choices:\n{steps}\n" if steps else ""
    return f"sudoku with {given} givens:\n{_board(puzzle)}\n{filled}solution:\n{_board(solution)}\n"


def _board(cells: str) -> str:
    return "\n".join(cells[i : i + SIDE] for i in range(0, CELLS, SIDE))


def is_solution(puzzle: str, solution: str) -> bool:
    """Whether every row, column and box has each digit once and the givens are kept."""
    return all(len(set(unit(solution))) == SIDE for unit in _UNITS) and all(
        p in (BLANK, s) for p, s in zip(puzzle, solution)
    )


class Board:
    """Digits placed so far, as masks of what each row, column and box has."""

    def __init__(self, puzzle: str = BLANK * CELLS) -> None:
        self.cells = [0] * CELLS
        self.rows, self.columns, self.boxes = [0] * SIDE, [0] * SIDE, [0] * SIDE
        self.empty: set[int] = set(range(CELLS))
        for i, digit in enumerate(puzzle):
            if digit != BLANK:
                bit = 1 << int(digit) - 1
                if not self.open(i) & bit:
                    raise ValueError(f"digit {digit} twice in a row, column or box")
                self.put(i, bit)

    def open(self, i: int) -> int:
        """Mask of the digits that a cell may take."""
        return ALL & ~(self.rows[_ROW[i]] | self.columns[_COLUMN[i]] | self.boxes[_BOX[i]])

    def put(self, i: int, bit: int) -> None:
        """SourcePosition a digit, or take it away again."""
        self.cells[i] ^= bit
        self.rows[_ROW[i]] ^= bit
        self.columns[_COLUMN[i]] ^= bit
        self.boxes[_BOX[i]] ^= bit
        self.empty ^= {i}

    def narrowest(self) -> tuple[int, int]:
        """The first of the empty cells with the fewest choices, and their mask."""
        rows, columns, boxes = self.rows, self.columns, self.boxes
        best, choices, fewest = -1, 0, SIDE + 1
        for i in self.empty:
            mask = ALL & ~(rows[_ROW[i]] | columns[_COLUMN[i]] | boxes[_BOX[i]])
            if (bits := _BITS[mask]) < fewest:
                best, choices, fewest = i, mask, bits
                if bits < 2:
                    break
        return best, choices

    def solutions(self, draw: random.Random | None = None) -> Iterator[str]:
        """All ways to fill it, by search in the cell with the fewest choices; in random order with `draw`."""
        if not self.empty:
            yield "".join(_DIGIT[c] for c in self.cells)
            return
        best, choices = self.narrowest()
        order = [1 << n for n in range(SIDE) if choices >> n & 1]
        if draw is not None:
            draw.shuffle(order)
        for bit in order:
            self.put(best, bit)
            yield from self.solutions(draw)
            self.put(best, bit)


def solutions(puzzle: str, limit: int = 2) -> list[str]:
    """Up to `limit` solutions of 81 characters. Raises ValueError for a puzzle that contradicts itself."""
    found = []
    for solution in Board(puzzle).solutions():
        found.append(solution)
        if len(found) == limit:
            break
    return found


def dig(solution: str, givens: int, draw: random.Random) -> str:
    """A puzzle with this only solution and `givens` digits, or the fewest reached on the way there.

    A digit is taken away where no other in its cell leads to a solution: that keeps the solution the only one.
    """
    board = Board(solution)
    left = CELLS
    for i in draw.sample(range(CELLS), CELLS):
        if left <= givens:
            break
        bit = board.cells[i]
        board.put(i, bit)
        others = board.open(i) & ~bit
        while others:
            other = others & -others
            others ^= other
            board.put(i, other)
            solvable = next(Board.solutions(_copy(board)), None) is not None
            board.put(i, other)
            if solvable:
                board.put(i, bit)
                break
        else:
            left -= 1
    return "".join(_DIGIT.get(c, BLANK) for c in board.cells)


def _copy(board: Board) -> Board:
    """A board that an abandoned search may leave as it is."""
    copy = Board.__new__(Board)
    copy.cells, copy.empty = board.cells.copy(), board.empty.copy()
    copy.rows, copy.columns, copy.boxes = board.rows.copy(), board.columns.copy(), board.boxes.copy()
    return copy


def filling(puzzle: str, solution: str) -> list[int]:
    """The blanks in the order of a solver that always takes the cell with the fewest choices."""
    board = Board(puzzle)
    order = []
    while board.empty:
        cell, _ = board.narrowest()
        board.put(cell, 1 << int(solution[cell]) - 1)
        order.append(cell)
    return order


def shuffled(
    puzzle: str, solution: str, order: Sequence[int], draw: random.Random
) -> tuple[str, str, list[int]]:
    """The same puzzle in another guise: digits renamed, rows and columns changed within and with their bands,
    mirrored along the diagonal. Each keeps the number of solutions and of every cell's choices."""
    rows, columns = _lines(draw), _lines(draw)
    cells = [9 * r + c for r in rows for c in columns]
    if draw.random() < 0.5:
        cells = [c % 9 * 9 + c // 9 for c in cells]
    table = str.maketrans("123456789", "".join(draw.sample("123456789", 9)))
    take = itemgetter(*cells)
    position = dict(zip(cells, range(CELLS)))
    return (
        "".join(take(puzzle)).translate(table),
        "".join(take(solution)).translate(table),
        [position[i] for i in order],
    )


def _lines(draw: random.Random) -> list[int]:
    """The nine lines with bands and the lines of each in random order."""
    pick = int(draw.random() * 6**4)
    bands, *within = (_ORDERS[pick // 6**n % 6] for n in range(4))
    return [3 * band + line for band in bands for line in within[band]]


class Sudoku:
    """A family is one puzzle, dug out of a random board with every digit's removal checked by the solver; its items
    are guises of it. Their difficulty is measured by the number of givens."""

    name: ClassVar[str] = "sudoku"
    items: ClassVar[int] = 64

    def __init__(self, fewest: int = 26, most: int = 40) -> None:
        self.fewest, self.most = fewest, most

    def key(self, draw: random.Random, number: str) -> str:
        return number

    def family(self, key: str, draw: random.Random) -> tuple[str, str, list[int]]:
        solution = next(Board().solutions(draw))
        puzzle = dig(solution, draw.randint(self.fewest, self.most), draw)
        verify(solutions(puzzle) == [solution], "a sudoku has not one solution")
        return puzzle, solution, filling(puzzle, solution)

    def item(self, family: tuple[str, str, list[int]], number: int, draw: random.Random) -> str:
        puzzle, solution, order = shuffled(*family, draw)
        verify(is_solution(puzzle, solution), "a sudoku's solution breaks a rule")
        return sudoku_text(puzzle, solution, order)
