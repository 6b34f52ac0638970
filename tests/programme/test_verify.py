"""`verify` names what was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.programme.toys import Numbers, load_toy, toy_recipe

from ikirere.errors import UserError
from ikirere.programme import execute, ledger
from ikirere.programme.verify import _same, verify, verify_and_say


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


def rewritten(folder: Path, stage: str, change: Callable[[Any], None]) -> list[str]:
    """Problems after an edit of a result, without the one about the file's hash."""
    edit(folder / stage / "result.json", change)
    found = problems(folder)
    assert found.pop(0).startswith(f"{folder / stage / 'result.json'}: changed (sha256 ")
    return found


def test_what_is_counted(folder: Path) -> None:
    found = verify(folder)
    assert (found.stages, found.artifacts, found.metrics, found.gates) == (3, 12, 5, 1)
    assert (found.problems, found.unfinished, found.remarks) == ([], [], [])


@pytest.mark.parametrize(
    ("part", "value"), [("low", 0.1), ("high", None), ("n", 41), ("value", None), ("value", 0.525 + 1e-8)]
)
def test_every_part_of_a_metric_is_compared(folder: Path, part: str, value: Any) -> None:
    def change(content: Any) -> None:
        next(row for row in content["metrics"] if row["name"] == "even")[part] = value

    (line,) = rewritten(folder, "numbers", change)
    assert f"metric even: {part} is {value}, numbers.jsonl gives " in line


def test_rounding_is_no_change(folder: Path) -> None:
    def change(content: Any) -> None:
        row = next(row for row in content["metrics"] if row["name"] == "even")
        row["value"] *= 1 + 1e-12
        row["low"] *= 1 - 1e-12

    assert rewritten(folder, "numbers", change) == []


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (1.0, 1.0, True),
        (1.0, 1 + 0.5e-9, True),
        (1.0, 1 + 3e-9, False),
        (1e12, 1e12 + 500, True),
        (1e12, 1e12 + 3000, False),
        (0.0, 0.5e-9, True),
        (0.0, 3e-9, False),
        (float("nan"), float("nan"), True),
        (float("nan"), 1.0, False),
        (1.0, float("nan"), False),
        (float("inf"), float("inf"), True),
        (None, None, True),
        (None, 0.0, False),
        (0.0, None, False),
    ],
)
def test_numbers_are_the_same_to_nine_digits(a: float | None, b: float | None, same: bool) -> None:
    assert _same(a, b) is same


def test_gates_are_those_of_the_recipe(folder: Path) -> None:
    """One is renamed in the result: the recipe's lacks its verdict, and the other is nobody's."""

    def change(content: Any) -> None:
        content["gates"][0]["name"] = "most are even"

    path = folder / "numbers" / "result.json"
    assert rewritten(folder, "numbers", change) == [
        f"{path}: gate half are even: verdict is None, should be INSIDE NOISE",
        f"{path}: gate most are even: not in recipe.yaml",
    ]


@pytest.mark.parametrize("change", [lambda c: c.pop("gates"), lambda c: c["metrics"][0].pop("kind")])
def test_a_result_without_its_parts_was_altered(folder: Path, change: Callable[[Any], None]) -> None:
    (line,) = rewritten(folder, "total", change)
    assert line.startswith(f"{folder / 'total' / 'result.json'}: was altered (")


def test_rows_that_are_gone_derive_nothing_and_leave_gates_not_run(folder: Path) -> None:
    (folder / "numbers" / "numbers.jsonl").unlink()
    found = verify(folder)
    assert any("metric even cannot be derived" in line for line in found.problems)
    assert any(
        "gate half are even: verdict is INSIDE NOISE, should be NOT RUN" in line for line in found.problems
    )
    assert found.metrics == 5


def test_a_garbage_line_of_the_ledger_is_named(folder: Path) -> None:
    path = folder / ledger.NAME
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "garbage", *lines[2:]]) + "\n")
    assert f"{path}:3: not an event" in problems(folder)


def test_a_stage_after_changed_outputs_counts_as_unfinished_and_both_are_said(tmp_path: Path) -> None:
    execute.run(toy_recipe(), tmp_path, tmp_path / "run", load_toy, until="square")
    lines: list[str] = []
    assert verify_and_say(tmp_path / "run", lines.append) == 0
    found = verify(tmp_path / "run")
    assert (found.stages, found.unfinished, found.gates, found.metrics) == (2, ["total"], 1, 4)
    assert lines[-1] == "not finished, not checked: total"
    assert lines[-2].endswith(" 1 gates checked: all as measured")


def test_failed_and_stale_stages_are_not_checked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"planned\.numbers\.fail"):
        execute.run(toy_recipe(fail="user"), tmp_path, run, load_toy)
    assert verify(run).unfinished == ["total"]
    execute.run(toy_recipe(), tmp_path, run, load_toy)
    assert verify(run).unfinished == []
    execute.run(toy_recipe(rows=30), tmp_path, run, load_toy, until="numbers")
    found = verify(run)
    assert (found.stages, found.unfinished, found.problems) == (1, ["square", "total"], [])


def test_a_run_without_a_finished_stage_has_nothing_to_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Numbers, context: Any) -> None:
        raise UserError("nothing came of it")

    monkeypatch.setattr(Numbers, "run", fails)
    with pytest.raises(UserError, match="nothing came of it"):
        execute.run(toy_recipe(), tmp_path, tmp_path / "run", load_toy)
    lines: list[str] = []
    assert verify_and_say(tmp_path / "run", lines.append) == 1
    assert f"CHANGED {tmp_path / 'run'}: no stage has finished, there is nothing to verify" in lines
    assert any("gates checked: 1 problems" in line for line in lines)


@pytest.mark.parametrize(("part", "value"), [("passed", True), ("decision", "go")])
def test_what_follows_from_a_verdict_is_judged_again(tmp_path: Path, part: str, value: Any) -> None:
    execute.run(toy_recipe(target=0.9), tmp_path, tmp_path / "run", load_toy)
    found = rewritten(tmp_path / "run", "numbers", lambda content: content["gates"][0].update({part: value}))
    assert len(found) == 1 and f"gate half are even: {part} is {value}, should be" in found[0]
