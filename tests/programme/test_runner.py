"""Which stages run, which are kept, and what a run leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.programme.toys import Lines, load_toy, toy_recipe

from ikirere.errors import UserError
from ikirere.programme import execute, ledger, result, runner
from ikirere.programme.failures import Failure
from ikirere.programme.status import status
from ikirere.recipe.schema import Recipe
from ikirere.recipe.yamlio import parse

ALL = ("numbers", "square", "total")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage before each stage takes longer than a toy stage, in a process that has torch."""
    monkeypatch.setattr("ikirere.programme.resources.give_back_memory", lambda: None)


def go(folder: Path, recipe: Recipe | None = None, **options: Any) -> tuple[int, dict[str, str]]:
    """(exit code, stage -> first line about it)."""
    lines = Lines()
    code = execute.run(recipe or toy_recipe(), folder.parent, folder, load_toy, reporter=lines, **options)
    said: dict[str, str] = {}
    for line in lines.lines:
        if ": " in line and not line.startswith(" "):
            name, text = line.split(": ", 1)
            said.setdefault(name, text)
    return code, said


def states(folder: Path) -> dict[str, str]:
    return {stage["name"]: stage["state"] for stage in status(folder)["stages"]}


def test_a_second_call_keeps_every_stage(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, said = go(folder)
    assert code == 0
    assert [said[name] for name in ALL] == ["starts"] * 3
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    code, said = go(folder)
    assert code == 0
    assert [said[name] for name in ALL] == ["unchanged, kept"] * 3
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed <= {"ledger.jsonl", "recipe.yaml", "environment.json", ".lock"}


def test_a_changed_setting_runs_its_stage_and_those_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    go(folder)
    _, said = go(folder, toy_recipe(steps=21))
    assert said == {
        "numbers": "unchanged, kept",
        "square": "square.steps: 20 -> 21",
        "total": "the outputs of square are others",
    }
    _, said = go(folder, toy_recipe(steps=21, rows=41))
    assert said["numbers"] == "rows: 40 -> 41"
    assert said["square"] == "the outputs of numbers are others"
    _, said = go(folder, toy_recipe(steps=21, rows=41, seed=4))
    assert said["numbers"] == "seed: 3 -> 4"


def test_what_is_read_from_outside_counts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    go(folder)
    (tmp_path / "source.txt").write_text("new")
    _, said = go(folder)
    assert said["numbers"] == "source.txt: its content changed"


def test_partial_work_is_kept_for_the_same_key_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Failure):
        go(folder, toy_recipe(fail="raise"))
    (folder / "total" / "partial").write_text("work")
    with pytest.raises(Failure):
        go(folder, toy_recipe(fail="raise"))
    assert (folder / "total" / "partial").exists()
    code, said = go(folder, toy_recipe())
    assert code == 0
    assert said["total"] == "total.fail: raise -> "
    assert not (folder / "total" / "partial").exists()
    assert [path.read_text() for path in folder.glob("set-aside/total.*/partial")] == ["work"]


def test_result_holds_origin_hashes_and_times(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    go(folder, toy_recipe(target=0.1))
    content = result.read(folder / "numbers")
    assert content["stage"] == "numbers"
    assert content["attempts"] == 1
    assert content["peak_rss_bytes"] > 1_000_000
    assert content["seconds"] >= 0
    assert content["started"] <= content["ended"]
    even = next(row for row in content["metrics"] if row["name"] == "even")
    assert (even["raw"], even["field"], even["kind"], even["n"]) == (
        "numbers.jsonl",
        "even",
        "proportion",
        40,
    )
    assert [gate["verdict"] for gate in content["gates"]] == ["PASS"]
    square = result.read(folder / "square")
    # The folder stands for its files, and the raw rows of metrics are artifacts unasked.
    assert [row["path"] for row in square["artifacts"]] == [
        "model/config.json",
        "model/weights.bin",
        "steps.jsonl",
        "w.jsonl",
    ]
    assert not list(folder.rglob("*.part"))
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["seed"] == 3
    assert {"python", "torch", "platform", "cpu", "cores", "memory_bytes", "packages", "git"} <= set(
        environment
    )


def test_the_resolved_recipe_loads_to_an_equal_one_without_the_secret(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = toy_recipe()
    go(folder, recipe)
    assert Recipe.model_validate(parse((folder / "recipe.yaml").read_text(), "recipe").value) == recipe
    secret = recipe.model_copy(update={"tracker": recipe.tracker.model_copy(update={"key": "hush"})})
    go(folder, secret)
    assert "hush" not in "".join(
        path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()
    )


def test_a_missed_gate_stops_after_writing_everything(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = toy_recipe(target=0.9, on_miss="stop")
    code, said = go(folder, recipe)
    assert code == 3
    assert said["stopped"] == "half are even"
    assert states(folder) == {"numbers": "done", "square": "waiting", "total": "waiting"}
    assert status(folder)["stages"][0]["gates"][0]["verdict"] == "MISS"
    code, said = go(folder, recipe)
    assert (code, said["numbers"]) == (3, "unchanged, kept"), "a kept result stops the run again"
    code, said = go(folder, toy_recipe(target=0.1, on_miss="stop"))
    assert (code, said["numbers"]) == (0, "unchanged, kept"), (
        "gates are judged again without running anything"
    )
    assert status(folder)["stages"][0]["gates"][0]["verdict"] == "PASS"


def test_a_missed_gate_that_only_warns_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, _ = go(folder, toy_recipe(target=0.9, on_miss="warn"))
    assert code == 0
    assert set(states(folder).values()) == {"done"}


@pytest.mark.parametrize(("on_miss", "code"), [("stop", 3), ("warn", 0), ("record", 0)])
def test_inside_noise_is_no_pass_for_a_gate_that_stops(tmp_path: Path, on_miss: str, code: int) -> None:
    folder = tmp_path / "run"
    assert go(folder, toy_recipe(target=0.55, on_miss=on_miss))[0] == code
    gate = status(folder)["stages"][0]["gates"][0]
    assert (gate["verdict"], gate["passed"]) == ("INSIDE NOISE", on_miss != "stop")


def test_a_stage_marked_always_runs_after_a_stop(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = toy_recipe(("numbers", "square", "last"), target=0.9, on_miss="stop")
    code, _ = go(folder, recipe)
    assert code == 3
    assert states(folder) == {"numbers": "done", "square": "waiting", "last": "done"}
    assert status(folder)["stages"][2]["metrics"] == {"inputs": 1.0}


def test_unbuilt_stages_stop_a_run_before_any_work(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = toy_recipe(("numbers", "distil", "square", "shrink", "total"))
    with pytest.raises(UserError, match=r"distil, shrink of toy not built yet; nothing was run"):
        go(folder, recipe)
    assert not folder.exists()
    assert go(folder, recipe, until="numbers")[0] == 0


def test_a_rehearsal_goes_through_the_built_ones(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = toy_recipe(("numbers", "distil", "square", "total"), target=0.9, on_miss="stop")
    gate = {"name": "student", "metric": "loss", "op": "<", "target": 1.0, "on_miss": "stop"}
    tree = recipe.model_dump(mode="json")
    tree["gates"]["distil"] = [gate]
    code, said = go(folder, Recipe.model_validate(tree), rehearsal=True)
    assert code == 0, "a rehearsal is not stopped by gates made for the full size"
    assert said["distil"] == "NOT BUILT"
    shown = status(folder)
    assert shown["rehearsal"] is True
    assert states(folder) == {"numbers": "done", "distil": "not built", "square": "done", "total": "done"}
    distil = shown["stages"][1]["gates"][0]
    assert (distil["verdict"], distil["value"]) == ("NOT RUN", None)
    assert shown["stages"][0]["gates"][0]["verdict"] == "MISS"
    assert result.read(folder / "numbers")["rehearsal"] is True


def test_until_stops_after_the_named_stage(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    go(folder, until="square")
    assert states(folder) == {"numbers": "done", "square": "done", "total": "waiting"}
    with pytest.raises(
        UserError, match="--until nothing: no such stage; stages of toy are numbers, square, total"
    ):
        go(folder, until="nothing")


def test_a_need_that_comes_later_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="numbers"):
        go(tmp_path / "run", toy_recipe(("square", "numbers")))
    assert not (tmp_path / "run").exists()


def test_folders_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    thesis = tmp_path / "numbers" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(UserError, match="is not a run folder"):
        go(tmp_path)
    assert thesis.read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        go(tmp_path / "file")
    go(tmp_path / "run")
    with pytest.raises(UserError, match="holds a run of toy; give another --run-folder"):
        go(tmp_path / "run", rehearsal=True)


def test_failures_are_one_line_and_written_down(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Failure) as caught:
        go(folder, toy_recipe(fail="raise"))
    assert str(caught.value) == (
        f"total: ZeroDivisionError: something nobody foresaw; traceback in {folder / 'error.log'}"
    )
    assert "Traceback" in (folder / "error.log").read_text()
    assert states(folder)["total"] == "failed"
    with pytest.raises(UserError, match="set it to ''"):
        go(folder, toy_recipe(fail="user"))
    assert go(folder)[0] == 0


def test_results_on_old_inputs_are_stale_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    go(folder)
    go(folder, toy_recipe(rows=50), until="numbers")
    assert states(folder) == {"numbers": "done", "square": "stale", "total": "stale"}
    assert (folder / "total" / "result.json").exists(), "a stale result is reported, not deleted"
    _, said = go(folder, toy_recipe(rows=50))
    assert said["numbers"] == "unchanged, kept"


def test_one_stage_can_be_made_again_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    go(folder)
    monkeypatch.setattr(runner, "code_hash", lambda module: "edited")
    lines = Lines()
    assert execute.remake(folder, "total", load_toy, lines) == 0
    assert [line for line in lines.lines if line.startswith(("numbers", "square"))] == []
    events = ledger.read_events(folder / ledger.NAME)
    assert [e["stage"] for e in events if e["event"] == "stage-started"] == [*ALL, "total"]
    with pytest.raises(UserError, match="has no stage report"):
        execute.remake(folder, "report", load_toy, lines)
