"""A whole programme with real weights, in some seconds: what it measures, and what keeps it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.programme.toys import Lines

from ikirere.errors import UserError
from ikirere.programme import execute
from ikirere.programme.metric_names import makes, undeclared
from ikirere.programme.runner import Options
from ikirere.programme.status import status
from ikirere.programme.verify import verify
from ikirere.recipe.load import load_recipe
from ikirere.stages import load_stage

TINY = Path(__file__).parent / "programme" / "tiny.yaml"
STAGES = ("data", "tokenizer", "shards", "pretrain", "sft", "dpo", "evaluate", "report")
EXPENSIVE = Options(expensive_seconds=0.0)
# Patterns of metrics that this programme has no occasion to make: of other models, steps and source kinds.
ELSEWHERE = {
    "pretrain": ("nats_per_token", "exact/", "gzip9", "xz9"),
    "evaluate": (
        "nats_per_token",
        "exact/",
        "perplexity_ratio@{milestone}",
        "perplexity_ratio/{domain}@{milestone}",
    ),
    "data": ("contaminated", "unchecked", "near_duplicate"),
}


def go(folder: Path, *overrides: str, options: Options | None = None) -> list[str]:
    lines = Lines()
    recipe = load_recipe(TINY, list(overrides))
    assert execute.run(recipe, TINY.parent, folder, load_stage, reporter=lines, options=options) == 0, (
        lines.lines
    )
    return lines.lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    go(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, for tests that change it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def decisions(lines: list[str]) -> dict[str, str]:
    """Stage -> the first line about it."""
    found: dict[str, str] = {}
    for line in lines:
        name, _, text = line.partition(": ")
        if name in STAGES:
            found.setdefault(name, text)
    return found


def test_it_ends_with_a_verdict_and_verifies(finished: Path) -> None:
    shown = status(finished)
    assert [stage["state"] for stage in shown["stages"]] == ["done"] * len(STAGES)
    assert shown["verdict"]["verdict"] == "SHIP"
    assert shown["set_aside"] == []
    assert verify(finished).problems == []


@pytest.mark.parametrize("name", STAGES)
def test_every_metric_is_declared_and_every_declaration_is_made(finished: Path, name: str) -> None:
    stage, recipe = load_stage(name), load_recipe(TINY, [])
    assert stage is not None
    made = [row["name"] for row in json.loads((finished / name / "result.json").read_text())["metrics"]]
    assert undeclared(stage, recipe, made) == []
    unmade = [
        pattern
        for pattern in stage.makes
        if not any(makes([pattern], metric, recipe) for metric in made)
        and not pattern.startswith(ELSEWHERE.get(name, ()))
    ]
    assert unmade == []


def test_the_same_command_keeps_everything(folder: Path) -> None:
    before = {name: data for name, data in contents(folder).items() if name.count("/")}
    said = decisions(go(folder, options=EXPENSIVE))
    assert said == dict.fromkeys(STAGES, "unchanged, kept")
    assert {name: data for name, data in contents(folder).items() if name.count("/")} == before


@pytest.mark.parametrize(
    "override",
    [
        "pretrain.log_every=7", "pretrain.keep_checkpoints=5", "pretrain.checkpoint_every=4", "pretrain.micro_batch_size=2",
        "sft.log_every=3", "sft.micro_batch_size=1", "dpo.keep_checkpoints=1", "stated.notes=[one]", "description=other",
        "data.workers=1", "serve.port=8001", "hardware.mfu=0.3",
    ],
)  # fmt: skip
def test_watching_and_storing_outdate_nothing(folder: Path, override: str) -> None:
    said = decisions(go(folder, override, options=EXPENSIVE))
    assert {name: text for name, text in said.items() if name != "report"} == dict.fromkeys(
        STAGES[:-1], "unchanged, kept"
    )


def test_other_evaluation_bytes_measure_again_and_train_nothing(folder: Path) -> None:
    model = {name: data for name, data in contents(folder).items() if "/model/" in name}
    lines = go(folder, "pretrain.evaluate_bytes=6000")
    assert decisions(lines)["pretrain"] == "measured again (other questions)"
    assert decisions(lines)["sft"] == "unchanged, kept"
    assert {name: data for name, data in contents(folder).items() if "/model/" in name} == model


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pretrain.phases.0.sequence_length=5000", "pretrain.phases.0.sequence_length"),
        ("pretrain.optimizer.betas=[0.9, 1.5]", "betas"),
        ("tokenizer.vocab_size=700", "vocab_size"),
        ("pretrain.precision=fp8", "fp8"),
        ("pretrain.phases.0.context_parallel=2", "context_parallel"),
        ("sft.sequence_length=5000", "sft.sequence_length"),
        ("sft.mixture={calculator: 0}", "sft.mixture"),
        ("sft.rows_files=[nowhere.jsonl]", "nowhere.jsonl"),
        ("dpo.pairs_files=[nowhere.jsonl]", "nowhere.jsonl"),
        ("gates.evaluate=[{name: g, metric: answer/calculater, op: '>=', target: 0.5}]", "answer/calculator"),
    ],
)
def test_what_is_refused_is_refused_before_a_file_changes(folder: Path, override: str, words: str) -> None:
    before = contents(folder)
    with pytest.raises(UserError) as error:
        go(folder, override)
    assert words in str(error.value)
    assert contents(folder) == before


def test_going_back_to_earlier_settings_trains_nothing(folder: Path) -> None:
    first = {name: data for name, data in contents(folder).items() if "/model/" in name}
    go(folder, "tokenizer.vocab_size=500", "model.vocab_size=512")
    assert {aside["stage"] for aside in status(folder)["set_aside"]} >= {
        "tokenizer",
        "shards",
        "pretrain",
        "sft",
        "dpo",
    }
    lines = go(folder)
    said = {name: text for name, text in decisions(lines).items() if name != "report"}
    assert all("comes back" in text or text == "unchanged, kept" for text in said.values()), said
    assert {
        name: data for name, data in contents(folder).items() if "/model/" in name and "set-aside" not in name
    } == first
    assert verify(folder).problems == []


def test_a_pretraining_is_extended_without_loss(folder: Path) -> None:
    before = contents(folder)
    longer = "pretrain.phases.0.steps=16"
    with pytest.raises(UserError, match=r"pretrain.phases.0.steps: 12 -> 16"):
        go(folder, longer, options=EXPENSIVE)
    assert contents(folder) == before
    later = frozenset({"sft", "dpo", "evaluate"})
    lines = go(folder, longer, options=Options(rebuild=later, go_on=True, expensive_seconds=0.0))
    assert "continuing from step-000012" in "\n".join(lines)
    (event,) = next(s for s in status(folder)["stages"] if s["name"] == "pretrain")["continued"]
    assert (event["step"], event["changes"]) == (12, {"pretrain.phases.0.steps": [12, 16]})
    kept = [Path(aside["path"]) for aside in status(folder)["set_aside"] if aside["stage"] == "pretrain"]
    assert [(path / "model" / "model.safetensors").read_bytes() for path in kept] == [
        before["pretrain/model/model.safetensors"]
    ]
    assert verify(folder).problems == []
