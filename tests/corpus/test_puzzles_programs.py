"""Grid programs and program traces: every item against arrays and Python itself."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from puzzle_helpers import thousand

from ikirere.corpus.document import Document
from ikirere.corpus.readers.puzzles import grid_transforms


@pytest.fixture(scope="module")
def thousands() -> dict[str, list[Document]]:
    return {"grid_transforms": thousand("grid_transforms"), "program_traces": thousand("program_traces")}


# ---------------------------------------------------------------- grid programs


def _components(mask: np.ndarray) -> np.ndarray:
    """Labels of side-connected parts, by spreading the lowest label."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        around = [
            padded[1:-1, 1:-1],
            padded[:-2, 1:-1],
            padded[2:, 1:-1],
            padded[1:-1, :-2],
            padded[1:-1, 2:],
        ]
        lowest = np.min([np.where(a > 0, a, mask.size + 1) for a in around], axis=0)
        new = np.where(mask, lowest, 0)
        if (new == labels).all():
            return labels
        labels = new


def _apply(step: str, g: np.ndarray) -> np.ndarray:
    """A step of a program, from its description and by arrays."""
    words = step.split()
    numbers = [int(w) for w in words if w.isdigit()]
    kind = " ".join(w for w in words if not w.isdigit())
    if kind == "rotate":
        return np.rot90(g, -numbers[0] // 90)
    if kind in ("recolour to", "swap and", "remove"):
        a, b = numbers if len(numbers) == 2 else (numbers[0], 0)
        return np.where(g == a, b, np.where(g == b, a, g) if kind == "swap and" else g)
    if kind.startswith("fall"):
        turned = np.rot90(g, {"left": 0, "up": 1, "right": 2, "down": 3}[words[1]])
        fallen = np.zeros_like(turned)
        for i, row in enumerate(turned):
            fallen[i, : np.count_nonzero(row)] = row[row > 0]
        return np.rot90(fallen, -{"left": 0, "up": 1, "right": 2, "down": 3}[words[1]])
    if kind == "crop":
        rows, columns = np.nonzero(g)
        return g[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] if len(rows) else g
    if kind == "fill enclosed":
        labels = _components(g == 0)
        border = {*labels[0], *labels[-1], *labels[:, 0], *labels[:, -1]}
        return np.where((labels > 0) & ~np.isin(labels, list(border)), numbers[0], g)
    if kind == "keep largest":
        labels = _components(g > 0)
        found, counts = np.unique(labels[labels > 0], return_counts=True)
        return np.where(labels == found[counts.argmax()], g, 0) if len(found) else g
    if kind == "outline":
        padded = np.pad(g, 1)
        beside = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        return np.where((g == 0) & (beside > 0), numbers[0], g)
    if kind in ("sort rows", "sort columns"):
        turned = g if kind == "sort rows" else g.T
        turned = turned[np.argsort(np.count_nonzero(turned, axis=1), kind="stable")]
        return turned if kind == "sort rows" else turned.T
    n = numbers[0] if numbers else 0
    return {
        "flip rows": lambda: g[::-1],
        "flip columns": lambda: g[:, ::-1],
        "transpose": lambda: g.T,
        "anti transpose": lambda: np.rot90(g, 2).T,
        "mirror right": lambda: np.hstack([g, g[:, ::-1]]),
        "mirror down": lambda: np.vstack([g, g[::-1]]),
        "repeat right": lambda: np.tile(g, (1, 2)),
        "repeat down": lambda: np.tile(g, (2, 1)),
        "top half": lambda: g[: -(-len(g) // 2)],
        "left half": lambda: g[:, : -(-g.shape[1] // 2)],
        "enlarge": lambda: np.kron(g, np.ones((n, n), int)),
        "shift right": lambda: np.roll(g, n, 1),
        "shift down": lambda: np.roll(g, n, 0),
        "frame": lambda: np.pad(g, 1, constant_values=n),
    }[kind]()


def _array(text: str) -> np.ndarray:
    return np.array([[int(c) for c in row] for row in text.strip().split("\n")])


def test_grid_programs_by_arrays(thousands: dict[str, list[Document]]) -> None:
    used = set()
    for document in thousands["grid_transforms"][::2]:
        head, *blocks = document.text.split("\n\n")
        program = head.removeprefix("program: ").split("; ")
        used |= {" ".join(w for w in step.split() if not w.isdigit()) for step in program}
        for number, block in enumerate(blocks):
            parts = re.split(r"^(input|after .*|output):\n", block, flags=re.MULTILINE)[1:]
            names, grids = parts[::2], [_array(text) for text in parts[1::2]]
            expected = [f"after {step}" for step in program[:-1]] if number == 0 else []
            assert names == ["input", *expected, "output"] and len(blocks) == 3
            assert max(max(g.shape) for g in grids) <= 30
            wanted = [grids[0]]
            for step in program:
                wanted.append(_apply(step, wanted[-1]))
            if number:
                wanted = [wanted[0], wanted[-1]]
            assert all(np.array_equal(a, b) for a, b in zip(grids, wanted, strict=True)), document.text
            assert not any(np.array_equal(a, b) for a, b in itertools.pairwise(grids))
    assert len(used) >= 25


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_operation_on_any_grid(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 8))
    rows = data.draw(st.lists(st.text("0012", min_size=width, max_size=width), min_size=1, max_size=8))
    step = data.draw(st.sampled_from(sorted(grid_transforms.OPERATIONS)))
    (found,) = grid_transforms.run([step], tuple(rows))
    assert np.array_equal(_array("\n".join(found)), _apply(step, _array("\n".join(rows))))


# ---------------------------------------------------------------- programs


def test_program_traces_by_python_itself(thousands: dict[str, list[Document]]) -> None:
    kinds = set()
    for document in thousands["program_traces"]:
        listing, _, rest = document.text.removeprefix("program:\n").partition("\ntrace:\n")
        trace, _, output = rest.partition("\noutput:\n")
        lines = [line.split(" ", 1) for line in listing.split("\n")]
        assert [int(n) for n, _ in lines] == list(range(1, len(lines) + 1))
        source = [line for _, line in lines]
        kinds |= {line.split()[0] for line in source}
        printed: list[str] = []
        steps = _steps("\n".join(source), printed)
        assert output == printed[0] + "\n"
        notes = [re.fullmatch(r"(\d+): (?:(\w) = (-?\d+)|true|false)", line) for line in trace.split("\n")]
        sets = [(int(n[1]), n[2], int(n[3])) for n in notes if n and n[2] and " = " in source[int(n[1]) - 1]]
        assert all(notes) and sets == steps
    assert kinds >= {"for", "while", "if", "else:", "print(a,"}


def _steps(source: str, printed: list[str]) -> list[tuple[int, str, int]]:
    """(line, name, value) of every assignment that Python makes, as its own tracing hook sees them."""
    lines = source.split("\n")
    steps: list[tuple[int, str, int]] = []
    last: list[int] = []
    names: dict[str, Any] = {"print": lambda *values: printed.append(" ".join(map(str, values)))}

    def hook(frame: Any, event: str, value: Any) -> Any:
        if frame.f_code.co_filename != "<traced>":
            return None
        if last and event in ("line", "return"):
            line = lines[last.pop() - 1].strip()
            if " = " in line:
                name = line.split(" = ")[0]
                steps.append((number[0], name, frame.f_locals[name]))
        if event == "line":
            last.append(frame.f_lineno)
            number[0] = frame.f_lineno
        return hook

    number = [0]
    code = compile(source, "<traced>", "exec")
    before = sys.gettrace()
    sys.settrace(hook)
    try:
        exec(code, names)
    finally:
        sys.settrace(before)
    return steps
