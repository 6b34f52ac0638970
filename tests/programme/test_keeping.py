"""Nothing that was made is lost: what is kept, what is set aside and comes back, what is asked about, what continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.programme.toys import Lines, Numbers, Square, load_toy, toy_recipe

from ikirere.common.checkpoints import catalogue
from ikirere.errors import UserError
from ikirere.programme import commands, execute, ledger, runner
from ikirere.programme.decisions import Decision
from ikirere.programme.identity import read_record
from ikirere.programme.runner import Options
from ikirere.programme.status import status
from ikirere.programme.verify import verify

EXPENSIVE = Options(expensive_seconds=0.0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ikirere.programme.resources.give_back_memory", lambda: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    go(tmp_path / "run")
    return tmp_path / "run"


def go(folder: Path, options: Options | None = None, **settings: Any) -> list[str]:
    """The lines of a run that ends with SHIP."""
    lines = Lines()
    recipe = toy_recipe(**settings)
    assert execute.run(recipe, folder.parent, folder, load_toy, reporter=lines, options=options) == 0
    return lines.lines


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Everything below a run folder but the lock, with times."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def squares(folder: Path) -> list[int]:
    return [json.loads(line)["square"] for line in (folder / "square" / "steps.jsonl").open()]


# ---------------------------------------------------------------- refused before anything changes


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rows": 2000}, "planned.numbers.rows: at most 1000 are accepted"),
        ({"factor": 2}, "square.factor: 1 -> 2"),
        ({"bytes": 7}, "--go-on is not possible: square.bytes cannot change during training"),
        ({"seed": 4}, "seed: 3 -> 4"),
    ],
)
def test_a_refused_run_changes_no_file(folder: Path, settings: dict[str, Any], words: str) -> None:
    before = files(folder)
    with pytest.raises(UserError) as error:
        go(folder, EXPENSIVE, **settings)
    assert words in str(error.value)
    assert files(folder) == before


def test_a_gate_that_nothing_measures_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    recipe = toy_recipe()
    gate = {"name": "g", "metric": "evn", "op": ">=", "target": 0.0}
    tree = recipe.model_dump(mode="json") | {"gates": {"numbers": [gate]}}
    with pytest.raises(UserError, match=r"gates.numbers: 'g' asks for evn, .* the nearest it makes is even"):
        execute.run(type(recipe).model_validate(tree), tmp_path, tmp_path / "run", load_toy)
    assert not (tmp_path / "run").exists()


def test_a_refusal_after_an_input_was_made_again_puts_it_back(folder: Path) -> None:
    """Whether a changed input outdates an expensive stage is known once it is rebuilt; the old one returns then."""
    before = {
        name: content for name, (content, _) in files(folder).items() if not name.endswith((".jsonl", "yaml"))
    }
    with pytest.raises(UserError, match="the outputs of numbers are others"):
        options = Options(rebuild=frozenset({"numbers"}), expensive_seconds=0.0)
        execute.run(toy_recipe(rows=41), folder.parent, folder, load_toy, options=options, reporter=Lines())
    after = files(folder)
    assert {name: after[name][0] for name in before} == before
    assert [aside["stage"] for aside in status(folder)["set_aside"]] == ["numbers"]
    assert go(folder)[0] == "numbers: unchanged, kept"
    assert verify(folder).problems == []


# ---------------------------------------------------------------- set aside, restored, cleaned


def test_what_is_outdated_is_set_aside_and_comes_back(folder: Path) -> None:
    model = (folder / "square" / "model" / "weights.bin").read_bytes()
    go(folder, bytes=7)
    (aside,) = [a for a in status(folder)["set_aside"] if a["stage"] == "square"]
    name = Path(aside["path"]).name
    assert name.startswith("square.step-20.tokens-200.key-")
    assert (Path(aside["path"]) / "model" / "weights.bin").read_bytes() == model
    lines = go(folder)
    assert f"square: back to earlier settings: {name} comes back" in lines
    assert (folder / "square" / "model" / "weights.bin").read_bytes() == model
    assert not any("starts" in line for line in lines)
    assert verify(folder).problems == []


def test_clean_deletes_only_when_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(folder, bytes=7)
    assert len(status(folder)["set_aside"]) == 2
    with pytest.raises(UserError, match="--yes"):
        commands.clean(folder, yes=False, say=lambda line: None)
    assert len(status(folder)["set_aside"]) == 2
    said: list[str] = []
    assert commands.clean(folder, yes=True, say=said.append) == 0
    assert status(folder)["set_aside"] == []
    assert any("step 20" in line and "finished" in line for line in said)
    go(folder, bytes=7)


def test_an_input_with_equal_bytes_outdates_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "source.txt").write_text("an empty change")
    lines = go(folder, EXPENSIVE_FOR_TRAINING)
    assert lines[0] == "numbers: source.txt: its content changed"
    assert "square: unchanged, kept" in lines and "total: unchanged, kept" in lines


EXPENSIVE_FOR_TRAINING = Options(expensive_seconds=60.0)


# ---------------------------------------------------------------- keys hold only what changes the result


def test_what_only_watches_outdates_nothing(folder: Path) -> None:
    weights = (folder / "square" / "model" / "weights.bin").stat().st_mtime_ns
    lines = go(folder, EXPENSIVE, watch=5)
    assert "square: measured again (other questions)" in lines
    assert status(folder)["stages"][1]["metrics"]["watched"] == 5.0
    assert "total: unchanged, kept" in lines, (
        "what is made of the outputs does not depend on how they are measured"
    )
    assert (folder / "square" / "model" / "weights.bin").stat().st_mtime_ns >= weights
    assert len(squares(folder)) == 20


def test_other_code_and_surroundings_keep_a_result_and_mark_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ikirere.programme import status as status_module

    monkeypatch.setattr(runner, "code_hash", lambda module: "edited")
    monkeypatch.setattr(status_module, "code_hash", lambda module: "edited")
    monkeypatch.setattr(Numbers, "surroundings", lambda *a: {"packages": "others"})
    before = runner.environment.made_in
    monkeypatch.setattr("ikirere.programme.environment.made_in", lambda: before() | {"torch": "9.9"})
    lines = go(folder, EXPENSIVE)
    assert lines[:3] == [f"{name}: unchanged, kept" for name in ("numbers", "square", "total")]
    shown = status(folder, {"square": "ikirere.any"})["stages"][1]
    assert shown["state"] == "done"
    assert shown["marks"][0] == "made by other code"
    assert "torch" in shown["marks"][1] and "9.9" in shown["marks"][1]
    assert any(
        "square: made by other code" in line for line in verify(folder, {"square": "ikirere.any"}).remarks
    )
    go(folder, Options(rebuild=frozenset({"square"}), expensive_seconds=0.0))
    assert status(folder, {"square": "ikirere.any"})["stages"][1]["marks"] == []


def test_a_half_made_stage_goes_on_with_other_code_and_the_ledger_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    interrupt_square_at(7, folder, monkeypatch)
    monkeypatch.setattr(runner, "code_hash", lambda module: "edited")
    lines = go(folder)
    assert "square: continues from step 7 with other code than it began with" in lines
    starts = [e for e in ledger.read_events(folder / "ledger.jsonl") if e["event"] == "stage-started"]
    square = [event for event in starts if event["stage"] == "square"]
    assert [(event["step"], event["code"] == "edited") for event in square] == [(None, False), (7, True)]
    assert len(squares(folder)) == 20


def interrupt_square_at(step: int, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """A run that is interrupted when `square` has made so many steps."""
    real = Square.checkpoint

    def stop(context: Any, at: int) -> None:
        real(context, at)
        if at == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Square, "checkpoint", staticmethod(stop))
        with pytest.raises(KeyboardInterrupt):
            go(folder, **settings)


# ---------------------------------------------------------------- expensive stages are asked about


def test_cheap_stages_are_rebuilt_and_expensive_ones_asked_about(folder: Path) -> None:
    asked: list[tuple[str, Decision]] = []

    def ask(stage: str, decision: Decision) -> str:
        asked.append((stage, decision))
        return "rebuild"

    go(folder, Options(ask=ask, expensive_seconds=0.0), factor=2)
    assert [stage for stage, _ in asked] == ["square", "total"]
    assert [str(change) for change in asked[0][1].changes] == ["square.factor: 1 -> 2"]
    assert asked[0][1].can_go_on and not asked[1][1].can_go_on
    assert squares(folder)[3] % 2 == 0
    go(folder, Options(expensive_seconds=600.0), factor=3)
    assert len(asked) == 2, "a stage of seconds is not worth a question"


def test_a_half_trained_stage_is_not_thrown_away_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    interrupt_square_at(9, folder, monkeypatch)
    with pytest.raises(UserError, match=r"square: .* of work were done with other settings \(step 9\)"):
        go(folder, EXPENSIVE, bytes=7)
    go(folder, bytes=7)
    (aside,) = [a for a in status(folder)["set_aside"] if a["stage"] == "square"]
    assert (aside["step"], aside["finished"]) == (9, False)
    lines = go(folder)
    assert any("comes back" in line for line in lines if line.startswith("square"))
    assert len(squares(folder)) == 20


# ---------------------------------------------------------------- going on


def test_a_training_goes_on_with_other_settings_from_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    interrupt_square_at(9, folder, monkeypatch)
    lines = go(folder, Options(go_on=True, expensive_seconds=0.0), factor=10, steps=25)
    assert "square: square.factor: 1 -> 10; square.steps: 20 -> 25" in lines
    made = squares(folder)
    plain = squares_of(tmp_path / "plain", steps=25)
    assert made == plain[:9] + [10 * value for value in plain[9:]]
    (event,) = status(folder)["stages"][1]["continued"]
    assert event["step"] == 9
    assert event["changes"] == {"square.factor": [1, 10], "square.steps": [20, 25]}
    assert any("continued from step 9 with square.factor 1 -> 10" in line for line in verify(folder).remarks)
    assert verify(folder).problems == []
    assert go(folder, EXPENSIVE, factor=10, steps=25)[1] == "square: unchanged, kept"


def squares_of(folder: Path, **settings: Any) -> list[int]:
    go(folder, **settings)
    return squares(folder)


def test_a_finished_training_that_goes_on_is_kept_as_it_was(folder: Path) -> None:
    before = (folder / "square" / "model" / "weights.bin").read_bytes()
    ask = Options(go_on=True, expensive_seconds=0.0, rebuild=frozenset({"total"}))
    go(folder, ask, steps=30)
    assert len(squares(folder)) == 30
    record = read_record(folder / "square")
    assert record is not None and [row["step"] for row in record.continued] == [20]
    (aside,) = [a for a in status(folder)["set_aside"] if a["stage"] == "square"]
    assert (Path(aside["path"]) / "model" / "weights.bin").read_bytes() == before
    assert catalogue(folder / "square")[-1].key == record.key
    go(folder)
    assert (folder / "square" / "model" / "weights.bin").read_bytes() == before


def test_going_on_says_which_keys_forbid_it(folder: Path) -> None:
    before = files(folder)
    with pytest.raises(UserError, match=r"--go-on cannot change square\.bytes of a training that has begun"):
        go(folder, Options(go_on=True, expensive_seconds=0.0), bytes=5, steps=30)
    assert files(folder) == before


# ---------------------------------------------------------------- damage


def test_a_garbage_line_in_the_ledger_loses_nothing(folder: Path) -> None:
    path = folder / "ledger.jsonl"
    for number in range(len(path.read_text().splitlines()) - 1):
        lines = path.read_text().splitlines()
        whole = lines[number]
        lines[number] = "garbage"
        path.write_text("\n".join(lines) + "\n")
        said = go(folder, EXPENSIVE)
        assert f"{path}:{number + 1}: not an event, passed over" in said[0]
        assert {"numbers: unchanged, kept", "square: unchanged, kept", "total: unchanged, kept"} <= set(said)
        assert any(f"{path}:{number + 1}: not an event" in line for line in verify(folder).problems)
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:number], whole, *lines[number + 1 :]]) + "\n")


def test_a_lost_artifact_of_a_training_is_written_again_from_what_is_there(folder: Path) -> None:
    weights = folder / "square" / "model" / "weights.bin"
    before = weights.read_bytes()
    weights.unlink()
    assert status(folder)["stages"][1]["state"] == "damaged"
    lines = go(folder, EXPENSIVE)
    assert "square: model/weights.bin is gone or was altered: written again from what is there" in lines
    assert weights.read_bytes() == before
    assert "total: unchanged, kept" in lines
    assert not status(folder)["set_aside"]


@pytest.mark.parametrize("text", ["{", "", "[]", None])
def test_a_damaged_result_is_written_again(folder: Path, text: str | None) -> None:
    path = folder / "square" / "result.json"
    path.unlink() if text is None else path.write_text(text)
    lines = go(folder, EXPENSIVE)
    assert "square: result.json is gone or was altered: written again from what is there" in lines
    assert len(squares(folder)) == 20
    assert verify(folder).problems == []


def test_a_missing_folder_is_named_with_the_way_back(folder: Path) -> None:
    gone = folder / "square"
    elsewhere = folder.parent / "elsewhere"
    gone.rename(elsewhere)
    with pytest.raises(UserError, match=r"square: is gone.*put the folder back, or give --rebuild square"):
        go(folder, EXPENSIVE)
    elsewhere.rename(gone)
    assert "square: unchanged, kept" in go(folder, EXPENSIVE)
    gone.rename(elsewhere)
    assert "square: starts, its folder is gone" in go(folder)


def test_a_missing_identity_keeps_a_finished_result(folder: Path) -> None:
    (folder / "square" / "identity.json").write_text("garbage")
    lines = go(folder, EXPENSIVE)
    assert "square: kept; identity.json is missing, so its settings cannot be compared" in lines
    assert status(folder)["stages"][1]["marks"] == ["settings not recorded"]


def test_a_folder_that_cannot_be_written_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, *a: Any, **k: Any) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "ledger.jsonl"))

    before = files(folder)
    monkeypatch.setattr(ledger.Ledger, "append", refuse)
    with pytest.raises(
        UserError, match=r"ledger\.jsonl: cannot be written \(Permission denied\); nothing was lost"
    ):
        go(folder)
    assert files(folder) == before


# ---------------------------------------------------------------- milestones


def test_a_milestone_that_says_stop_ends_the_stage_at_its_step(tmp_path: Path) -> None:
    folder, lines = tmp_path / "run", Lines()

    def attempt(**settings: Any) -> int:
        return execute.run(toy_recipe(**settings), tmp_path, folder, load_toy, reporter=lines)

    assert attempt(milestone=8, stop_beyond=5.0) == 3
    assert len(squares(folder)) == 8, "a stop at step 8 costs nothing more than step 8"
    shown = {stage["name"]: stage for stage in status(folder)["stages"]}
    assert (shown["square"]["state"], shown["total"]["state"]) == ("stopped", "waiting")
    (gate,) = shown["square"]["gates"]
    assert (gate["value"], gate["verdict"], gate["decision"]) == (8.0, "MISS", "stop")
    assert status(folder)["verdict"]["verdict"] == "DO NOT SHIP"
    assert attempt(milestone=8, stop_beyond=5.0) == 3
    assert len(squares(folder)) == 8, "the same command judges again and stops at once"
    assert attempt(milestone=8, stop_beyond=9.0) == 0
    assert len(squares(folder)) == 20
    assert "square: investigate: half way: 8, wanted <= 0 (MISS)" in lines.lines
    assert status(folder)["verdict"] == {
        "ship": True, "rehearsal": False, "verdict": "SHIP", "blocking": [],
        "warnings": [{"stage": "square", "name": "half way", "why": "MISS"}],
    }  # fmt: skip


def test_a_rehearsal_is_not_stopped_by_a_milestone(tmp_path: Path) -> None:
    recipe = toy_recipe(milestone=8, stop_beyond=5.0)
    assert execute.run(recipe, tmp_path, tmp_path / "run", load_toy, rehearsal=True, reporter=Lines()) == 0
    assert len(squares(tmp_path / "run")) == 20
