"""The stages sft and dpo on a tiny model: artifacts, metrics that can be derived again, resume after a kill."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
from ikirere.programme.stage import Continued, StageContext, StageResult
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


@pytest.mark.parametrize("stage", [SftStage(), DpoStage()], ids=["sft", "dpo"])
def test_the_kept_rows_of_other_settings_are_made_again(
    stage: SftStage | DpoStage, run: Path, recipe: Recipe, dpo: StageResult, tmp_path: Path
) -> None:
    """A finished folder is run again after a change of what is measured: the weights stay, the measures follow."""
    folder = tmp_path / stage.name
    shutil.copytree(run / stage.name, folder)
    weights = digest(folder / "model" / "model.safetensors")
    kept = {
        name: (folder / name).stat().st_mtime_ns
        for name in ("rows-train.jsonl", "pairs.jsonl")
        if (folder / name).exists()
    }
    again = context(load_recipe(RECIPE, [*SMALL, "dpo.heldout_pairs=9"]), run, stage.name)
    again.folder = folder
    stage.run(again)
    assert digest(folder / "model" / "model.safetensors") == weights
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    if stage.name == "dpo":
        assert (
            len(read_rows(folder / "pairs-heldout.jsonl"))
            == 9
            == len(read_rows(folder / "preferences.jsonl"))
        )


def test_training_is_continued_with_other_settings_and_not_with_other_rows(
    run: Path, recipe: Recipe, sft: StageResult, tmp_path: Path
) -> None:
    folder = tmp_path / "sft"
    shutil.copytree(run / "sft", folder)

    def given(*overrides: str) -> StageContext:
        made = context(load_recipe(RECIPE, [*SMALL, *overrides]), run, "sft", said)
        made.folder, made.key, made.accepted = folder, "later", frozenset({""})
        made.continued = (Continued(4, SftStage().config(recipe)),)
        return made

    said: list[str] = []
    SftStage().run(given("sft.steps=6", "sft.batch_size=2", "sft.optimizer.lr=0.0005"))
    assert any("continuing from step-000004" in line for line in said)
    log = read_rows(folder / "log.jsonl")
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["go_on"] for row in log if "loss" not in row] == [
        {"sft.steps": [4, 6], "sft.batch_size": [4, 2], "sft.optimizer.lr": [0.002, 0.0005]}
    ]
    with pytest.raises(UserError, match="trained on other conversations"):
        SftStage().run(given("sft.steps=8", "sft.rows=50"))


def test_a_key_holds_what_changes_the_outputs_and_files_count_by_content(
    recipe: Recipe, tmp_path: Path
) -> None:
    rows = tmp_path / "more.jsonl"
    rows.write_text("{}\n")
    (tmp_path / "moved.jsonl").write_text("{}\n")
    watched = ["{}.log_every=7", "{}.checkpoint_every=9", "{}.keep_checkpoints=5", "{}.micro_batch_size=1"]
    for stage, key in ((SftStage(), "sft.rows_files"), (DpoStage(), "dpo.pairs_files")):
        more = load_recipe(RECIPE, [*SMALL, f"{key}=[more.jsonl]"])
        moved = load_recipe(RECIPE, [*SMALL, f"{key}=[moved.jsonl]"])
        first = stage.external(more, tmp_path)
        assert list(first) == [key] and stage.external(recipe, tmp_path) == {}
        assert stage.external(moved, tmp_path) == first and stage.config(moved) == stage.config(more)
        rows.write_text("{}\n{}\n")
        assert stage.external(more, tmp_path) != first
        rows.unlink()
        assert stage.external(more, tmp_path) != first
        rows.write_text("{}\n")
        other = [
            *SMALL,
            *(line.format(stage.name) for line in watched),
            "hardware.device=h200",
            "dpo.heldout_pairs=7",
        ]
        assert stage.config(load_recipe(RECIPE, other)) == stage.config(recipe)
        assert list(stage.config(recipe)) == [stage.name]
        changed = load_recipe(RECIPE, [*SMALL, f"{stage.name}.optimizer.lr=0.125"])
        assert stage.config(changed) != stage.config(recipe)
        assert stage.measuring(changed) == stage.measuring(recipe)
    assert DpoStage().measuring(recipe) == {"dpo": {"heldout_pairs": 12}}


@pytest.mark.parametrize(
    ("stage", "override", "message"),
    [
        (SftStage(), "sft.mixture={calculator: 0.0, chat: 0}", r"sft\.mixture: no kind has a weight above 0"),
        (SftStage(), "sft.mixture={riddles: 1}", r"sft\.mixture\.riddles: no such kind"),
        (SftStage(), "sft.precision=fp8", r"sft\.precision: 'fp8' is not built"),
        (DpoStage(), "dpo.precision=fp8", r"dpo\.precision: 'fp8' is not built"),
        (DpoStage(), "dpo.optimizer.betas=[0.9, 1.5]", r"dpo\.optimizer.*1\.5"),
        (SftStage(), "sft.rows_files=[none.jsonl]", r"sft\.rows_files: .*none\.jsonl cannot be read"),
        (SftStage(), "sft.rows_files=[empty.jsonl]", r"sft\.rows_files: .*empty\.jsonl holds no rows"),
        (SftStage(), "sft.rows_files=[bad.jsonl]", r"bad\.jsonl:2.*role 'king'"),
        (DpoStage(), "dpo.pairs_files=[none.jsonl]", r"dpo\.pairs_files: .*none\.jsonl cannot be read"),
        (DpoStage(), "dpo.pairs_files=[bad.jsonl]", r"bad\.jsonl:1: `prompt`"),
        (SftStage(), "stages=[data, tokenizer, shards, sft]", "sft needs the stage pretrain before it"),
        (DpoStage(), "stages=[data, tokenizer, dpo, sft]", "dpo needs the stage sft before it"),
    ],
)
def test_what_can_be_refused_is_refused_before_any_input_exists(
    stage: SftStage | DpoStage, override: str, message: str, tmp_path: Path
) -> None:
    good = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    bad = {"messages": [{"role": "king", "content": "Hi"}]}
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    tree = [*SMALL, "gates={}", override]
    stage.check(load_recipe(RECIPE, SMALL), tmp_path)
    with pytest.raises(UserError, match=message) as error:
        stage.check(load_recipe(RECIPE, tree), tmp_path)
    assert "\n" not in str(error.value)


def test_every_recipe_that_has_the_stages_passes_their_checks() -> None:
    seen = set()
    for path in sorted(RECIPE.parent.glob("*.yaml")):
        found = load_recipe(path)
        for stage in (SftStage(), DpoStage()):
            if stage.name in found.stages:
                stage.check(found, path.parent)
                seen.add((path.stem, stage.name))
    assert ("demo", "sft") in seen and ("irm-2b", "dpo") in seen


def test_what_may_change_while_training_goes_on() -> None:
    keys = ["sft.steps", "sft.optimizer.lr", "sft.schedule.decay", "sft.batch_size"]
    assert SftStage().can_go_on(keys) == []
    refused = [
        "sft.optimizer.name",
        "sft.rows",
        "sft.mixture.chat",
        "external.sft.rows_files",
        "inputs.pretrain",
        "sft.stepsize",
    ]
    assert SftStage().can_go_on([*keys, *refused]) == refused
    assert DpoStage().can_go_on(["dpo.beta", "dpo.sft_weight", "dpo.steps"]) == []
    assert DpoStage().can_go_on(["dpo.pairs", "dpo.on_policy", "seed"]) == [
        "dpo.pairs",
        "dpo.on_policy",
        "seed",
    ]


def test_declared_metrics_and_outputs_are_those_made(run: Path, sft: StageResult, dpo: StageResult) -> None:
    for stage, result in ((SftStage(), sft), (DpoStage(), dpo)):
        patterns = [re.sub(r"\\{\w+\\}", "[^/@]+", re.escape(pattern)) for pattern in stage.makes]
        names = [metric.name for metric in result.metrics]
        assert [n for n in names if not any(re.fullmatch(p, n) for p in patterns)] == []
        assert [p for p in patterns if not any(re.fullmatch(p, n) for n in names)] == []
        assert set(stage.outputs) <= set(result.artifacts)


def test_missing_inputs_are_named(recipe: Recipe, tmp_path: Path) -> None:
    for stage, missing in ((SftStage(), "tokenizer"), (DpoStage(), "tokenizer")):
        with pytest.raises(UserError, match=f"{stage.name} needs the stage {missing}"):
            stage.run(context(recipe, tmp_path, stage.name))


def test_documents_that_are_gone_are_named(run: Path, tmp_path: Path) -> None:
    from ikirere.posttrain.stage_rows import sample_documents

    documents = sample_documents(run / "data" / "documents-train.parquet", 3)
    assert len(documents) == 30 and documents == sample_documents(run / "data" / "documents-train.parquet", 3)
    with pytest.raises(UserError, match=r"missing\.parquet"):
        sample_documents(tmp_path / "missing.parquet", 1)
