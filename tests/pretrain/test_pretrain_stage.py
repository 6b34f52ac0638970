"""The stage on real shards: phases, milestones, metrics that can be derived again, a resume."""

from __future__ import annotations

import hashlib
import itertools
import json
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from ikirere.errors import UserError
from ikirere.model.hub import load_pretrained
from ikirere.pretrain import stage as module
from ikirere.pretrain.evaluate import bits_per_byte
from ikirere.pretrain.stage import PretrainStage, attention_of, theta_of
from ikirere.programme.metrics import measure
from ikirere.programme.stage import StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Tokenizer as TokenizerConfig
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.train import train_tokenizer
from ikirere.tokens.shards import open_shards, write_shards

ROOT = Path(__file__).parents[2]
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
TEXTS = [path.read_text(encoding="utf-8")[:3000] for path in sorted(LIBRARY.glob("[a-f]*.py"))[:30]]
VOCAB = 400


@pytest.fixture(autouse=True)
def _thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of `tokenizer` and `shards`."""
    folder = tmp_path_factory.mktemp("inputs")
    config = TokenizerConfig(kind="bpe", vocab_size=VOCAB, train_bytes=60_000)
    tokenizer = train_tokenizer(TEXTS, config, folder / "tokenizer" / "tokenizer", 0)
    parts = {"train": TEXTS[:24], "heldout": TEXTS[24:]}
    files = {}
    for split, texts in parts.items():
        rows = [
            {"id": hashlib.sha256(t.encode()).hexdigest()[:32], "text": t, "domain": ("code", "docs")[i % 2]}
            for i, t in enumerate(texts)
        ]
        files[split] = folder / f"{split}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), files[split])
    write_shards(files, tokenizer, folder / "shards" / "shards")
    return {"tokenizer": folder / "tokenizer", "shards": folder / "shards"}


def recipe(**pretrain: Any) -> Recipe:
    tree = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
    tree["tokenizer"]["vocab_size"] = VOCAB
    tree["gates"] = {}
    tree["model"] |= {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 48, "max_position_embeddings": 64, "head_dim": 16,
    }  # fmt: skip
    mixture = {"code": 0.5, "docs": 0.5}
    tree["pretrain"] |= {
        "phases": [
            {"name": "short", "steps": 8, "sequence_length": 32, "batch_size": 8, "mixture": mixture},
            {"name": "long", "steps": 6, "sequence_length": 64, "batch_size": 4, "mixture": {"code": 1.0},
             "rope_theta": 40000},
        ],
        "milestones": [{"name": "half", "step": 7}], "evaluate_every": 6, "evaluate_bytes": 4000,
        "checkpoint_every": 5, "log_every": 2, "compile": "off", "precision": "fp32",
    } | pretrain  # fmt: skip
    return Recipe.model_validate(tree)


def context(folder: Path, inputs: dict[str, Path], wanted: Recipe, lines: list[str]) -> StageContext:
    class Bar:
        def advance(self, amount: float = 1, **shown: object) -> None:
            pass

    @contextmanager
    def progress(label: str, total: float, unit: str) -> Iterator[Bar]:
        yield Bar()

    folder.mkdir(exist_ok=True)
    return StageContext(
        wanted, ROOT, folder, inputs, False, progress, lines.append, lambda values, step: None
    )


def run(folder: Path, inputs: dict[str, Path], **pretrain: Any) -> StageResult:
    return PretrainStage().run(context(folder, inputs, recipe(**pretrain), []))


@pytest.fixture(scope="module")
def done(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageResult]:
    folder = tmp_path_factory.mktemp("pretrain")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return folder, run(folder, inputs)
    finally:
        torch.set_num_threads(threads)


def test_metrics_and_where_they_come_from(done: tuple[Path, StageResult]) -> None:
    folder, result = done
    metrics = {metric.name: metric for metric in result.metrics}
    heldout = {"bits_per_byte", "bits_per_byte/code", "bits_per_byte/docs", "perplexity"}
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


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


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


def test_bases_of_phases() -> None:
    phases = [
        {"name": str(i), "steps": steps, "sequence_length": 32, "batch_size": 8, "mixture": {"code": 1},
         "rope_theta": theta}
        for i, (steps, theta) in enumerate([(2, None), (3, 5e4), (2, None)])
    ]  # fmt: skip
    at = theta_of(recipe(phases=phases, milestones=[]).pretrain, 1e4)
    assert [at(done) for done in range(7)] == [1e4, 1e4, 5e4, 5e4, 5e4, 5e4, 5e4]
    assert at(7) == 5e4  # a finished run


def test_attention_of_phases() -> None:
    phases = [phase(steps=2, attention="full"), phase(steps=3), phase(steps=1, attention="full")]
    at = attention_of(recipe(phases=phases, milestones=[]).pretrain, "hybrid")
    assert [at(done) for done in range(7)] == ["full"] * 2 + ["hybrid"] * 3 + ["full"] * 2


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
        ({"milestones": [{"name": "late", "step": 99}]}, r"milestones\.0\.step 99"),
        ({"phases": [phase(sequence_length=128)]}, r"phases\.0\.sequence_length 128.*64"),
        ({"phases": [phase(context_parallel=2)]}, r"phases\.0\.context_parallel 2.* accepted is 1"),
        ({"phases": [phase(), phase(attention="window")]}, r"phases\.1\.attention 'window'"),
    ],
)
def test_phases_that_cannot_be(
    inputs: dict[str, Path], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        run(tmp_path, inputs, **change)


def test_a_vocabulary_too_small_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    small = recipe()
    small = small.model_copy(update={"model": small.model.model_copy(update={"vocab_size": 300})})
    with pytest.raises(UserError, match=r"model\.vocab_size 300 .* 400"):
        PretrainStage().run(context(tmp_path, inputs, small, []))
