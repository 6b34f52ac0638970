"""Sudokus: every item against a solver that shares nothing with its generator."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from puzzle_helpers import made, thousand

from ikirere.corpus.document import Document
from ikirere.corpus.readers.puzzles.sudoku import dig, is_solution, shuffled, solutions


@pytest.fixture(scope="module")
def thousands() -> dict[str, list[Document]]:
    return {"sudoku": thousand("sudoku")}


def _exact_cover_count(puzzle: str, limit: int = 2) -> int:
    """Solutions of a sudoku by Knuth's Algorithm X over sets: nothing of the generator's solver."""
    rows = {
        (r, c, n): [("cell", r, c), ("row", r, n), ("column", c, n), ("box", r // 3, c // 3, n)]
        for r in range(9) for c in range(9) for n in "123456789"
    }  # fmt: skip
    columns: dict[Any, set[Any]] = {}
    for row, covered in rows.items():
        for one in covered:
            columns.setdefault(one, set()).add(row)

    def select(row: Any) -> list[tuple[Any, set[Any]]]:
        removed = []
        for one in rows[row]:
            for other in columns[one]:
                for another in rows[other]:
                    if another != one:
                        columns[another].discard(other)
            removed.append((one, columns.pop(one)))
        return removed

    def restore(removed: list[tuple[Any, set[Any]]]) -> None:
        for one, members in reversed(removed):
            columns[one] = members
            for other in members:
                for another in rows[other]:
                    if another != one:
                        columns[another].add(other)

    def count() -> int:
        if not columns:
            return 1
        narrowest = min(columns, key=lambda one: len(columns[one]))
        found = 0
        for row in sorted(columns[narrowest]):
            removed = select(row)
            found += count()
            restore(removed)
            if found >= limit:
                break
        return found

    for i, digit in enumerate(puzzle):
        if digit != ".":
            select((i // 9, i % 9, digit))
    return count()


def _sudoku(text: str) -> tuple[int, str, str, list[tuple[int, str]]]:
    first, *lines = text.splitlines()
    (givens,) = map(int, re.findall(r"\d+", first))
    steps = [((int(r) - 1) * 9 + int(c) - 1, n) for r, c, n in re.findall(r"r(\d)c(\d)=(\d)", lines[10])]
    assert lines[9] == "filling the cell with the fewest choices:" and lines[11] == "solution:"
    return givens, "".join(lines[:9]), "".join(lines[12:]), steps


def test_sudokus_have_one_solution_by_another_solver(thousands: dict[str, list[Document]]) -> None:
    for document in thousands["sudoku"][::60]:
        givens, puzzle, solution, steps = _sudoku(document.text)
        assert len(puzzle) == len(solution) == 81 and 81 - puzzle.count(".") == givens
        assert _exact_cover_count(puzzle) == 1 and _exact_cover_count(solution) == 1
        assert all(p in (".", s) for p, s in zip(puzzle, solution))
        assert [solution[i] for i, _ in steps] == [n for _, n in steps]
        assert sorted(i for i, _ in steps) == [i for i, p in enumerate(puzzle) if p == "."]


def test_sudoku_steps_take_the_cell_with_the_fewest_choices(thousands: dict[str, list[Document]]) -> None:
    for document in thousands["sudoku"][::100]:
        _, puzzle, _, steps = _sudoku(document.text)
        board = list(puzzle)
        for cell, digit in steps:
            choices = {
                i: 9 - len({board[j] for j in range(81) if _sees(i, j)} - {"."})
                for i in range(81)
                if board[i] == "."
            }
            assert choices[cell] == min(choices.values())
            board[cell] = digit


def _sees(a: int, b: int) -> bool:
    return a // 9 == b // 9 or a % 9 == b % 9 or (a // 27, a % 9 // 3) == (b // 27, b % 9 // 3)


def test_solver_agrees_on_puzzles_with_none_one_and_many_solutions() -> None:
    import random

    solution = solutions("." * 81, 1)[0]
    draw = random.Random(3)
    puzzle = dig(solution, 24, draw)
    assert is_solution(puzzle, solution) and solutions(puzzle) == [solution]
    several = None
    for i, digit in enumerate(puzzle):
        if digit != ".":
            wider = puzzle[:i] + "." + puzzle[i + 1 :]
            assert len(solutions(wider)) == min(_exact_cover_count(wider), 2)
            several = wider if len(solutions(wider)) > 1 else several
    assert several is not None and len(solutions(several, 5)) == len({*solutions(several, 5)})
    cell = next(i for i, digit in enumerate(puzzle) if digit == ".")
    for digit in set("123456789") - {puzzle[j] for j in range(81) if _sees(cell, j)} - {solution[cell]}:
        assert solutions(puzzle[:cell] + digit + puzzle[cell + 1 :]) == []
    with pytest.raises(ValueError, match="twice"):
        solutions("11" + "." * 79)
    other = shuffled(puzzle, solution, [], draw)
    assert is_solution(*other[:2]) and _exact_cover_count(other[0]) == 1


def test_givens_are_kept_in_bounds() -> None:
    found = {_sudoku(d.text)[0] for d in made(640, generators=("sudoku",), givens=(34, 36))}
    assert found <= {34, 35, 36} and len(found) > 1
