"""The stages sft and dpo on a tiny model: artifacts, metrics that can be derived again, resume after a kill."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ikirere.common.files import read_rows
from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub import load_pretrained, save_pretrained
from ikirere.posttrain import measures, onpolicy
from ikirere.posttrain import stage as stages
from ikirere.posttrain.generate import KINDS
from ikirere.posttrain.stage import DpoStage, SftStage
from ikirere.programme.metrics import measure
from ikirere.programme.stage import StageContext, StageResult
from ikirere.recipe.load import load_recipe
from ikirere.recipe.schema import Recipe
from ikirere.serve.load import load_run_model
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.train import train_tokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "demo.yaml"
SMALL = [
    "tokenizer.vocab_size=512", "model.vocab_size=512", "model.hidden_size=32", "model.num_hidden_layers=2",
    "model.num_attention_heads=2", "model.num_key_value_heads=1", "model.intermediate_size=64",
    "sft.steps=4", "sft.rows=60", "sft.batch_size=4", "sft.checkpoint_every=2", "sft.sequence_length=320",
    "dpo.steps=3", "dpo.pairs=24", "dpo.heldout_pairs=12", "dpo.batch_size=4", "dpo.sequence_length=320",
    "sft.log_every=1", "dpo.log_every=1", "sft.precision=fp32", "dpo.precision=fp32", "dpo.on_policy=0.25", "dpo.checkpoint_every=2",
]  # fmt: skip


class Bar:
    def advance(self, amount: float = 1, **shown: object) -> None: ...


@contextmanager
def progress(label: str, total: float, unit: str) -> Iterator[Bar]:
    yield Bar()


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(RECIPE, SMALL)


@pytest.fixture(scope="module", autouse=True)
def _few() -> Iterator[None]:
    """An untrained model never ends its turn, so each of its answers is as long as can be: ask it little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "HELDOUT_PER_KIND", 8)
        patch.setattr(stages, "SAMPLES_PER_KIND", 1)
        patch.setattr(stages, "PLAYED_PER_KIND", 1)
        patch.setattr(measures, "LONGEST", 16)
        patch.setattr(onpolicy, "LONGEST", 16)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """The folders that the earlier stages leave: real documents, a tokenizer, an untrained model."""
    folder = tmp_path_factory.mktemp("run")
    files = sorted(Path(re.__file__).parent.parent.glob("*.py"))[:60]
    rows = [{"text": f.read_text(encoding="utf-8"), "path": f.name, "domain": "code"} for f in files]
    (folder / "data").mkdir()
    for name, part in (("train", rows[::2]), ("heldout", rows[1::2])):
        pq.write_table(
            pa.Table.from_pylist(part), folder / "data" / f"documents-{name}.parquet", row_group_size=8
        )
    tokenizer = train_tokenizer(
        (r["text"] for r in rows[:8]), recipe.tokenizer, folder / "tokenizer" / "tokenizer", 0
    )
    model = Decoder(ModelConfig.from_recipe(recipe.model))
    save_pretrained(model, folder / "pretrain" / "model", {"eos_token_id": tokenizer.end})
    return folder


def context(recipe: Recipe, run: Path, name: str, said: list[str] | None = None) -> StageContext:
    folder = run / name
    folder.mkdir(exist_ok=True)
    present = {p.name: p for p in run.iterdir() if p.is_dir() and p.name != name}
    say: Callable[[str], None] = (said if said is not None else []).append
    return StageContext(recipe, run, folder, present, False, progress, say, lambda values, step: None, run)


@pytest.fixture(scope="module")
def sft(run: Path, recipe: Recipe) -> StageResult:
    return SftStage().run(context(recipe, run, "sft"))


@pytest.fixture(scope="module")
def dpo(run: Path, recipe: Recipe, sft: StageResult) -> StageResult:
    return DpoStage().run(context(recipe, run, "dpo"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(folder: Path, result: StageResult) -> dict[str, float]:
    """Every artifact is there; every metric follows again from its raw file."""
    assert all((folder / name).exists() for name in result.artifacts)
    assert {m.raw for m in result.metrics} <= set(result.artifacts)
    for m in result.metrics:
        assert measure(folder, m.name, m.kind, m.raw, m.field, m.over, m.where, m.confidence) == m
    return {m.name: m.value for m in result.metrics}


def test_sft_leaves_a_model_and_its_figures(run: Path, sft: StageResult) -> None:
    found = check(run / "sft", sft)
    assert {"model", "rows-train.jsonl", "rows-heldout.jsonl", "log.jsonl", "samples.jsonl"} <= set(
        sft.artifacts
    )
    assert 0 < found["heldout_loss"] < 8 and found["tokens"] == 4 * 4 * 320
    assert {
        "heldout_loss/calculator",
        "heldout_loss/direct",
        "peak_memory_bytes",
        "tokens_per_second",
    } <= set(found)
    rows = read_rows(run / "sft" / "rows-train.jsonl")
    assert len(rows) == 60 and {r["kind"] for r in rows} == set(KINDS)
    model, tokenizer, _ = load_run_model(run / "sft")
    assert isinstance(tokenizer, Tokenizer) and model.config.vocab_size == 512
    before = load_pretrained(run / "pretrain" / "model")
    assert not torch.equal(before.embed_tokens.weight, model.embed_tokens.weight)
    sample = read_rows(run / "sft" / "samples.jsonl")[0]
    assert {"question", "expected", "messages", "kind"} <= set(sample)


def test_dpo_leaves_a_model_and_its_figures(run: Path, dpo: StageResult) -> None:
    found = check(run / "dpo", dpo)
    assert {
        "win_rate",
        "win_rate_uplift",
        "prefers_chosen/before",
        "on_policy",
        "answer_tokens/after",
    } <= set(found)
    assert found["win_rate_uplift"] == pytest.approx(
        found["prefers_chosen/after"] - found["prefers_chosen/before"]
    )
    rate = next(m for m in dpo.metrics if m.name == "win_rate")
    assert rate.low is not None and rate.high is not None and rate.low <= rate.value <= rate.high
    log = read_rows(run / "dpo" / "log.jsonl")
    assert [r["step"] for r in log] == [1, 2, 3]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert name in log[0]
    assert log[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4), "the first step is at the reference"
    train, held = (read_rows(run / "dpo" / f) for f in ("pairs.jsonl", "pairs-heldout.jsonl"))
    assert len(train) == 24 and len(held) == 12
    assert all("-heldout-" in p["id"] for p in held) and all("-train-" in p["id"] for p in train)
    load_run_model(run / "dpo")


@pytest.mark.parametrize("stage", [SftStage(), DpoStage()], ids=["sft", "dpo"])
def test_a_killed_stage_ends_with_the_same_weights(
    stage: SftStage | DpoStage, run: Path, recipe: Recipe, dpo: StageResult, tmp_path: Path
) -> None:
    def die(values: object, step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    first, second = (context(recipe, run, stage.name, said := []) for _ in range(2))
    first.folder = second.folder = tmp_path
    first.track = die
    with pytest.raises(KeyboardInterrupt):
        stage.run(first)
    assert not (tmp_path / "model").exists()
    stage.run(second)
    assert any("continuing from step-000002" in line for line in said)
    for file in ("model/model.safetensors", "rows-train.jsonl", "pairs.jsonl"):
        if (run / stage.name / file).exists():
            assert digest(tmp_path / file) == digest(run / stage.name / file)


def test_what_a_stage_depends_on(recipe: Recipe, tmp_path: Path) -> None:
    rows = tmp_path / "more.jsonl"
    rows.write_text("{}\n")
    changed = load_recipe(RECIPE, [*SMALL, "sft.rows_files=[more.jsonl]", "dpo.pairs_files=[more.jsonl]"])
    for stage in (SftStage(), DpoStage()):
        first = stage.external(changed, tmp_path)
        assert stage.config(recipe) != stage.config(changed)
        rows.write_text("{}\n{}\n")
        assert stage.external(changed, tmp_path) != first
        rows.write_text("{}\n")
        assert stage.external(changed, tmp_path) == first


def test_missing_inputs_are_named(recipe: Recipe, tmp_path: Path) -> None:
    for stage, missing in ((SftStage(), "tokenizer"), (DpoStage(), "tokenizer")):
        with pytest.raises(UserError, match=f"{stage.name} needs the stage {missing}"):
            stage.run(context(recipe, tmp_path, stage.name))


def test_documents_that_are_gone_are_named(run: Path, tmp_path: Path) -> None:
    from ikirere.posttrain.stage_rows import sample_documents

    documents: list[dict[str, Any]] = sample_documents(run / "data" / "documents-train.parquet", 3)
    assert len(documents) == 30 and documents == sample_documents(run / "data" / "documents-train.parquet", 3)
    with pytest.raises(UserError, match=r"missing\.parquet"):
        sample_documents(tmp_path / "missing.parquet", 1)
