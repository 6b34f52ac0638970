"""The front door: what a person types, what they see, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tests.programme.toys import toy_recipe
from typer.testing import CliRunner

from ikirere import __version__, stages
from ikirere.cli import app
from ikirere.programme.console import show_end
from ikirere.recipe.yamlio import dump_yaml

ROOT = Path(__file__).resolve().parent.parent
TOYS = {name: f"tests.programme.toys:{name.capitalize()}" for name in ("numbers", "square", "total")}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage before each stage takes longer than a toy stage, in a process that has torch."""
    monkeypatch.setattr("ikirere.programme.resources.give_back_memory", lambda: None)


class Ended:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def ikirere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """The command in an empty folder, with toy stages in the registry."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "STAGES", TOYS)

    def call(*arguments: str) -> Ended:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return Ended(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(dump_yaml(toy_recipe(target=0.1).model_dump(mode="json")))
    return path


def test_a_run_ends_with_gates_times_report_and_commands(ikirere: Callable[..., Ended], recipe: Path) -> None:
    done = ikirere("run", str(recipe))
    assert done.code == 0, done.err
    assert Path("runs/toy/ledger.jsonl").is_file(), "the default folder is runs/NAME"
    for word in ("half are even", "0.525", "0.375 to 0.6706", "PASS", "peak memory", "SHIP"):
        assert word in done.out
    assert done.out.splitlines()[-3:] == [
        "report: runs/toy/total/page.html",
        "chat:   ikirere chat runs/toy",
        "serve:  ikirere serve runs/toy",
    ]
    again = ikirere("run", str(recipe))
    assert "square: unchanged, kept" in again.out


def test_without_a_model_there_is_nothing_to_talk_to(ikirere: Callable[..., Ended], recipe: Path) -> None:
    done = ikirere("run", str(recipe), "--until", "numbers", "--run-folder", "elsewhere")
    assert done.code == 0
    assert "ikirere chat" not in done.out
    assert Path("elsewhere/numbers/result.json").is_file()


def test_nobody_chats_with_a_model_that_fills_blanks(ikirere: Callable[..., Ended], recipe: Path) -> None:
    assert ikirere("run", str(recipe)).code == 0
    (config,) = Path("runs/toy").rglob("model/config.json")
    console = Console(width=120, record=True)
    config.write_text('{"architectures": ["IkirereForMaskedLM"]}')
    show_end(Path("runs/toy"), console)
    shown = console.export_text()
    assert "page.html" in shown and "ikirere chat" not in shown


def test_overrides_reach_the_run(ikirere: Callable[..., Ended], recipe: Path) -> None:
    assert ikirere("run", str(recipe), "planned.numbers.rows=12", "seed=9").code == 0
    content = json.loads(Path("runs/toy/numbers/result.json").read_text())
    assert (content["metrics"][0]["n"], content["seed"]) == (12, 9)


def test_a_missed_gate_is_exit_code_3(ikirere: Callable[..., Ended], recipe: Path) -> None:
    done = ikirere("run", str(recipe), "gates.numbers.0.target=0.9", "gates.numbers.0.on_miss=stop")
    assert done.code == 3
    assert "stopped: half are even" in done.out
    assert "MISS" in done.out


def test_a_rehearsal_has_its_own_folder_and_marks_its_verdicts(
    ikirere: Callable[..., Ended], recipe: Path
) -> None:
    done = ikirere("run", str(recipe), "--rehearse")
    assert done.code == 0, done.err
    assert "REHEARSAL" in done.out
    assert "PASS (rehearsal)" in done.out
    assert json.loads(ikirere("status", "runs/toy-rehearsal", "--json").out)["rehearsal"] is True


def test_status_has_exactly_this_shape(ikirere: Callable[..., Ended], recipe: Path) -> None:
    ikirere("run", str(recipe), "--until", "square")
    shown = json.loads(ikirere("status", "runs/toy", "--json").out)
    assert set(shown) == {"run", "stages", "set_aside", "planned", "verdict"}
    assert shown["run"] == "toy"
    assert [stage["name"] for stage in shown["stages"]] == ["numbers", "square", "total"]
    for stage in shown["stages"]:
        assert set(stage) == {
            "name", "state", "seconds", "spent", "step", "tokens", "metrics", "stale_inputs", "marks", "continued", "gates",
        }  # fmt: skip
    numbers, square, total = shown["stages"]
    assert numbers["state"] == "done"
    assert numbers["spent"] >= numbers["seconds"] >= 0
    assert numbers["metrics"] == {"even": 0.525, "mean": 46.075}
    assert set(numbers["gates"][0]) == {
        "name", "metric", "op", "target", "stop_beyond", "value", "low", "high", "verdict", "on_miss", "passed", "decision",
    }  # fmt: skip
    assert numbers["gates"][0]["verdict"] == "PASS"
    assert (square["step"], square["tokens"]) == (20, 200)
    assert (total["state"], total["seconds"], total["metrics"], total["gates"]) == ("waiting", None, {}, [])
    assert shown["verdict"]["verdict"] == "DO NOT SHIP"
    assert shown["verdict"]["blocking"] == [{"stage": "total", "name": "", "why": "waiting"}]
    assert "step" in ikirere("status", "runs/toy", "--checkpoints").out
    assert "half are even" in ikirere("status", "runs/toy").out


def test_what_is_set_aside_is_listed_and_cleaned(ikirere: Callable[..., Ended], recipe: Path) -> None:
    ikirere("run", str(recipe))
    assert ikirere("run", str(recipe), "planned.numbers.bytes=7").code == 0
    assert "set aside: square.step-20.tokens-200.key-" in ikirere("status", "runs/toy").out
    refused = ikirere("clean", "runs/toy")
    assert refused.code == 2 and "--yes" in refused.err
    assert ikirere("clean", "runs/toy", "--yes").code == 0
    assert json.loads(ikirere("status", "runs/toy", "--json").out)["set_aside"] == []
    assert ikirere("prune", "runs/toy", "--yes").code == 0


def test_a_rebuild_is_asked_for_by_name(ikirere: Callable[..., Ended], recipe: Path) -> None:
    ikirere("run", str(recipe))
    done = ikirere("run", str(recipe), "--rebuild", "square")
    assert done.code == 0 and "square: rebuilt as asked" in done.out
    wrong = ikirere("run", str(recipe), "--rebuild", "sqare")
    assert (
        wrong.code == 2 and "--rebuild sqare: no such stage; stages are numbers, square, total" in wrong.err
    )


def test_verify_says_what_changed(ikirere: Callable[..., Ended], recipe: Path) -> None:
    ikirere("run", str(recipe))
    assert ikirere("verify", "runs/toy").code == 0
    Path("runs/toy/total/page.html").write_text("<p>other</p>")
    done = ikirere("verify", "runs/toy")
    assert done.code == 1
    assert "CHANGED runs/toy/total/page.html: changed" in done.out


def test_unbuilt_stages_are_named_and_nothing_is_written(ikirere: Callable[..., Ended], recipe: Path) -> None:
    done = ikirere("run", str(recipe), "stages=[numbers, distil, square, quantise]")
    assert done.code == 2
    assert done.err.startswith("error: stages: distil, quantise of toy not built yet; nothing was run.")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["run", "toy.yaml", "model.hiden_size=3"], ["model.hiden_size"]),
        (["run", "toy.yaml", "model.hidden_size=wide"], ["model.hidden_size"]),
        (["run", "toy.yaml", "model.num_attention_heads=3"], ["64", "num_attention_heads", "3"]),
        (["run", "toy.yaml", "seed"], ["seed"]),
        (["run", "toy.yaml", "--until", "lunch"], ["--until lunch", "numbers, square, total"]),
        (["run", "toy.yaml", "--run-folder", "toy.yaml"], ["toy.yaml", "not a folder"]),
        (["run", "toy.yaml", "tracker={kind: wandb}"], ["tracker.k"]),
        (["run", "toy.yaml", "planned.numbers.fail=user"], ["planned.numbers.fail", "set it to ''"]),
        (["plan", "nowhere.yaml"], ["nowhere.yaml"]),
        (["status", "nowhere"], ["nowhere", "not a run folder"]),
        (["verify", "nowhere"], ["nowhere", "not a run folder"]),
        (["report", "nowhere"], ["nowhere", "not a run folder"]),
        (["chat", "nowhere"], ["nowhere"]),
        (["serve", "nowhere"], ["nowhere"]),
    ],
)
def test_mistakes_are_a_line_and_exit_code_2(
    ikirere: Callable[..., Ended],
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    done = ikirere(*arguments)
    assert done.code == 2, done.err
    assert done.err.startswith("error: ")
    for word in words:
        assert word in done.err
    assert "fail" in "".join(arguments) or not Path("runs").exists(), "nothing is written before the check"


def test_the_unforeseen_is_a_line_and_a_saved_traceback(ikirere: Callable[..., Ended], recipe: Path) -> None:
    done = ikirere("run", str(recipe), "planned.numbers.fail=raise")
    assert done.code == 1
    assert done.err == (
        "error: total: ZeroDivisionError: something nobody foresaw; traceback in runs/toy/error.log\n"
    )
    assert "Traceback" in Path("runs/toy/error.log").read_text()


def test_plan_prints_text_and_json(ikirere: Callable[..., Ended], recipe: Path) -> None:
    assert "toy" in ikirere("plan", str(recipe)).out
    assert json.loads(ikirere("plan", str(recipe), "--json").out)["name"] == "toy"


def test_help_is_quick_and_complete() -> None:
    command = [sys.executable, "-m", "ikirere.cli"]
    environment = {**os.environ, "COLUMNS": "100"}
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--help"], capture_output=True, text=True, env=environment, timeout=60
        )
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
    for verb in ("run", "plan", "status", "verify", "chat", "serve", "report", "version"):
        assert f"\n  {verb} " in done.stdout
    # Half a second of a free core; the machine may be busy with other tests.
    assert min(seconds) < 2.0
    done = subprocess.run([*command, "version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"ikirere {__version__}\n"
    assert subprocess.run([*command, "dance"], capture_output=True, timeout=60).returncode == 2


def test_a_reader_that_leaves_early_is_no_error(ikirere: Callable[..., Ended], recipe: Path) -> None:
    ikirere("run", str(recipe))
    command = f"{sys.executable} -m ikirere.cli status runs/toy --json | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("{\n", "")
