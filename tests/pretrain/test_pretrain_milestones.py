"""Milestones: measured as their phase is, compared on the same documents, judged when they are reached."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pretrain_helpers import context, made_inputs, one_thread, recipe, weights

from ikirere.common.checkpoints import catalogue
from ikirere.common.files import read_rows
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.pretrain import decoder as module
from ikirere.pretrain.evaluate import bits_per_byte
from ikirere.pretrain.stage import PretrainStage
from ikirere.programme.metrics import Metric
from ikirere.programme.stage import GateStop, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Milestone
from ikirere.tokens.shards import open_shards
from ikirere.train import checkpoint

MILESTONES = [{"name": "early", "step": 3}, {"name": "half", "step": 8}, {"name": "late", "step": 11}]


@pytest.fixture(autouse=True)
def _thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return made_inputs(tmp_path_factory.mktemp("inputs"))


def wanted(**pretrain: Any) -> Recipe:
    """Eight steps of 32 tokens on code and docs, six of 64 tokens on code."""
    return recipe(**{"milestones": MILESTONES, "evaluate_every": None, **pretrain})


class Judge:
    """Notes the metrics it is given; says stop where it is given one of the names."""

    def __init__(self, *names: str) -> None:
        self.names, self.calls = names, list[list[str]]()

    def __call__(self, metrics: Iterable[Metric]) -> None:
        self.calls.append([metric.name for metric in metrics])
        if any(name in self.calls[-1] for name in self.names):
            raise GateStop("stop")


def run(
    folder: Path, inputs: dict[str, Path], asked: Recipe, judge: Judge | None = None, **more: Any
) -> tuple[StageResult, list[str]]:
    lines: list[str] = []
    made = PretrainStage().run(context(folder, inputs, asked, lines, judge=judge or Judge(), **more))
    return made, lines


@pytest.fixture(scope="module")
def done(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageResult]:
    folder = tmp_path_factory.mktemp("milestones")
    with one_thread():
        return folder, run(folder, inputs, wanted())[0]


def at(folder: Path, step: int) -> Decoder:
    """The model as it was after a step, whose checkpoint is kept."""
    model = Decoder(ModelConfig.from_recipe(wanted().model))
    if step > 8:
        model.set_rope_theta(40_000)
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    checkpoint.load(folder / checkpoint.name_of(step), tensors)
    return model.eval()


def test_each_is_measured_at_the_length_and_on_the_domains_of_its_phase(
    done: tuple[Path, StageResult], inputs: dict[str, Path]
) -> None:
    folder, _ = done
    shards = open_shards(inputs["shards"] / "shards")
    for name, step, length, domains in (
        ("early", 3, 32, ["code", "docs"]),
        ("half", 8, 32, ["code", "docs"]),
        ("late", 11, 64, ["code"]),
    ):
        rows = read_rows(folder / "milestones" / f"{name}.jsonl")
        assert list(dict.fromkeys(row["domain"] for row in rows)) == domains
        assert {(row["step"], row["sequence_length"]) for row in rows} == {(step, length)}
        again = bits_per_byte(at(folder, step), shards["code", "heldout"], 4000, length)
        assert [row["nats"] for row in rows if row["domain"] == "code"] == pytest.approx(
            [row["nats"] for row in again], rel=1e-5
        )
    assert {row["sequence_length"] for row in read_rows(folder / "heldout.jsonl")} == {64}


def test_a_ratio_is_of_the_same_documents_at_the_same_length(
    done: tuple[Path, StageResult], inputs: dict[str, Path]
) -> None:
    folder, result = done
    metrics = {metric.name: metric for metric in result.metrics}
    code = open_shards(inputs["shards"] / "shards")["code", "heldout"]
    before, after = (bits_per_byte(at(folder, step), code, 4000, 32) for step in (8, 11))
    ratio = sum(row["bits"] for row in after) / sum(row["bits"] for row in before)
    late = metrics["bits_per_byte_ratio@late"]
    assert late.value == pytest.approx(ratio, rel=1e-5) and late.n == len(after)
    half = metrics["bits_per_byte@half"].value / metrics["bits_per_byte@early"].value
    assert metrics["bits_per_byte_ratio@half"].value == pytest.approx(half)
    assert "bits_per_byte_ratio@early" not in metrics
    assert not (folder / "milestones" / "early.ratio.jsonl").exists()
    assert {"perplexity/code@late", "perplexity/docs@half"} <= set(metrics)
    assert "perplexity/docs@late" not in metrics
    value = metrics["perplexity/docs@half"].value
    rows = [r for r in read_rows(folder / "milestones" / "half.jsonl") if r["domain"] == "docs"]
    assert value == pytest.approx(math.exp(sum(r["nats"] for r in rows) / sum(r["tokens"] for r in rows)))


def test_their_checkpoints_are_kept(done: tuple[Path, StageResult]) -> None:
    folder, _ = done
    assert [(info.step, info.purpose) for info in catalogue(folder)] == [
        (3, "milestone early"), (8, "milestone half"), (10, ""), (11, "milestone late"), (14, "last"),
    ]  # fmt: skip


def test_judged_when_reached_a_stop_costs_nothing_more(
    done: tuple[Path, StageResult], inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at step 8; the same command stops again before any step; with the gate gone it ends as a run that was
    never stopped."""
    made: list[int] = []
    plain = module.PackedLoader.at

    def counted(self: Any, step: int) -> Any:
        made.append(step)
        return plain(self, step)

    monkeypatch.setattr(module.PackedLoader, "at", counted)
    judge = Judge("bits_per_byte@half")
    with pytest.raises(GateStop):
        run(tmp_path, inputs, wanted(), judge)
    assert made == list(range(8)) and catalogue(tmp_path)[-1].step == 8
    assert [{name.split("@")[1] for name in call} for call in judge.calls[1:]] == [{"early"}, {"half"}]
    assert not (tmp_path / "model").exists()

    made.clear()
    again = Judge("bits_per_byte@half")
    with pytest.raises(GateStop):
        run(tmp_path, inputs, wanted(), again)
    assert made == [] and "bits_per_byte@early" in again.calls[0]

    passed = Judge()
    run(tmp_path, inputs, wanted(), passed)
    assert made == list(range(8, 14))
    assert {name.split("@")[1] for name in passed.calls[0]} == {"early", "half"}
    whole, _ = done
    assert weights(tmp_path) == weights(whole)
    for name in ("heldout.jsonl", "milestones/late.jsonl", "milestones/late.ratio.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_other_text_is_measured_from_kept_checkpoints_without_training(
    done: tuple[Path, StageResult], inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = done
    run(tmp_path, inputs, wanted())
    before = weights(tmp_path)
    monkeypatch.setattr(module.PackedLoader, "at", lambda self, step: pytest.fail("a step"))
    run(tmp_path, inputs, wanted(evaluate_bytes=2000))
    assert weights(tmp_path) == before
    less = read_rows(tmp_path / "milestones" / "early.jsonl")
    assert 0 < len(less) < len(read_rows(whole / "milestones" / "early.jsonl"))
    code = open_shards(inputs["shards"] / "shards")["code", "heldout"]
    again = bits_per_byte(at(whole, 3), code, 2000, 32)
    assert [r["nats"] for r in less if r["domain"] == "code"] == pytest.approx([r["nats"] for r in again])
    ratios = read_rows(tmp_path / "milestones" / "half.ratio.jsonl")
    assert [row["bits_before"] for row in ratios] == [row["bits"] for row in less]
    run(tmp_path, inputs, wanted())
    for name in ("early.jsonl", "half.ratio.jsonl", "late.ratio.jsonl"):
        assert (tmp_path / "milestones" / name).read_bytes() == (whole / "milestones" / name).read_bytes()


def test_a_milestone_that_was_added_after_its_step_is_not_measured(
    done: tuple[Path, StageResult], inputs: dict[str, Path], tmp_path: Path
) -> None:
    run(tmp_path, inputs, wanted())
    result, lines = run(tmp_path, inputs, wanted(milestones=[*MILESTONES, {"name": "new", "step": 5}]))
    assert not [metric.name for metric in result.metrics if metric.name.endswith("@new")]
    assert [line for line in lines if line.startswith("milestone new: step-000005")]


class Named(Milestone):
    compare_to: str | None = None


def test_a_milestone_names_what_it_is_compared_to(
    done: tuple[Path, StageResult], inputs: dict[str, Path], tmp_path: Path
) -> None:
    asked = wanted()
    *others, late = asked.pretrain.milestones
    named = Named(**late.model_dump() | {"compare_to": "early"})
    pretrain = asked.pretrain.model_copy(update={"milestones": (*others, named)})
    run(tmp_path, inputs, asked.model_copy(update={"pretrain": pretrain}))
    rows = read_rows(tmp_path / "milestones" / "late.ratio.jsonl")
    assert {(row["compared_to"], row["step"], row["sequence_length"]) for row in rows} == {("early", 11, 32)}
    early = read_rows(tmp_path / "milestones" / "early.jsonl")
    assert json.dumps([r["bits_before"] for r in rows]) == json.dumps(
        [r["bits"] for r in early if r["domain"] == "code"]
    )
