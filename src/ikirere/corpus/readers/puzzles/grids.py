"""Grids of coloured cells as ARC has them: one string of digits per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Grid = tuple[str, ...]  # rows of equal length, a digit 0 to 9 per cell; 0 is the background
LONGEST_SIDE = 30
DIGITS = "0123456789"


def grid_text(grid: Grid) -> str:
    """A row per line, a digit per cell."""
    return "\n".join(grid)


def to_grid(cells: Sequence[Sequence[int]]) -> Grid:
    """Lists of colours as a grid. Raises ValueError unless a rectangle of colours 0 to 9 with sides of 1 to 30."""
    rows = tuple("".join(map(str, row)) for row in cells)
    if not 1 <= len(rows) <= LONGEST_SIDE or not 1 <= len(rows[0]) <= LONGEST_SIDE:
        raise ValueError("sides are from 1 to 30")
    if any(
        len(row) != len(rows[0]) or len(row) != len(cells[i]) or not row.isdigit()
        for i, row in enumerate(rows)
    ):
        raise ValueError("no rectangle of colours 0 to 9")
    return rows


def flip_rows(grid: Grid) -> Grid:
    """Upside down."""
    return grid[::-1]


def flip_columns(grid: Grid) -> Grid:
    """Left to right."""
    return tuple(row[::-1] for row in grid)


def transpose(grid: Grid) -> Grid:
    """Rows become columns."""
    return tuple(map("".join, zip(*grid)))


def rotate_90(grid: Grid) -> Grid:
    """Clockwise."""
    return tuple(map("".join, zip(*grid[::-1])))


def rotate_180(grid: Grid) -> Grid:
    return flip_columns(flip_rows(grid))


def rotate_270(grid: Grid) -> Grid:
    return flip_rows(transpose(grid))


def anti_transpose(grid: Grid) -> Grid:
    """Mirrored along the other diagonal."""
    return rotate_180(transpose(grid))


def same(grid: Grid) -> Grid:
    return grid


# The eight symmetries of the square.
SYMMETRIES: tuple[Callable[[Grid], Grid], ...] = (
    same, rotate_90, rotate_180, rotate_270, flip_rows, flip_columns, transpose, anti_transpose,
)  # fmt: skip


def recolour(grid: Grid, table: Mapping[int, int]) -> Grid:
    """Colours by a table of `str.maketrans`."""
    return tuple(row.translate(table) for row in grid)
