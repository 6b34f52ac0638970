"""Puzzles and ARC tasks: every item against a check that shares nothing with its generator."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ikirere.data.document import Document
from ikirere.data.sources import fingerprint, open_source, size
from ikirere.data.sources.arc import alterations, altered, parse_task, serialise
from ikirere.data.sources.grids import DIGITS, SYMMETRIES, to_grid
from ikirere.data.sources.puzzles import grid_transforms
from ikirere.data.sources.puzzles.source import PuzzleSource
from ikirere.data.sources.puzzles.sudoku import dig, is_solution, shuffled, solutions
from ikirere.errors import UserError
from ikirere.recipe.data import Puzzle, Puzzles, Source

GENERATORS = get_args(Puzzle)


def made(count: int = 200, **fields: Any) -> list[Document]:
    config = Puzzles(kind="puzzles", count=count, **fields)
    return list(open_source(config, Path(), lambda *s: None))


def read(folder: Path, **fields: Any) -> tuple[list[Document], list[tuple[str, str]]]:
    skipped: list[tuple[str, str]] = []
    config: Source = TypeAdapter(Source).validate_python(
        {"kind": "arc", "name": "n", "path": str(folder)} | fields
    )
    return list(open_source(config, folder, lambda *s: skipped.append(s))), skipped


# ---------------------------------------------------------------- the source


@pytest.fixture(scope="module")
def thousands() -> dict[str, list[Document]]:
    return {name: made(1000, generators=(name,)) for name in GENERATORS}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_thousand_items_are_a_thousand(thousands: dict[str, list[Document]], name: str) -> None:
    documents = thousands[name]
    assert len({d.text for d in documents}) == 1000
    assert {(d.domain, d.licence, d.source) for d in documents} == {("synthesis", "Apache-2.0", "puzzles")}
    assert all(re.fullmatch(rf"puzzles/{name}/[0-9a-f]{{16}}", d.group) for d in documents)
    assert len({d.group for d in documents}) >= 15 and len({d.path for d in documents}) == 1000


def test_generators_take_turns_and_depend_on_nothing_else(thousands: dict[str, list[Document]]) -> None:
    mixed = made(50)
    for i, name in enumerate(GENERATORS):
        assert mixed[i :: len(GENERATORS)] == thousands[name][:10]
    assert made(50) == mixed
    assert [d.text for d in made(50, seed=1)] != [d.text for d in mixed]


def test_any_item_by_its_index(thousands: dict[str, list[Document]]) -> None:
    for name in GENERATORS:
        source = PuzzleSource(Puzzles(kind="puzzles", generators=(name,), count=1000), Path())
        for index in (999, 0, 517, 518, 3):
            assert source.document(index) == thousands[name][index]


def test_items_are_the_same_in_another_process(thousands: dict[str, list[Document]]) -> None:
    """Nothing hangs on the order of sets or on salted hashes."""
    import subprocess

    program = (
        "from pathlib import Path; from ikirere.recipe.data import Puzzles\n"
        "from ikirere.data.sources.puzzles.source import PuzzleSource\n"
        "print(*[d.id for d in PuzzleSource(Puzzles(kind='puzzles', count=100), Path()).documents(None, None)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    assert done.stdout.split() == [d.id for d in made(100)]


def test_slices_share_no_family() -> None:
    seen: list[set[str]] = []
    for index in (1, 2, 3):
        documents = made(300, slice=f"{index}/3", seed=index % 2)
        seen.append({d.group for d in documents} | {d.text for d in documents})
    assert not any(a & b for a, b in itertools.combinations(seen, 2))
    programs = [{d.group for d in made(480, generators=("grid_transforms",), slice=f"{i}/2")} for i in (1, 2)]
    assert not programs[0] & programs[1] and min(map(len, programs)) > 100


def test_equal_programs_are_one_group(thousands: dict[str, list[Document]]) -> None:
    for name, begin in (("grid_transforms", "program: "), ("program_traces", "")):
        by_program: dict[str, set[str]] = {}
        for document in thousands[name]:
            body = document.text.split("\n\n")[0] if begin else "".join(_body(document.text))
            by_program.setdefault(body, set()).add(document.group)
        assert all(len(groups) == 1 for groups in by_program.values())
        assert len(by_program) == len({d.group for d in thousands[name]})


def test_limits_and_size() -> None:
    config = Puzzles(kind="puzzles", max_bytes=30_000)
    documents = list(open_source(config, Path(), lambda *s: None))
    total = sum(d.n_bytes for d in documents)
    assert 30_000 <= total < 34_000 and size(config, Path()) == 30_000
    whole = sum(d.n_bytes for d in made(300))
    assert size(Puzzles(kind="puzzles", count=300), Path()) == pytest.approx(whole, rel=0.3)
    assert fingerprint(config, Path()) == fingerprint(Puzzles(kind="puzzles", count=2, seed=9), Path())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "no end: give `count` or `max_bytes`"),
        ({"count": 1, "slice": "3/2"}, "no part 3 of 2"),
        ({"count": 1, "givens": (40, 30)}, "the fewest .40. are more"),
        ({"count": 1, "generators": ("maze", "maze")}, "each once"),
        ({"count": 1, "generators": ()}, "generators"),
        ({"count": 1, "maze_size": 4}, "maze_size"),
    ],
)
def test_mistakes_in_the_recipe(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Puzzles(kind="puzzles", **fields)


def test_speed() -> None:
    """At least 1 MB of text per second and core; of processor time, since tests share their machine."""
    best = 0.0
    for seed in range(4):
        source = PuzzleSource(Puzzles(kind="puzzles", count=500, seed=seed), Path())
        began = time.process_time()
        total = sum(d.n_bytes for d in source.documents(lambda *s: None, lambda line: None))
        best = max(best, total / (time.process_time() - began))
    assert best > 1e6


# ---------------------------------------------------------------- sudokus


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


def _body(text: str) -> list[str]:
    """Lines of the program without numbers, given values and the last line."""
    lines = text.partition("\ntrace:\n")[0].split("\n")[1:]
    lines = [line.split(" ", 1)[1] for line in lines]
    given = next(i for i, line in enumerate(lines) if not re.fullmatch(r"[a-e] = \d+", line) or i == 5)
    names = re.fullmatch(r"print\((.*)\)", lines[-1]).group(1).split(", ")  # type: ignore[union-attr]
    return lines[min(given, len(names)) : -1]


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


# ---------------------------------------------------------------- ARC


def cells(grid: tuple[str, ...]) -> list[list[int]]:
    return [[int(c) for c in row] for row in grid]


PAIRS = [
    {"input": [[1, 0, 2], [0, 0, 3]], "output": [[3, 0, 1]]},
    {"input": [[4]], "output": [[4, 4], [5, 0]]},
]
TASK = {"train": PAIRS, "test": PAIRS[:1]}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for name in ("aa11", "bb22"):
        (tmp_path / f"{name}.json").write_text(json.dumps(TASK))
    (tmp_path / "plain.json").write_text(
        json.dumps(
            {"train": [{"input": [[0]], "output": [[0]]}], "test": [{"input": [[0]], "output": [[0]]}]}
        )
    )
    return tmp_path


def test_the_text_of_a_task(tasks: Path) -> None:
    documents, skipped = read(tasks, licence="Apache-2.0")
    assert documents[0].text == (
        "input:\n102\n003\noutput:\n301\n\ninput:\n4\noutput:\n44\n50\n\ninput:\n102\n003\noutput:\n301\n"
    )
    assert [(d.group, d.path, d.domain, d.licence) for d in documents] == [
        (f"n/{name}", f"n/{name}.json", "arc", "Apache-2.0") for name in ("aa11", "bb22", "plain")
    ]
    assert skipped == []


def test_copies_of_tasks(tasks: Path) -> None:
    documents, _ = read(tasks, augment=5)
    assert documents == read(tasks, augment=5)[0]
    assert [d.group for d in documents[:3]] == ["n/aa11", "n/bb22", "n/plain"]
    assert [d.path for d in documents[3:7]] == [
        "n/aa11.json#1",
        "n/bb22.json#1",
        "n/aa11.json#2",
        "n/bb22.json#2",
    ]
    assert len(documents) == 3 + 2 * 5  # the task of a single black cell looks the same from all sides
    for group in ("n/aa11", "n/bb22"):
        assert len({d.text for d in documents if d.group == group}) == 6
    assert {d.text for d in read(tasks, augment=5, seed=1)[0]} != {d.text for d in documents}
    few = read(tasks, augment=5, max_bytes=400)[0]
    assert few == documents[: len(few)] and sum(d.n_bytes for d in few[:-1]) < 400


def test_a_copy_is_the_task_turned_and_recoloured() -> None:
    task = parse_task(TASK["train"], TASK["test"])
    for copy in alterations(task, 12, "seed"):
        fits = 0
        for symmetry in SYMMETRIES:
            table: dict[str, str] = {}
            before = [symmetry(g) for pair in (*task[0], *task[1]) for g in pair]
            after = [g for pair in (*copy[0], *copy[1]) for g in pair]
            if [(len(g), len(g[0])) for g in before] != [(len(g), len(g[0])) for g in after]:
                continue
            pairs = {(a, b) for x, y in zip(before, after) for r, s in zip(x, y) for a, b in zip(r, s)}
            table = dict(pairs)
            fits += len(table) == len(pairs) == len(set(table.values())) and table.get("0", "0") == "0"
        assert fits >= 1


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda w: st.lists(st.text(DIGITS, min_size=w, max_size=w), min_size=1, max_size=6)
    ),
    st.integers(0, 7),
)
def test_symmetries_are_a_group_and_grids_round_trip(rows: list[str], which: int) -> None:
    grid = tuple(rows)
    turned = SYMMETRIES[which](grid)
    assert to_grid(cells(turned)) == turned
    assert any(back(turned) == grid for back in SYMMETRIES)
    assert sorted("".join(turned)) == sorted("".join(grid))
    task = parse_task([{"input": cells(grid), "output": cells(turned)}], [{"input": [[1]], "output": [[2]]}])
    assert altered(task, 0, DIGITS) == task
    blocks = serialise(task).split("\n\n")
    assert blocks[0] == "input:\n" + "\n".join(grid) + "\noutput:\n" + "\n".join(turned)


@pytest.mark.parametrize(
    "bad",
    [
        "[]",
        "{}",
        "{",
        '{"train": [], "test": []}',
        '{"train": [{"input": [[1]]}], "test": [{"input": [[1]], "output": [[1]]}]}',
        '{"train": [{"input": [[1, 2], [3]], "output": [[1]]}], "test": []}',
        '{"train": [{"input": [[10]], "output": [[1]]}], "test": [{"input": [[1]], "output": [[1]]}]}',
        '{"train": [{"input": [[]], "output": [[1]]}], "test": [{"input": [[1]], "output": [[1]]}]}',
        json.dumps({"train": [{"input": [[1] * 31], "output": [[1]]}], "test": PAIRS}),
        '{"train": "text", "test": 3}',
    ],
)
def test_files_that_are_no_tasks_are_skipped(tasks: Path, bad: str) -> None:
    (tasks / "cc33.json").write_text(bad)
    documents, skipped = read(tasks)
    assert len(documents) == 3 and skipped == [("n/cc33.json", "bad-row")]


def test_a_folder_without_tasks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source 'n' \(arc\) gave no document"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"data\.sources \(n\)\.path: .* does not exist"):
        read(tmp_path / "nowhere")


def test_the_real_training_tasks() -> None:
    root = os.environ.get("IKIRERE_DATA")
    if not root or not (Path(root) / "benchmarks/arc_agi_1/training").is_dir():
        pytest.skip("IKIRERE_DATA names no mirror with arc_agi_1")
    documents, skipped = read(Path(), path="${IKIRERE_DATA}/benchmarks/arc_agi_1/training", augment=2)
    assert skipped == [] and 1195 <= len(documents) <= 1200
    assert len({d.group for d in documents}) == 400 and len({d.text for d in documents}) == len(documents)
    config: Source = TypeAdapter(Source).validate_python(
        {"kind": "arc", "name": "n", "path": "${IKIRERE_DATA}/benchmarks/arc_agi_1/training", "augment": 2}
    )
    assert size(config, Path()) == pytest.approx(sum(d.n_bytes for d in documents), rel=0.25)
