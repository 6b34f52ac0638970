"""The stage on real shards: phases, milestones, metrics that can be derived again, a resume."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pretrain_helpers import context, made_inputs, one_thread, recipe, run, weights

from ikirere.errors import UserError
from ikirere.model.hub import load_pretrained
from ikirere.pretrain import decoder as module
from ikirere.pretrain.evaluate import bits_per_byte
from ikirere.pretrain.stage import PretrainStage
from ikirere.programme.metrics import measure
from ikirere.programme.stage import StageResult
from ikirere.recipe.load import load_recipe
from ikirere.recipe.rehearse import shrink
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokens.shards import open_shards

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return made_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def done(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageResult]:
    folder = tmp_path_factory.mktemp("pretrain")
    with one_thread():
        return folder, run(folder, inputs)


def test_metrics_and_where_they_come_from(done: tuple[Path, StageResult]) -> None:
    folder, result = done
    metrics = {metric.name: metric for metric in result.metrics}
    heldout = {
        f"{name}{domain}" for name in ("bits_per_byte", "perplexity") for domain in ("", "/code", "/docs")
    }
    assert set(metrics) == heldout | {f"{name}@half" for name in heldout} | {
        f"{c}_bits_per_byte/{d}" for c in ("gzip9", "xz9") for d in ("code", "docs")
    } | {
        "parameters", "tokens", "tokens_per_second", "train_seconds", "final_loss", "peak_memory_bytes",
        "loader_wait_fraction",
    }  # fmt: skip
    for metric in result.metrics:
        given = (metric.kind, metric.raw, metric.field, metric.over, metric.where, metric.confidence)
        assert asdict(measure(folder, metric.name, *given)) == asdict(metric)
    assert metrics["tokens"].value == 8 * 8 * 32 + 6 * 4 * 64
    assert metrics["bits_per_byte"].value < metrics["bits_per_byte@half"].value < 9
    assert 0 <= metrics["loader_wait_fraction"].value < 1
    assert 1 < metrics["gzip9_bits_per_byte/code"].value < 8
    for artifact in result.artifacts:
        assert (folder / artifact).exists()
    assert sorted(p.name for p in (folder / "evaluations").iterdir()) == [
        "step-000006.jsonl",
        "step-000012.jsonl",
    ]


def test_the_model_folder_is_the_model_that_was_measured(
    done: tuple[Path, StageResult], inputs: dict[str, Path]
) -> None:
    folder, _ = done
    model = load_pretrained(folder / "model")
    assert model.config.rope_theta == 40_000
    tokenizer = Tokenizer.load(folder / "model")
    shards = open_shards(inputs["shards"] / "shards", tokenizer_sha256=tokenizer.sha256)
    rows = [json.loads(line) for line in (folder / "heldout.jsonl").read_text().splitlines()]
    again = bits_per_byte(model, shards["code", "heldout"], 4000, 64)
    assert [row["nats"] for row in rows if row["domain"] == "code"] == pytest.approx(
        [row["nats"] for row in again], rel=1e-5
    )
    samples = json.loads((folder / "samples.json").read_text())
    assert {sample["domain"] for sample in samples} == {"code", "docs"}
    assert all(sample["prompt"] and isinstance(sample["continuation"], str) for sample in samples)


@pytest.mark.parametrize("stop", [7, 13])
def test_stopped_and_started_again_it_ends_the_same(
    done: tuple[Path, StageResult],
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    """Step 7 is in the first phase, 13 in the second, whose base must come back."""
    loader = module.PackedLoader

    class Stopping(loader):  # type: ignore[misc, valid-type]
        def at(self, step: int) -> Any:
            if step == stop:
                raise RuntimeError("the power went")
            return super().at(step)

    monkeypatch.setattr(module, "PackedLoader", Stopping)
    with pytest.raises(RuntimeError):
        run(tmp_path, inputs)
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(module, "PackedLoader", loader)
    run(tmp_path, inputs)
    whole, _ = done
    assert weights(tmp_path) == weights(whole)
    for name in ("heldout.jsonl", "samples.json", "milestones/half.jsonl"):
        assert (tmp_path / name).read_text() == (whole / name).read_text()


@pytest.mark.parametrize("stop", [3, 6])
def test_phases_change_attention_also_after_a_stop(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Full attention, then hybrid, then full: the steps of a run that was stopped are those of one that was not, and
    what is saved and measured is the model's own pattern."""
    shape = {"window": 8, "block_size": 4, "top_k": 2, "original_max_position_embeddings": 16}
    mixture = {"code": 0.5, "docs": 0.5}
    phases = [
        phase(steps=n, attention=attention, mixture=mixture, name=str(n))
        for n, attention in ((2, "full"), (3, None), (4, "full"))
    ]
    wanted = recipe(phases=phases, milestones=[], evaluate_every=None, checkpoint_every=2)
    model = wanted.model.model_copy(update={"layer_pattern": "hybrid", "mixers": {"hybrid": shape}})
    wanted = wanted.model_copy(update={"model": model})
    switched: list[str] = []
    switch = module.Decoder.set_attention

    def noted(self: Any, pattern: str) -> None:
        switched.append(pattern)
        switch(self, pattern)

    monkeypatch.setattr(module.Decoder, "set_attention", noted)
    PretrainStage().run(context(tmp_path / "whole", inputs, wanted, []))
    changes = [pattern for pattern, _ in itertools.groupby(switched)]
    assert changes[-4:] == ["full", "hybrid", "full", "hybrid"]
    loader = module.PackedLoader

    class Stopping(loader):  # type: ignore[misc, valid-type]
        def at(self, step: int) -> Any:
            if step == stop:
                raise RuntimeError("the power went")
            return super().at(step)

    monkeypatch.setattr(module, "PackedLoader", Stopping)
    with pytest.raises(RuntimeError):
        PretrainStage().run(context(tmp_path / "cut", inputs, wanted, []))
    monkeypatch.setattr(module, "PackedLoader", loader)
    PretrainStage().run(context(tmp_path / "cut", inputs, wanted, []))
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    for name in ("heldout.jsonl", "samples.json"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
    again = load_pretrained(tmp_path / "whole" / "model")
    assert again.attention == "hybrid"
    assert again.config.mixers["hybrid"]["window"] == 8


def phase(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "steps": 9, "sequence_length": 32, "batch_size": 4, "mixture": {"code": 1}} | changes


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"phases": [phase(context_parallel=2)]}, r"phases\.0\.context_parallel 2.* accepted is 1"),
        ({"phases": [phase(), phase(name="y", attention="window")]}, r"phases\.1\.attention 'window'"),
        ({"phases": [phase(mixture={"code": 0})]}, r"phases\.0\.mixture"),
        ({"precision": "fp8"}, r"pretrain\.precision: 'fp8'"),
    ],
)
def test_what_is_refused_before_any_input_exists(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        PretrainStage().check(recipe(**{"milestones": [], **change}), ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_rehearsals_of_all_recipes_pass(path: Path) -> None:
    PretrainStage().check(shrink(load_recipe(path)), ROOT)


def test_a_vocabulary_too_small_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    small = recipe()
    small = small.model_copy(update={"model": small.model.model_copy(update={"vocab_size": 300})})
    stated = small.tokenizer.model_copy(update={"vocab_size": 300})
    with pytest.raises(UserError, match=r"model\.vocab_size 300 .* 400"):
        PretrainStage().run(context(tmp_path, inputs, small.model_copy(update={"tokenizer": stated}), []))
