"""Grid tasks in documents, and the hash that turned and recoloured copies share."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.corpus.contamination.grid_pairs import Pair, board, canonical_hash, parse_pairs, signature
from ikirere.corpus.readers.arc import altered, parse_task, serialise
from ikirere.corpus.readers.puzzles.grids import DIGITS, SYMMETRIES, Grid, recolour
from ikirere.corpus.readers.puzzles.maze import maze_text
from ikirere.corpus.readers.puzzles.sudoku import sudoku_text

MIRROR = os.environ.get("IKIRERE_DATA")
needs_mirror = pytest.mark.skipif(not MIRROR, reason="IKIRERE_DATA is not set: no ARC tasks here")

SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


@st.composite
def grids(draw: st.DrawFn, longest: int = 6) -> Grid:
    rows, columns = draw(st.integers(1, longest)), draw(st.integers(1, longest))
    return tuple(draw(st.text(DIGITS, min_size=columns, max_size=columns)) for _ in range(rows))


pairs = st.tuples(grids(), grids())


def changed(pair: Pair, symmetry: int, colours: str) -> Pair:
    table = str.maketrans(DIGITS, colours)
    return tuple(SYMMETRIES[symmetry](recolour(grid, table)) for grid in pair)  # type: ignore[return-value]


@given(pairs, st.integers(0, 7), st.permutations(DIGITS))
def test_turned_mirrored_and_recoloured_copies_share_the_hash(
    pair: Pair, symmetry: int, colours: list[str]
) -> None:
    copy = changed(pair, symmetry, "".join(colours))
    assert canonical_hash(copy) == canonical_hash(pair)
    assert signature(copy) == signature(pair)


def test_hashes_are_equal_exactly_within_an_orbit() -> None:
    """Against a search through all symmetries and renamings, for every pair of a 2 x 2 and a 1 x 2 grid of
    three colours."""
    everything = [((a + b, c + d), (e + f,)) for a, b, c, d, e, f in itertools.product("012", repeat=6)]

    def orbit(pair: Pair) -> frozenset[Pair]:
        return frozenset(
            changed(pair, symmetry, "".join(names) + "3456789")
            for symmetry in range(8)
            for names in itertools.permutations("012")
        )

    by_orbit: dict[frozenset[Pair], set[bytes]] = {}
    for pair in everything:
        by_orbit.setdefault(orbit(pair), set()).add(canonical_hash(pair))
    assert all(len(hashes) == 1 for hashes in by_orbit.values())
    assert len(set().union(*by_orbit.values())) == len(by_orbit)


def test_only_both_grids_together_are_turned_and_recoloured() -> None:
    given_, wanted = ("012", "345"), ("120", "000")
    assert canonical_hash((given_, wanted)) != canonical_hash((SYMMETRIES[2](given_), wanted))
    table = str.maketrans("01", "10")
    assert canonical_hash((given_, wanted)) != canonical_hash((given_, recolour(wanted, table)))
    assert canonical_hash((given_, wanted)) != canonical_hash((wanted, given_))


def as_lists(pair: Pair) -> dict[str, list[list[int]]]:
    return {name: [[int(c) for c in row] for row in grid] for name, grid in zip(("input", "output"), pair)}


FORMS = {
    "json": json.dumps,
    "indented": lambda task: json.dumps(task, indent=2),
    "python": repr,
    "within": lambda task: f"Solve this one:\n{json.dumps(task)}\nIt is easy.",
}


@given(st.lists(pairs, min_size=1, max_size=3), st.sampled_from(sorted(FORMS)))
def test_pairs_are_found_in_json(found: list[Pair], form: str) -> None:
    task = {"train": [as_lists(p) for p in found[:-1]], "test": [as_lists(found[-1])]}
    assert set(found) <= set(parse_pairs(FORMS[form](task)))


def test_output_before_input_and_a_test_without_output_in_json() -> None:
    pair = ("01", "23"), ("4",)
    lists = as_lists(pair)
    assert parse_pairs(json.dumps({"output": lists["output"], "input": lists["input"]})) == [pair]
    assert parse_pairs(json.dumps([{"input": [[1]]}, lists])) == [pair]
    assert parse_pairs('{"input": [[1, 2], [3]], "output": [[10]]}') == []


ROWS = {"digits": "", "blanks": " ", "commas": ", ", "bars": "|"}


@given(st.lists(pairs, min_size=1, max_size=3), st.sampled_from(sorted(ROWS)))
def test_pairs_are_found_as_lines(found: list[Pair], form: str) -> None:
    def lines(grid: Grid) -> str:
        return "\n".join(ROWS[form].join(row) for row in grid)

    text = "\n".join(f"input:\n{lines(a)}\noutput:\n{lines(b)}\n" for a, b in found)
    assert set(found) <= set(parse_pairs(text))
    assert set(found) <= set(parse_pairs(text.replace("\n", "\r\n")))


@given(st.lists(pairs, min_size=2, max_size=4), st.integers(0, 7), st.permutations(DIGITS))
def test_tasks_of_the_arc_source_are_read_back(found: list[Pair], symmetry: int, colours: list[str]) -> None:
    train, test = [as_lists(p) for p in found[:-1]], [as_lists(found[-1])]
    copy = altered(parse_task(train, test), symmetry, "".join(colours))
    assert {canonical_hash(p) for p in found} <= {canonical_hash(p) for p in parse_pairs(serialise(copy))}


def test_puzzles_are_found_as_boards_and_as_strings() -> None:
    pair = board(PUZZLE), board(SOLUTION)
    for text in (sudoku_text(PUZZLE, SOLUTION, [2, 3]), f"source,{PUZZLE},{SOLUTION},4\n"):
        assert canonical_hash(pair) in {canonical_hash(p) for p in parse_pairs(text)}
    maze = ["#" * 30, *["#" + " " * 28 + "#"] * 27, "#S" + " " * 26 + "G#", "#" * 30]
    solved = [*maze[:-2], "#S" + "o" * 26 + "G#", maze[-1]]
    pair = board("".join(maze)), board("".join(solved))
    for text in (maze_text(maze, solved), json.dumps({"question": "".join(maze), "answer": "".join(solved)})):
        assert canonical_hash(pair) in {canonical_hash(p) for p in parse_pairs(text)}
    assert parse_pairs(f"{PUZZLE},{SOLUTION}", boards=False) == []


@pytest.mark.parametrize("cells", ["", "012", "0" * 961])
def test_what_is_no_square_board_is_refused(cells: str) -> None:
    with pytest.raises(ValueError, match="no square board"):
        board(cells)


@given(st.text(st.sampled_from('012 ,|[]\n"inputo:{}#SG.\r\t½٣')) | st.text())
@settings(max_examples=200)
def test_no_text_is_too_odd_to_look_at(text: str) -> None:
    for pair in parse_pairs(text):
        assert len(canonical_hash(pair)) == 32


@pytest.mark.parametrize(
    "text",
    [
        "1" * 300_000,
        " " * 300_000,
        "1 " * 150_000,
        "#" * 300_000,
        "[" * 300_000,
        "'input': [[" + "1, " * 100_000,
        "1\n" * 150_000,
        " \n" * 150_000,
    ],
)
def test_looking_takes_time_in_proportion_to_the_text(text: str) -> None:
    began = time.process_time()
    parse_pairs(text)
    assert time.process_time() - began < 2


def test_prose_and_tables_of_numbers_hold_no_small_grids() -> None:
    text = "In 1999 there were\n12 of them, then 7.\n\nName  A\nx 1.5\ny 22.75\n"
    assert parse_pairs(text) == []


# ------------------------------------------------------------ the public tasks


@pytest.fixture(scope="module")
def tasks() -> dict[str, dict[str, Any]]:
    root = Path(str(MIRROR)) / "benchmarks"
    return {
        name: {path.stem: json.loads(path.read_text()) for path in sorted((root / name).glob("*.json"))}
        for name in (
            "arc_agi_1/training",
            "arc_agi_1/evaluation",
            "arc_agi_2/training",
            "arc_agi_2/evaluation",
        )
    }


def hashes(task: dict[str, Any]) -> tuple[Counter[bytes], set[bytes]]:
    train, test = parse_task(task["train"], task["test"])
    return Counter(canonical_hash(p) for p in (*train, *test)), {canonical_hash(p) for p in test}


@needs_mirror
def test_shared_tasks_are_told_from_unrelated_ones(tasks: dict[str, dict[str, Any]]) -> None:
    """Every task against every task of the other sets. Those that share a test pair or half of their pairs
    are the 376 and 6 that stand in two sets under one name, and three more, each looked at: 070dd51e and
    40853293 are one task, the test pair of 50a16a69 is a demonstration of caa06a1f in other colours, 55783887
    and db695cfb share five pairs of six. No unrelated task shares as much, so one test pair or half of the
    pairs is enough to judge by."""
    table = {name: {i: hashes(task) for i, task in of.items()} for name, of in tasks.items()}
    related: dict[str, set[tuple[str, str]]] = {}
    for left, right in itertools.permutations(table, 2):
        owners: dict[bytes, set[str]] = {}
        for name, (all_pairs, _) in table[right].items():
            for key in all_pairs:
                owners.setdefault(key, set()).add(name)
        for name, (all_pairs, tests) in table[left].items():
            for other in set().union(*(owners.get(key, set()) for key in all_pairs)):
                shared = all_pairs & table[right][other][0]
                if tests & shared.keys() or shared.total() * 2 >= all_pairs.total():
                    related.setdefault(f"{left} in {right}", set()).add((name, other))
    same = {key: sum(a == b for a, b in found) for key, found in related.items()}
    assert same["arc_agi_1/evaluation in arc_agi_2/training"] == 376
    assert same["arc_agi_1/evaluation in arc_agi_2/evaluation"] == 6
    others = {
        frozenset(p)
        for key, found in related.items()
        if "evaluation in" in key
        for p in found
        if p[0] != p[1]
    }
    assert others == {
        frozenset(p) for p in (("070dd51e", "40853293"), ("50a16a69", "caa06a1f"), ("55783887", "db695cfb"))
    }
