"""Presets of public datasets, on small copies in the hub's own formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parent))
from hub_helpers import ROWS, SOLVED, as_json_gz, as_parquet, read, set_apart

from ikirere.corpus.readers.presets import (
    PRESETS,
    conversation,
    maze_rows,
    question_and_answer,
    resolve_preset,
    sudoku_rows,
)
from ikirere.errors import UserError
from ikirere.recipe.data import Hub, Preset

pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_apart(tmp_path, monkeypatch)


def as_csv(folder: Path, rows: list[dict[str, Any]]) -> str:
    folder.mkdir()
    for split in ("train", "test"):
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        (folder / f"{split}.csv").write_text("\n".join(lines).replace("train", split) + "\n")
    return str(folder)


def copy_of(preset: str, folder: Path) -> str:
    row = ROWS[preset][0]
    if preset in ("codeparrot-clean", "arxiv", "stackexchange"):
        return as_json_gz(folder, [row, row])
    if preset in ("sudoku-extreme", "maze-hard"):
        return as_csv(folder, [row, row])
    return as_parquet(folder, [row, row], split=PRESETS[preset].split)


def test_every_preset_has_its_name_in_recipes_and_a_row_here() -> None:
    assert set(PRESETS) == set(get_args(Preset)) == set(ROWS)


@pytest.mark.parametrize("preset", ROWS)
def test_preset_on_a_copy(tmp_path: Path, preset: str) -> None:
    documents, skipped = read(tmp_path, preset=preset, dataset=copy_of(preset, tmp_path / "copy"))
    assert skipped == [] and len(documents) == 2
    expected = ROWS[preset][1]
    assert {key: getattr(documents[0], key) for key in expected} == expected
    if "group" not in expected:
        assert len({d.group for d in documents}) == 2  # rows are groups where nothing else is


def test_sudoku_digits_stay_digits(tmp_path: Path) -> None:
    """A column of 81 digits must not be read as a number."""
    documents, _ = read(
        tmp_path, preset="sudoku-extreme", dataset=as_csv(tmp_path / "c", [ROWS["sudoku-extreme"][0]])
    )
    assert SOLVED[:9] in documents[0].text.split("solution:\n")[1] and "..3......" in documents[0].text


def test_config_split_and_explicit_keys_win(tmp_path: Path) -> None:
    row = ROWS["the-stack-dedup"][0] | {"own": "MIT", "body": "other text", "who": "w", "where": "https://w"}
    copy = as_parquet(tmp_path / "copy", [row], config="special", split="validation")
    fields = {"preset": "the-stack-dedup", "dataset": copy, "config": "special", "split": "validation"}
    (plain,) = read(tmp_path, **fields)[0]
    assert (plain.text, plain.licence, plain.group) == ("import os\n", "Apache-2.0 AND MIT", "n/bob/lib")
    (other,) = read(
        tmp_path, text_field="body", licence_field="own", group_field="who", url_field="where", **fields
    )[0]
    assert (other.text, other.licence, other.group, other.url) == ("other text", "MIT", "n/w", "https://w")
    (fixed,) = read(tmp_path, licence="0BSD", **fields)[0]
    assert fixed.licence == "0BSD"
    (both,) = read(tmp_path, licence="0BSD", licence_field="absent", **fields)[0]
    assert both.licence == "0BSD"


def test_what_a_preset_fills_in() -> None:
    def of(**fields: Any) -> tuple[str, str | None, str]:
        found = resolve_preset(Hub(kind="hub", name="n", domain="d", **fields))
        return found.name, found.config, found.split

    assert of(preset="fineweb-edu") == ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train")
    assert of(preset="fineweb-edu", config="sample-100BT")[1] == "sample-100BT"
    assert of(preset="fineweb-edu", dataset="me/copy") == ("me/copy", None, "train")
    assert of(preset="arc-agi-1") == ("dataartist/arc-agi", None, "training")
    assert of(preset="arc-agi-1", split="evaluation")[2] == "evaluation"
    assert of(dataset="a/b") == ("a/b", None, "train")
    with pytest.raises(ValidationError, match="needs `preset` or `dataset`"):
        Hub(kind="hub", name="n", domain="d")
    with pytest.raises(ValidationError, match="preset"):
        Hub(kind="hub", name="n", domain="d", preset="nothing")  # type: ignore[arg-type]


def test_composed_texts() -> None:
    assert (
        question_and_answer(" Q? ", "1 + 1 = <<1+1=2>>2\n#### 2\n")
        == "Question: Q?\nAnswer: 1 + 1 = 2\n#### 2"
    )
    assert conversation("plain text") == "plain text"
    with pytest.raises(ValueError, match="9 x 9"):
        sudoku_rows("...", "123")
    with pytest.raises(ValueError, match="square"):
        maze_rows("###", "###")
    with pytest.raises(ValueError, match="breaks off"):
        maze_rows("#S#" + "###" + "#G#", "#S#" + "###" + "#G#")


def test_rows_that_a_composer_cannot_use_are_skipped(tmp_path: Path) -> None:
    good = ROWS["arc-agi-1"][0]
    ragged = good | {"train": [{"input": [[1], [2, 3]], "output": [[1]]}], "id": "bad"}
    empty = good | {"test": [], "id": "none"}
    copy = as_parquet(tmp_path / "copy", [ragged, good, empty, good], split="training")
    documents, skipped = read(tmp_path, preset="arc-agi-1", dataset=copy)
    assert len(documents) == 2 and skipped == [(f"{copy}:1", "bad-row"), (f"{copy}:3", "empty")]


def test_a_dataset_without_the_column_names_the_columns(tmp_path: Path) -> None:
    copy = as_parquet(tmp_path / "copy", [{"title": "a", "body": "b"}])
    with pytest.raises(UserError, match=r"copy:1: no field 'text' .*fields are body, title"):
        read(tmp_path, dataset=copy)
    with pytest.raises(UserError, match=r"no field 'question', 'answer'"):
        read(tmp_path, dataset=copy, preset="gsm8k-train")
