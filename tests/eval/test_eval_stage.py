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

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "serve"))
from scripted_model import small_model, small_tokenizer

import ikirere.serve.engine.engine
import ikirere.serve.http.api
import ikirere.serve.http.page
from ikirere.common.files import read_rows
from ikirere.errors import UserError
from ikirere.eval.stage import EvaluateStage
from ikirere.model.hub import save_pretrained
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
        "bits_per_byte/code",
        "perplexity",
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
    kept = ["answers/calculator.jsonl", "answers/chat.jsonl", "paired.jsonl", "bits.jsonl", "samples.json"]
    before = [(run / "evaluate" / name).read_bytes() for name in kept]
    again = EvaluateStage().run(context(run, []))
    assert [(run / "evaluate" / name).read_bytes() for name in kept] == before
    assert again.artifacts == result.artifacts


def test_what_it_says_and_refuses(run: Path) -> None:
    said: list[str] = []
    made = EvaluateStage().run(context(run, said, "evaluate.questions={}"))
    assert any("no questions" in line for line in said)
    assert [m.name for m in made.metrics] == ["perplexity", "bits_per_byte/code"]
    given = context(run, said)
    with pytest.raises(UserError, match="needs the stage pretrain, sft or dpo"):
        EvaluateStage().run(replace(given, inputs={"data": run / "data"}))


def test_a_base_model_is_measured_on_text_only(run: Path, tmp_path: Path) -> None:
    (tmp_path / "pretrain" / "milestones").mkdir(parents=True)
    (tmp_path / "pretrain" / "model").symlink_to(run / "sft" / "model")
    inputs = {"data": run / "data", "shards": run / "shards", "pretrain": tmp_path / "pretrain"}
    said: list[str] = []

    def made(*overrides: str) -> StageResult:
        given = replace(context(run, said, *overrides), inputs=inputs, folder=tmp_path)
        return EvaluateStage().run(given)

    assert [m.name for m in made("pretrain.milestones=[]").metrics] == ["perplexity", "bits_per_byte/code"]
    assert any("a base model is not asked" in line for line in said)
    rows = [
        {**row, "nats": row["nats"] + row["tokens"] * math.log(2)}
        for row in read_rows(tmp_path / "bits.jsonl")
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "pretrain" / "milestones" / "early.jsonl").write_text(text)
    metrics = {m.name: m.value for m in made("pretrain.milestones=[{name: early, step: 1}]").metrics}
    assert metrics["perplexity_ratio/code"] == pytest.approx(0.5)
    same = "".join(json.dumps(row) + "\n" for row in read_rows(tmp_path / "bits.jsonl"))
    (tmp_path / "pretrain" / "milestones" / "late.jsonl").write_text(same)
    both = "pretrain.milestones=[{name: early, step: 1}, {name: late, step: 2}]"
    metrics = {m.name: m.value for m in made(both, "evaluate.compare_to=late").metrics}
    assert metrics["perplexity_ratio/code"] == pytest.approx(1.0)
