"""The stage evaluate on an untrained model: artifacts, and metrics that follow again from them."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "serve"))
from scripted_model import small_model, small_tokenizer

import ikirere.serve.engine.engine
import ikirere.serve.http.api
import ikirere.serve.http.page
from ikirere.common.files import read_rows, write_rows
from ikirere.errors import UserError
from ikirere.eval.stage import EvaluateStage
from ikirere.model.hub import save_pretrained
from ikirere.programme.metric_names import undeclared
from ikirere.programme.metrics import measure
from ikirere.programme.stage import StageContext, StageResult
from ikirere.recipe.load import load_recipe
from ikirere.tokens.shards import write_shards

RECIPE = Path(__file__).parents[2] / "recipes" / "demo.yaml"
SMALL = [
    "evaluate.questions={calculator: 6, chat: 4, direct: 2, documents: 3}",
    "evaluate.max_new_tokens=8",
    "pretrain.evaluate_bytes=4000",
]


class Bar:
    def advance(self, amount: float = 1, **shown: object) -> None: ...


@contextmanager
def progress(label: str, total: float, unit: str) -> Iterator[Bar]:
    yield Bar()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What earlier stages leave: held-out documents, their shards, a model."""
    folder = tmp_path_factory.mktemp("run")
    modules = (ikirere.serve.http.api, ikirere.serve.engine.engine, ikirere.serve.http.page)
    rows = [
        {"id": f"{i:032x}", "text": inspect.getsource(module), "path": f"{i}.py", "domain": "code"}
        for i, module in enumerate(modules)
    ]
    (folder / "data").mkdir()
    for split in ("train", "heldout"):
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"documents-{split}.parquet")
    tokenizer = small_tokenizer()
    write_shards(
        {"heldout": folder / "data" / "documents-heldout.parquet"}, tokenizer, folder / "shards" / "shards"
    )
    for stage in ("sft", "dpo"):
        save_pretrained(small_model(context=512), folder / stage / "model")
        tokenizer.save(folder / stage / "model")
    return folder


def context(run: Path, said: list[str], *overrides: str) -> StageContext:
    recipe = load_recipe(RECIPE, [*SMALL, *overrides])
    folder = run / "evaluate"
    folder.mkdir(exist_ok=True)
    inputs = {name: run / name for name in EvaluateStage.needs if (run / name).is_dir()}
    return StageContext(
        recipe, run, folder, inputs, False, progress, said.append, lambda values, step: None, run
    )


@pytest.fixture(scope="module")
def result(run: Path) -> StageResult:
    return EvaluateStage().run(context(run, []))


def test_every_metric_follows_from_an_artifact(run: Path, result: StageResult) -> None:
    folder = run / "evaluate"
    assert all((folder / name).is_file() for name in result.artifacts)
    assert {m.raw for m in result.metrics} <= set(result.artifacts)
    for m in result.metrics:
        assert measure(folder, m.name, m.kind, m.raw, m.field, m.over, m.where, m.confidence) == m
    assert {m.name for m in result.metrics} == {
        *(
            f"{name}/calculator"
            for name in ("right_tool", "right_arguments", "answer", "answer_without_tool")
        ),
        "right_tool/chat",
        "answer/chat",
        "right_tool/documents",
        "answer/documents",
        "answer/direct",
        "no_tool_when_not_needed",
        "tool_gain",
        "tool_calls",
        "seconds_per_question",
        "bits_per_byte",
        "bits_per_byte/code",
        "perplexity",
        "perplexity/code",
    }


def test_the_rows_say_what_was_asked_and_written(run: Path, result: StageResult) -> None:
    rows = read_rows(run / "evaluate" / "answers" / "calculator.jsonl")
    without = read_rows(run / "evaluate" / "answers" / "calculator-without-tool.jsonl")
    assert [r["question"] for r in rows] == [r["question"] for r in without] and len(rows) == 6
    assert all(r["messages"] and r["expects_tool"] == "calculator" for r in rows)
    assert all(r["tool_calls"] == 0 and r["offered"] == 1 for r in without)
    assert all(r["sampled_tokens"] <= 8 for r in rows)
    samples = json.loads((run / "evaluate" / "samples.json").read_text(encoding="utf-8"))
    assert {s["kind"] for s in samples} == {"calculator", "chat", "direct", "documents"}
    assert all(s["messages"][0]["role"] == "user" for s in samples)


def test_a_second_run_gives_the_same_answers(run: Path, result: StageResult) -> None:
    kept = ["answers/calculator.jsonl", "answers/chat.jsonl", "paired.jsonl", "heldout.jsonl", "samples.json"]
    before = [(run / "evaluate" / name).read_bytes() for name in kept]
    again = EvaluateStage().run(context(run, []))
    assert [(run / "evaluate" / name).read_bytes() for name in kept] == before
    assert again.artifacts == result.artifacts


TEXT = ["bits_per_byte", "perplexity", "bits_per_byte/code", "perplexity/code"]


def test_what_it_says_and_refuses(run: Path) -> None:
    said: list[str] = []
    made = EvaluateStage().run(context(run, said, "evaluate.questions={}"))
    assert any("no questions" in line for line in said)
    assert [m.name for m in made.metrics] == TEXT
    given = context(run, said)
    with pytest.raises(UserError, match="needs the stage pretrain, sft or dpo"):
        EvaluateStage().run(replace(given, inputs={"data": run / "data"}))


def test_perplexity_is_compared_with_what_the_metric_names(run: Path, tmp_path: Path) -> None:
    """The finished model beside the pretrained one, and beside the milestone that the recipe names."""
    pretrain = tmp_path / "pretrain"
    (pretrain / "milestones").mkdir(parents=True)
    inputs = {name: run / name for name in ("data", "shards", "sft")} | {"pretrain": pretrain}

    def ratios(*overrides: str) -> dict[str, float]:
        milestones = "pretrain.milestones=[{name: early, step: 1}, {name: late, step: 2}]"
        given = context(run, [], "evaluate.questions={}", milestones, *overrides)
        made = EvaluateStage().run(replace(given, inputs=inputs, folder=tmp_path))
        assert not undeclared(EvaluateStage(), given.recipe, [m.name for m in made.metrics])
        return {m.name: m.value for m in made.metrics if m.name not in TEXT}

    assert ratios() == {}, "pretraining left no rows"
    rows = read_rows(tmp_path / "heldout.jsonl")

    def leave(name: str, factor: float, of: list[dict[str, Any]] = rows) -> None:
        worse = [{**row, "nats": row["nats"] + row["tokens"] * math.log(factor)} for row in of]
        write_rows(pretrain / name, worse)

    leave("heldout.jsonl", 4)
    leave("milestones/early.jsonl", 2)
    leave("milestones/late.jsonl", 1)
    found = ratios()
    assert found == {f"perplexity_ratio{d}@pretrain": pytest.approx(0.25) for d in ("", "/code")}
    found = ratios("evaluate.compare_to=early")
    assert found == {f"perplexity_ratio{d}@early": pytest.approx(0.5) for d in ("", "/code")}
    found = ratios("evaluate.compare_to=late")
    assert found == {f"perplexity_ratio{d}@late": pytest.approx(1.0) for d in ("", "/code")}
    # A milestone of a phase with shorter rows is compared at its own length.
    leave("milestones/early.jsonl", 2, [{**row, "sequence_length": 32} for row in rows])
    (ratio, same) = ratios("evaluate.compare_to=early").values()
    assert ratio == same and abs(ratio - 0.5) > 1e-6


def test_a_base_model_is_measured_on_text_only(run: Path, tmp_path: Path) -> None:
    (tmp_path / "pretrain" / "milestones").mkdir(parents=True)
    (tmp_path / "pretrain" / "model").symlink_to(run / "sft" / "model")
    inputs = {"data": run / "data", "shards": run / "shards", "pretrain": tmp_path / "pretrain"}
    said: list[str] = []
    given = context(run, said, "pretrain.milestones=[{name: early, step: 1}]", "evaluate.compare_to=early")
    given = replace(given, inputs=inputs, folder=tmp_path)
    assert [m.name for m in EvaluateStage().run(given).metrics] == TEXT
    assert any("a base model is not asked" in line for line in said)
    write_rows(tmp_path / "pretrain" / "milestones" / "early.jsonl", read_rows(tmp_path / "heldout.jsonl"))
    metrics = {m.name: m.value for m in EvaluateStage().run(given).metrics}
    assert metrics["perplexity_ratio/code@early"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.questions={riddles: 4}"], r"evaluate\.questions\.riddles: no such kind"),
        (["stages=[tokenizer, shards, pretrain, sft, evaluate]"], "needs the stage data before evaluate"),
        (["stages=[data, tokenizer, evaluate]"], "needs the stage pretrain, sft or dpo"),
        (["stages=[data, tokenizer, pretrain, evaluate]"], "needs the stage shards before it"),
        (["pretrain.milestones=[{name: pretrain, step: 1}]"], r"milestones\.0\.name 'pretrain' stands for"),
    ],
)
def test_what_can_be_refused_is_refused_before_any_input_exists(overrides: list[str], message: str) -> None:
    recipe = load_recipe(RECIPE, [*SMALL, "gates={}", *overrides])
    EvaluateStage().check(load_recipe(RECIPE, SMALL), RECIPE.parent)
    with pytest.raises(UserError, match=message):
        EvaluateStage().check(recipe, RECIPE.parent)


def test_every_recipe_passes_the_check() -> None:
    found = {path.stem: load_recipe(path) for path in RECIPE.parent.glob("*.yaml")}
    for recipe in found.values():
        if "evaluate" in recipe.stages:
            EvaluateStage().check(recipe, RECIPE.parent)
    assert "evaluate" in found["demo"].stages and "evaluate" in found["smol-100m-trm"].stages


def test_settings_of_intervals_and_of_text_only_change_what_is_measured() -> None:
    stage, plain = EvaluateStage(), load_recipe(RECIPE, SMALL)
    for line in (
        "evaluate.confidence=0.9",
        "pretrain.evaluate_bytes=9000",
        "pretrain.milestones=[{name: a, step: 1}]",
    ):
        other = load_recipe(RECIPE, [*SMALL, line])
        assert stage.config(other) == stage.config(plain) and stage.measuring(other) != stage.measuring(plain)
    for line in ("evaluate.temperature=0.5", "evaluate.max_new_tokens=9", "evaluate.questions={chat: 3}"):
        other = load_recipe(RECIPE, [*SMALL, line])
        assert stage.config(other) != stage.config(plain) and stage.measuring(other) == stage.measuring(plain)
