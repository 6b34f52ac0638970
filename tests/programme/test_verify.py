"""`verify` names what was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.programme.toys import load_toy, toy_recipe

from ikirere.errors import UserError
from ikirere.programme import execute, ledger
from ikirere.programme.verify import verify, verify_and_say


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("ikirere.programme.resources.give_back_memory", lambda: None)
    execute.run(toy_recipe(target=0.55), tmp_path, tmp_path / "run", load_toy)
    return tmp_path / "run"


def problems(folder: Path) -> list[str]:
    return verify(folder).problems


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_an_untouched_run_is_as_measured(folder: Path) -> None:
    lines: list[str] = []
    assert verify_and_say(folder, lines.append) == 0
    assert lines == ["3 stages, 12 files, 5 metrics, 1 gates checked: all as measured"]


@pytest.mark.parametrize(
    "name",
    ["square/model/weights.bin", "numbers/numbers.jsonl", "total/page.html", "recipe.yaml", "environment.json",
     "square/result.json"],
)  # fmt: skip
def test_one_changed_byte_is_named(folder: Path, name: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    lines: list[str] = []
    try:
        assert verify_and_say(folder, lines.append) == 1
        assert any(line.startswith(f"CHANGED {path}: changed") for line in lines), lines
    except UserError as error:
        assert str(path) in str(error)


def test_a_missing_artifact_is_named(folder: Path) -> None:
    (folder / "total" / "page.html").unlink()
    assert problems(folder) == [
        f"{folder / 'total' / 'page.html'}: cannot be read (No such file or directory)"
    ]


def test_a_prettier_number_is_found_out(folder: Path) -> None:
    def better(content: Any) -> None:
        next(row for row in content["metrics"] if row["name"] == "even")["value"] = 0.99

    edit(folder / "numbers" / "result.json", better)
    found = problems(folder)
    assert any("result.json: changed" in line for line in found)
    assert any("metric even: value is 0.99, numbers.jsonl gives 0.525" in line for line in found)


def test_a_prettier_verdict_is_found_out(folder: Path) -> None:
    def better(content: Any) -> None:
        content["gates"][0]["verdict"] = "PASS"

    edit(folder / "numbers" / "result.json", better)
    assert any(
        "gate half are even: verdict is PASS, should be INSIDE NOISE" in line for line in problems(folder)
    )


def test_changed_raw_rows_are_found_twice(folder: Path) -> None:
    path = folder / "numbers" / "numbers.jsonl"
    path.write_text(path.read_text().replace('"even": false', '"even": true'))
    found = problems(folder)
    assert any(line.startswith(f"{path}: changed") for line in found)
    assert any("metric even: value is 0.525, numbers.jsonl gives 1.0" in line for line in found)
    path.write_text("nonsense\n")
    assert any("metric even cannot be derived" in line for line in problems(folder))


def test_a_changed_ledger_is_named(folder: Path) -> None:
    path = folder / ledger.NAME
    path.write_text(path.read_text().replace('"recipe": "toy"', '"recipe": "toi"', 1))
    assert problems(folder)[0].startswith(f"{path}: event 1 changed")


def test_unfinished_stages_are_said_not_passed(tmp_path: Path) -> None:
    execute.run(toy_recipe(), tmp_path, tmp_path / "run", load_toy, until="numbers")
    found = verify(tmp_path / "run")
    assert found.problems == []
    assert found.unfinished == ["square", "total"]
    with pytest.raises(UserError, match="not a run folder"):
        verify(tmp_path)
