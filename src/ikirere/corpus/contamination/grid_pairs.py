"""Grid tasks (ARC, Sudoku, mazes): pairs of grids in documents, and a hash that turned and recoloured copies
share.

A pair's canonical form is the smallest of the eight symmetries of the square, applied to input and output
alike, each with its colours renamed in the order in which they first appear, input before output, row by row.
Every colour may be renamed, also 0. Two pairs have equal hashes exactly when a symmetry and a renaming turn
one into the other (and where SHA-256 collides).

Not seen: other changes of a task (rows added, colours merged, tiles repeated), the other symmetries of a
Sudoku (rows and columns exchanged within bands), an output that lies before its input, grids that are written
side by side.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from ikirere.corpus.readers.puzzles.grids import LONGEST_SIDE, Grid, to_grid

Pair = tuple[Grid, Grid]  # input, output: a string per row, a character per cell

# A grid in JSON or Python, after its name.
NAMED = re.compile(r"""["'](input|output)["']\s*:\s*(\[\s*\[[0-9\s,\[\]]*\]\s*\])""")
NAMED_ROW = re.compile(r"\[([0-9\s,]*)\]")
NUMBER = re.compile("[0-9]+")
# Neighbouring lines that may be rows of grids, and such a row: single digits with nothing between them, or blanks,
# a comma or a bar, with or without brackets; or a row of a Sudoku with its open cells, or of a maze.
CELLS = r"[ \t0-9,|\[\];.#SGo\r]++"
LINES = re.compile(rf"^{CELLS}$(?:\n{CELLS}$)*+", re.M)
ROW = re.compile(
    r"[ \t]*+\[*+[ \t]*+([0-9](?:[ ,|]{0,2}[0-9])*+)[ \t]*+\]*+[,;]?+[ \t]*+\r?|([0-9.]{9}|[# SGo.]{5,30})\r?"
)
BETWEEN = str.maketrans("", "", " ,|")
# Boards of the puzzle sets as one string: 81 cells of a Sudoku, 900 of a maze.
BOARDS = ((re.compile(r"[0-9.]{81,}+"), 81), (re.compile(r"[# SGo]{900,}+"), 900))


def canonical_hash(pair: Pair) -> bytes:
    """SHA-256 of the pair's canonical form. Cells are characters below code point 256."""
    first, second = (
        np.frombuffer("".join(grid).encode("latin-1"), np.uint8).reshape(len(grid), len(grid[0]))
        for grid in pair
    )
    colours = set("".join(pair[0] + pair[1]).encode("latin-1"))
    forms = []
    for a, b in _symmetries(first, second):
        cells = a.tobytes() + b.tobytes()
        names = bytearray(256)
        for new, old in enumerate(sorted(colours, key=cells.find)):
            names[old] = new
        forms.append(bytes((*a.shape, *b.shape)) + cells.translate(names))
    return hashlib.sha256(min(forms)).digest()


def _symmetries(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for a, b in ((first, second), (first.T, second.T)):
        yield a, b
        yield a[::-1], b[::-1]
        yield a[:, ::-1], b[:, ::-1]
        yield a[::-1, ::-1], b[::-1, ::-1]


def signature(pair: Pair) -> int:
    """A 64-bit number that all copies of a pair share, quickly made: of the shapes and of how often each
    colour is in input and output. Pairs with different signatures have different canonical forms."""
    first, second = "".join(pair[0]), "".join(pair[1])
    (a, b), (c, d) = ((len(grid), len(grid[0])) for grid in pair)
    counts = sorted((first.count(colour), second.count(colour)) for colour in set(first + second))
    form = repr((min((a, b, c, d), (b, a, d, c)), counts)).encode()
    return int.from_bytes(hashlib.blake2b(form, digest_size=8).digest(), "little")


def board(cells: str) -> Grid:
    """A square board that is written as one string. Raises ValueError where it is none of 1 to 30 rows."""
    side = round(len(cells) ** 0.5)
    if not 1 <= side <= LONGEST_SIDE or side * side != len(cells):
        raise ValueError(f"{len(cells)} cells are no square board")
    return tuple(cells[i : i + side] for i in range(0, len(cells), side))


def parse_pairs(text: str, boards: bool = True) -> list[Pair]:
    """Pairs of grids that a document holds: objects with `input` and `output` in JSON or Python; grids as
    lines, and with `boards` those written as one string, each paired with the next one of its kind, whatever
    stands between (but a grid after the word `output` is no input). Empty for ordinary text."""
    pairs = _named(text) if "input" in text else []
    for (start, grid), (_, follower) in pairwise(_blocks(text)):
        if not text[max(0, start - 12) : start].rstrip(" :\r\n").lower().endswith("output"):
            pairs.append((grid, follower))
    if boards:
        for runs, cells in BOARDS:
            pairs += pairwise(board(run) for run in runs.findall(text) if len(run) == cells)
    return pairs


def _named(text: str) -> list[Pair]:
    found: list[tuple[str, Grid]] = []
    for name, body in NAMED.findall(text):
        try:
            found.append(
                (name, to_grid([list(map(int, NUMBER.findall(row))) for row in NAMED_ROW.findall(body)]))
            )
        except (ValueError, IndexError):  # a list of numbers that is no grid
            continue
    pairs: list[Pair] = []
    at = 0
    while at + 1 < len(found):
        (name, grid), (other, follower) = found[at], found[at + 1]
        if name != other:
            pairs.append((grid, follower) if name == "input" else (follower, grid))
        at += 1 if name == other else 2
    return pairs


def _blocks(text: str) -> Iterator[tuple[int, Grid]]:
    """Runs of neighbouring lines that are rows of equal length, and where each begins."""
    for found in LINES.finditer(text):
        begin = at = found.start()
        lines = found[0].split("\n")
        if len(set(map(len, lines))) == 1 and "".join(lines).isdigit():  # one plain grid, as nearly always
            if max(len(lines), len(lines[0])) <= LONGEST_SIDE:
                yield begin, tuple(lines)
            continue
        rows: list[str] = []
        for line in [*lines, ""]:
            row = line if line.isdigit() else _row(line)
            if rows and len(row) != len(rows[0]):
                if max(len(rows), len(rows[0])) <= LONGEST_SIDE:
                    yield begin, tuple(rows)
                rows = []
            if row:
                begin = begin if rows else at
                rows.append(row)
            at += len(line) + 1


def _row(line: str) -> str:
    """The cells of a line; '' where it is no row."""
    found = ROW.fullmatch(line)
    if found is None:
        return ""
    return found[1].translate(BETWEEN) if found[1] else found[2]
