"""The stage with a recursive model on shards: folder, metrics of blanks, a resume."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ikirere.corpus.readers.puzzles.source import PuzzleSource
from ikirere.errors import UserError
from ikirere.eval.stage import EvaluateStage
from ikirere.model.hub import load_model
from ikirere.model.recursive import RecursiveModel
from ikirere.pretrain import recursive
from ikirere.pretrain.stage import PretrainStage
from ikirere.programme.metrics import measure
from ikirere.programme.stage import StageContext, StageResult
from ikirere.recipe.data import Puzzles
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Tokenizer as TokenizerConfig
from ikirere.recipe.yamlio import parse
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.train import train_tokenizer
from ikirere.tokens.shards import open_shards, write_shards

ROOT = Path(__file__).parents[2]
VOCAB = 300


def texts() -> list[tuple[str, str]]:
    """(domain, text): program traces, and prose about nothing."""
    config = Puzzles(kind="puzzles", name="p", domain="synthesis", generators=("program_traces",), count=30)
    made = PuzzleSource(config, ROOT).documents(lambda p, r: None, lambda line: None)
    prose = [f"Note {i}. " + " ".join(f"word{j * i % 7}" for j in range(40)) for i in range(20)]
    return [("synthesis", d.text) for d in made] + [("web", text) for text in prose]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recursive-inputs")
    config = TokenizerConfig(kind="bpe", vocab_size=VOCAB, train_bytes=20_000, split_digits=True)
    tokenizer = train_tokenizer([t for _, t in texts()], config, folder / "tokenizer" / "tokenizer", 0)
    files = {}
    for split, keep in (("train", False), ("heldout", True)):
        rows = [
            {"id": hashlib.sha256(t.encode()).hexdigest()[:32], "text": t, "domain": d}
            for i, (d, t) in enumerate(texts())
            if (i % 5 == 0) == keep
        ]
        files[split] = folder / f"{split}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), files[split])
    write_shards(files, tokenizer, folder / "shards" / "shards")
    return {"tokenizer": folder / "tokenizer", "shards": folder / "shards"}


def recipe(**pretrain: Any) -> Recipe:
    tree = parse((ROOT / "recipes" / "smol-100m-trm.yaml").read_text(), "recipe").value
    tree["tokenizer"]["vocab_size"] = VOCAB
    tree["gates"] = {}
    tree["serve"] = {}
    tree["model"] |= {
        "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 24, "max_position_embeddings": 96,
        "layer_pattern": "kda full",
    }  # fmt: skip
    tree["model"]["mixers"]["kda"] = {"head_dim": 16, "chunk_size": 16}
    tree["model"]["mixers"]["recursive"] |= {
        "inner_updates": 1, "cycles": 2, "supervision_steps": 2, "puzzle_tokens": 2, "ema": 0.5,
    }  # fmt: skip
    mixture = {"web": 0.5, "synthesis": 0.5}
    tree["pretrain"] |= {
        "phases": [
            {"name": "short", "steps": 4, "sequence_length": 64, "batch_size": 4, "mixture": mixture},
            {"name": "long", "steps": 3, "sequence_length": 96, "batch_size": 2, "mixture": mixture},
        ],
        "milestones": [{"name": "half", "step": 4}], "evaluate_every": 5, "evaluate_bytes": 900,
        "checkpoint_every": 2, "log_every": 1, "compile": "off", "precision": "fp32", "parallel": "none",
        "micro_batch_size": 3,
    } | pretrain  # fmt: skip
    tree["evaluate"]["compare_to"] = "half" if tree["pretrain"]["milestones"] else None
    return Recipe.model_validate(tree)


def context(folder: Path, inputs: dict[str, Path], wanted: Recipe) -> StageContext:
    class Bar:
        def advance(self, amount: float = 1, **shown: object) -> None:
            pass

    @contextmanager
    def progress(label: str, total: float, unit: str) -> Iterator[Bar]:
        yield Bar()

    folder.mkdir(exist_ok=True)
    return StageContext(
        wanted, ROOT, folder, inputs, False, progress, lambda line: None, lambda values, step: None
    )


def run(folder: Path, inputs: dict[str, Path], **pretrain: Any) -> StageResult:
    return PretrainStage().run(context(folder, inputs, recipe(**pretrain)))


@pytest.fixture(scope="module")
def done(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageResult]:
    folder = tmp_path_factory.mktemp("recursive-pretrain")
    return folder, run(folder, inputs)


def test_metrics_of_blanks_and_where_they_come_from(done: tuple[Path, StageResult]) -> None:
    folder, result = done
    metrics = {metric.name: metric for metric in result.metrics}
    heldout = {"perplexity", "nats_per_token"} | {
        f"{name}/{domain}"
        for name in ("perplexity", "nats_per_token", "exact")
        for domain in ("synthesis", "web")
    }
    assert set(metrics) == heldout | {f"{name}@half" for name in heldout} | {
        "parameters", "tokens", "tokens_per_second", "train_seconds", "final_loss", "peak_memory_bytes",
        "loader_wait_fraction",
    }  # fmt: skip
    for metric in result.metrics:
        given = (metric.kind, metric.raw, metric.field, metric.over, metric.where, metric.confidence)
        assert asdict(measure(folder, metric.name, *given)) == asdict(metric)
    assert metrics["tokens"].value == 4 * 4 * 64 + 3 * 2 * 96
    assert 1 < metrics["perplexity/web"].value < 2 * VOCAB
    assert 0 <= metrics["exact/synthesis"].value <= 1
    for artifact in result.artifacts:
        assert (folder / artifact).exists()
    assert [p.name for p in (folder / "evaluations").iterdir()] == ["step-000005.jsonl"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {"nll", "halt_loss", "accuracy", "exact", "halted", "steps"} <= set(log[-1])


def test_the_folder_holds_the_averaged_weights_that_were_measured(
    done: tuple[Path, StageResult], inputs: dict[str, Path]
) -> None:
    folder, _ = done
    model = load_model(folder / "model")
    assert isinstance(model, RecursiveModel)
    tokenizer = Tokenizer.load(folder / "model")
    shards = open_shards(inputs["shards"] / "shards", tokenizer_sha256=tokenizer.sha256)
    heldout = {d: s for (d, split), s in sorted(shards.items()) if split == "heldout"}
    rows = [json.loads(line) for line in (folder / "heldout.jsonl").read_text().splitlines()]
    again = recursive.RecursiveFamily(recipe(), tokenizer).heldout_rows(model, heldout, 96)
    assert [row["nats"] for row in rows] == pytest.approx([row["nats"] for row in again], rel=1e-5)
    samples = json.loads((folder / "samples.json").read_text())
    assert {sample["domain"] for sample in samples} == {"synthesis", "web"}
    for sample in samples:
        assert recursive.GAP in sample["prompt"]
        assert sample["wanted"]


def test_the_evaluation_measures_the_same_and_the_change_since_the_first_milestone(
    done: tuple[Path, StageResult], inputs: dict[str, Path], tmp_path: Path
) -> None:
    folder, result = done
    found = EvaluateStage().run(context(tmp_path, {**inputs, "pretrain": folder}, recipe()))
    before, after = ({m.name: m.value for m in part.metrics} for part in (result, found))
    for name in ("perplexity/web", "perplexity/synthesis", "exact/web"):
        assert after[name] == pytest.approx(before[name], rel=1e-5)
    # The milestone is of the phase with rows of 64 tokens, the figures at the end are of 96.
    tokenizer = Tokenizer.load(folder / "model")
    shards = open_shards(inputs["shards"] / "shards", tokenizer_sha256=tokenizer.sha256)
    heldout = {d: s for (d, split), s in sorted(shards.items()) if split == "heldout"}
    family = recursive.RecursiveFamily(recipe(), tokenizer)
    rows = family.heldout_rows(load_model(folder / "model"), heldout, 64)
    for domain in ("web", "synthesis"):
        own = [row for row in rows if row["domain"] == domain]
        perplexity = math.exp(sum(row["nats"] for row in own) / sum(row["tokens"] for row in own))
        ratio = perplexity / before[f"perplexity/{domain}@half"]
        assert after[f"perplexity_ratio/{domain}@half"] == pytest.approx(ratio, rel=1e-5)
    for metric in found.metrics:
        given = (metric.kind, metric.raw, metric.field, metric.over, metric.where, metric.confidence)
        assert asdict(measure(tmp_path, metric.name, *given)) == asdict(metric)


def test_a_stopped_recursive_run_ends_the_same(
    done: tuple[Path, StageResult], inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = done
    rows = recursive.CarriedRows

    class Stopping(rows):  # type: ignore[misc, valid-type]
        def next(self) -> Any:
            if self.step == 5:
                raise RuntimeError("the power went")
            return super().next()

    with monkeypatch.context() as patched:
        patched.setattr(recursive, "CarriedRows", Stopping)
        with pytest.raises(RuntimeError):
            run(tmp_path, inputs)
    assert not (tmp_path / "model").exists()
    run(tmp_path, inputs)
    files = ("model/model.safetensors", "heldout.jsonl", "samples.json", "milestones/half.jsonl")
    for name in files:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"parallel": "fsdp"}, "pretrain.parallel: fsdp"),
        ({"z_loss": 0.1}, "pretrain.z_loss"),
        ({"packing": "best-fit"}, "pretrain.packing 'best-fit'"),
        ({"phases": [{"name": "x", "steps": 4, "sequence_length": 64, "batch_size": 4, "mixture": {"web": 1},
                      "rope_theta": 5e4}]}, r"phases\.0\.rope_theta"),
    ],
)  # fmt: skip
def test_what_a_recursive_run_does_not_have(
    inputs: dict[str, Path], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        run(tmp_path, inputs, milestones=[], **change)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
