"""Small programs of grid operations with their traces."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import ClassVar

from ikirere.corpus.readers.puzzles.generator import verify
from ikirere.corpus.readers.puzzles.grids import (
    LONGEST_SIDE,
    Grid,
    anti_transpose,
    flip_columns,
    flip_rows,
    grid_text,
    recolour,
    rotate_90,
    rotate_180,
    rotate_270,
    transpose,
)

Operation = Callable[[Grid], Grid]
COLOURS = range(1, 10)
_COLOURED = "123456789"
_TRIES = 8  # inputs for a program until one is of use


# ---------------------------------------------------------------- operations; 0 is the background


def crop(grid: Grid) -> Grid:
    """The smallest rectangle that holds all that is coloured; an empty grid stays."""
    rows = [i for i, row in enumerate(grid) if row.strip("0")]
    if not rows:
        return grid
    left = min(len(row) - len(row.lstrip("0")) for row in grid if row.strip("0"))
    right = max(len(row.rstrip("0")) for row in grid)
    return tuple(row[left:right] for row in grid[rows[0] : rows[-1] + 1])


def fall_left(grid: Grid) -> Grid:
    """Coloured cells slide to the left, in their order."""
    return tuple(row.replace("0", "").ljust(len(row), "0") for row in grid)


def fall_right(grid: Grid) -> Grid:
    return tuple(row.replace("0", "").rjust(len(row), "0") for row in grid)


def fall_up(grid: Grid) -> Grid:
    return transpose(fall_left(transpose(grid)))


def fall_down(grid: Grid) -> Grid:
    return transpose(fall_right(transpose(grid)))


def enlarge(grid: Grid, times: int) -> Grid:
    """Every cell becomes a square."""
    return tuple("".join(cell * times for cell in row) for row in grid for _ in range(times))


def mirror_right(grid: Grid) -> Grid:
    """The grid and its mirror image to the right of it."""
    return tuple(row + row[::-1] for row in grid)


def mirror_down(grid: Grid) -> Grid:
    return grid + grid[::-1]


def repeat_right(grid: Grid) -> Grid:
    return tuple(row * 2 for row in grid)


def repeat_down(grid: Grid) -> Grid:
    return grid * 2


def shift_right(grid: Grid, by: int) -> Grid:
    """What leaves on the right comes in on the left."""
    return tuple(row[-by % len(row) :] + row[: -by % len(row)] for row in grid)


def shift_down(grid: Grid, by: int) -> Grid:
    return grid[-by % len(grid) :] + grid[: -by % len(grid)]


def frame(grid: Grid, colour: int) -> Grid:
    """A border of one cell around the grid."""
    edge = str(colour) * (len(grid[0]) + 2)
    return (edge, *(f"{colour}{row}{colour}" for row in grid), edge)


def top_half(grid: Grid) -> Grid:
    """The upper half, with the middle row."""
    return grid[: (len(grid) + 1) // 2]


def left_half(grid: Grid) -> Grid:
    return tuple(row[: (len(row) + 1) // 2] for row in grid)


def sort_rows(grid: Grid) -> Grid:
    """Rows with fewer coloured cells first, equal ones in their order."""
    return tuple(sorted(grid, key=lambda row: len(row) - row.count("0")))


def sort_columns(grid: Grid) -> Grid:
    return transpose(sort_rows(transpose(grid)))


def _positions(grid: Grid, coloured: bool) -> list[int]:
    """Cells that are coloured, or background, numbered by row with a number left out between rows, so that the last of
    a row is not beside the first of the next."""
    wide = len(grid[0]) + 1
    return [
        r * wide + c for r, row in enumerate(grid) for c, cell in enumerate(row) if (cell != "0") == coloured
    ]


def _spread(region: list[int], free: set[int], wide: int) -> list[int]:
    """The region with all of `free` that hangs together with it by its sides, which is taken out of `free`."""
    for at in region:
        for beside in (at - wide, at - 1, at + 1, at + wide):
            if beside in free:
                free.discard(beside)
                region.append(beside)
    return region


def _painted(grid: Grid, cells: set[int], colour: str) -> Grid:
    wide = len(grid[0]) + 1
    rows = [list(row) for row in grid]
    for cell in cells:
        rows[cell // wide][cell % wide] = colour
    return tuple(map("".join, rows))


def fill_enclosed(grid: Grid, colour: int) -> Grid:
    """Background that has no way to the border takes the colour."""
    wide, last = len(grid[0]) + 1, len(grid) - 1
    free = set(_positions(grid, False))
    border = [i for i in free if i // wide in (0, last) or i % wide in (0, wide - 2)]
    free.difference_update(border)
    _spread(border, free, wide)
    return _painted(grid, free, str(colour))


def keep_largest(grid: Grid) -> Grid:
    """Only the largest coloured thing stays: cells that hang together by their sides; of equal ones the first."""
    wide = len(grid[0]) + 1
    positions = _positions(grid, True)
    free = set(positions)
    best: list[int] = []
    for i in positions:
        if i in free:
            free.discard(i)
            best = max(best, _spread([i], free, wide), key=len)
    return _painted(grid, set(positions).difference(best), "0")


def outline(grid: Grid, colour: int) -> Grid:
    """Background beside a coloured cell takes the colour."""
    blank = "0" * len(grid[0])
    out = []
    for i, row in enumerate(grid):
        above = grid[i - 1] if i else blank
        below = grid[i + 1] if i + 1 < len(grid) else blank
        beside = zip(row, above, below, "0" + row, row[1:] + "0")
        out.append("".join(str(colour) if c == "0" and "".join(n) != "0000" else c for c, *n in beside))
    return tuple(out)


def recoloured(grid: Grid, a: int, b: int) -> Grid:
    return recolour(grid, str.maketrans(str(a), str(b)))


def swapped(grid: Grid, a: int, b: int) -> Grid:
    return recolour(grid, str.maketrans(f"{a}{b}", f"{b}{a}"))


def _operations() -> dict[str, dict[str, Operation]]:
    """Operations by kind and by what a program calls them."""

    def of(operation: Callable[..., Grid], *values: int) -> Operation:
        return lambda grid: operation(grid, *values)

    pairs = [(a, b) for a in COLOURS for b in COLOURS if a != b]
    plain: dict[str, dict[str, Operation]] = {
        "rotate": {"rotate 90": rotate_90, "rotate 180": rotate_180, "rotate 270": rotate_270},
        "flip": {"flip rows": flip_rows, "flip columns": flip_columns},
        "transpose": {"transpose": transpose, "anti transpose": anti_transpose},
        "fall": {
            "fall left": fall_left,
            "fall right": fall_right,
            "fall up": fall_up,
            "fall down": fall_down,
        },
        "crop": {"crop": crop},
        "mirror": {"mirror right": mirror_right, "mirror down": mirror_down},
        "repeat": {"repeat right": repeat_right, "repeat down": repeat_down},
        "half": {"top half": top_half, "left half": left_half},
        "sort": {"sort rows": sort_rows, "sort columns": sort_columns},
        "keep": {"keep largest": keep_largest},
    }
    return plain | {
        "enlarge": {f"enlarge {n}": of(enlarge, n) for n in (2, 3)},
        "shift": {
            f"shift {way} {n}": of(operation, n)
            for way, operation in (("right", shift_right), ("down", shift_down))
            for n in (1, 2, 3)
        },
        "frame": {f"frame {c}": of(frame, c) for c in COLOURS},
        "fill": {f"fill enclosed {c}": of(fill_enclosed, c) for c in COLOURS},
        "outline": {f"outline {c}": of(outline, c) for c in COLOURS},
        "recolour": {f"recolour {a} to {b}": of(recoloured, a, b) for a, b in pairs},
        "swap": {f"swap {a} and {b}": of(swapped, a, b) for a, b in pairs if a < b},
        "remove": {f"remove {a}": of(recoloured, a, 0) for a in COLOURS},
    }


KINDS = _operations()
OPERATIONS = {name: operation for kind in KINDS.values() for name, operation in kind.items()}
_NAMES = {kind: tuple(named) for kind, named in KINDS.items()}


def run(program: Sequence[str], grid: Grid, strict: bool = False) -> list[Grid]:
    """The grid after each step. Raises KeyError for an unknown step, ValueError for a grid that outgrows 30 and, where
    `strict`, for a step that changes nothing."""
    trace = []
    for step in program:
        before, grid = grid, OPERATIONS[step](grid)
        if len(grid) > LONGEST_SIDE or len(grid[0]) > LONGEST_SIDE:
            raise ValueError("the grid outgrows 30")
        if strict and grid == before:
            raise ValueError(f"{step} changes nothing")
        trace.append(grid)
    return trace


# ---------------------------------------------------------------- inputs


def random_grid(draw: random.Random, colours: str, longest: int = 10, hollow: bool = False) -> Grid:
    """Sides of 3 to `longest`: scattered cells, filled and hollow rectangles, or lines, in the given colours; only
    hollow rectangles where `hollow`."""
    chance = draw.random  # `randrange` would take most of the time
    height, width = (3 + int(chance() * (longest - 2)) for _ in range(2))
    style = 1 if hollow else int(chance() * 3)
    if style == 0:
        share = 0.2 + 0.5 * chance()
        weights = [1 - share] + [share / len(colours)] * len(colours)
        text = "".join(draw.choices("0" + colours, weights, k=height * width))
        return tuple(text[i : i + width] for i in range(0, len(text), width))
    rows = [bytearray(b"0" * width) for _ in range(height)]
    for _ in range(1 + int(chance() * 4)):
        colour = colours[int(chance() * len(colours))].encode()
        top, left = int(chance() * height), int(chance() * width)
        if style == 1:
            bottom, right = top + int(chance() * (height - top)), left + int(chance() * (width - left))
            empty = hollow or chance() < 0.5
            for r in range(top, bottom + 1):
                if empty and top < r < bottom:
                    rows[r][left] = rows[r][right] = colour[0]
                else:
                    rows[r][left : right + 1] = colour * (right + 1 - left)
        elif chance() < 0.5:
            rows[top][left:] = colour * (width - left)
        else:
            for row in rows[top:]:
                row[left] = colour[0]
    return tuple(row.decode() for row in rows)


class GridTransforms:
    """A family is a program of one to four operations; its items are three inputs with their outputs, the first with
    the grid after every step. Each step of a program changes some grid, and each pair's output its input."""

    name: ClassVar[str] = "grid_transforms"
    items: ClassVar[int] = 4

    def key(self, draw: random.Random, number: str) -> str:
        while True:
            kinds = draw.sample(tuple(_NAMES), draw.choices((1, 2, 3, 4), (1, 4, 5, 3))[0])
            program = [draw.choice(_NAMES[kind]) for kind in kinds]
            if self._drawn(program, draw, strict=True) is not None:
                return "; ".join(program)

    def family(self, key: str, draw: random.Random) -> list[str]:
        return key.split("; ")

    def item(self, family: list[str], number: int, draw: random.Random) -> str:
        given, trace = self._surely(family, draw, strict=True)
        lines = [f"program: {'; '.join(family)}", "", "input:", grid_text(given)]
        for step, grid in zip(family[:-1], trace):
            lines += [f"after {step}:", grid_text(grid)]
        lines += ["output:", grid_text(trace[-1])]
        for _ in range(2):
            given, trace = self._surely(family, draw, strict=False)
            lines += ["", "input:", grid_text(given), "output:", grid_text(trace[-1])]
        return "\n".join(lines) + "\n"

    def _surely(self, program: list[str], draw: random.Random, strict: bool) -> tuple[Grid, list[Grid]]:
        # The program was drawn with an input for it, so that there are others.
        while (drawn := self._drawn(program, draw, strict)) is None:
            pass
        return drawn

    def _drawn(self, program: list[str], draw: random.Random, strict: bool) -> tuple[Grid, list[Grid]] | None:
        """An input that the program changes (where `strict`, that each of its steps changes) and the grids after each
        step; None where a few draws give none."""
        own = "".join(sorted({c for c in "".join(program) if c in _COLOURED}))
        others = [c for c in _COLOURED if c not in own]
        hollow = any(step.startswith("fill") for step in program)
        longest = 10
        for _ in range(_TRIES):
            # The program's own colours are in the input, so that it has something to do.
            colours = own + others[int(draw.random() * len(others))]
            given = random_grid(draw, colours, longest, hollow)
            try:
                trace = run(program, given, strict)
            except ValueError:
                longest = max(3, longest - 1)
                continue
            if given != trace[-1]:
                verify(all(len({len(row) for row in grid}) == 1 for grid in trace), "a grid is no rectangle")
                return given, trace
        return None
