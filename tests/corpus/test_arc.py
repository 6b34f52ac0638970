"""ARC as a source: its texts, turned and recoloured copies, and files that do not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ikirere.corpus.document import Document
from ikirere.corpus.readers import open_source, size
from ikirere.corpus.readers.arc import alterations, altered, parse_task, serialise
from ikirere.corpus.readers.puzzles.grids import DIGITS, SYMMETRIES, to_grid
from ikirere.errors import UserError
from ikirere.recipe.data import Source


def read(folder: Path, **fields: Any) -> tuple[list[Document], list[tuple[str, str]]]:
    skipped: list[tuple[str, str]] = []
    config: Source = TypeAdapter(Source).validate_python(
        {"kind": "arc", "name": "n", "path": str(folder)} | fields
    )
    return list(open_source(config, folder, lambda *s: skipped.append(s))), skipped


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
