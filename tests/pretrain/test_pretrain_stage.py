"""The stage on a small corpus: phases, theta, milestones, metrics, and resuming."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ikirere.data.shards import write_shards
from ikirere.errors import UserError
from ikirere.model.hub import load_pretrained
from ikirere.pretrain.stage import PretrainStage, check_phases, theta_of
from ikirere.programme.stage import StageContext
from ikirere.recipe.load import load_recipe
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Tokenizer as TokenizerConfig
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.train import train_tokenizer

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
OVERRIDES = [
    "model.vocab_size=384", "tokenizer.vocab_size=384", "model.hidden_size=32", "model.num_hidden_layers=2",
    "model.num_attention_heads=2", "model.num_key_value_heads=1", "model.intermediate_size=48",
    "model.max_position_embeddings=64", "pretrain.compile=off", "pretrain.precision=fp32",
    "pretrain.checkpoint_every=4", "pretrain.log_every=1",
    "pretrain.phases=[{name: short, steps: 4, sequence_length: 16, batch_size: 2, mixture: {code: 1}},"
    " {name: long, steps: 3, sequence_length: 32, batch_size: 1, mixture: {code: 1}, rope_theta: 50000},"
    " {name: back, steps: 3, sequence_length: 16, batch_size: 2, mixture: {code: 1}}]",
    "pretrain.milestones=[{name: half, step: 5}]",
]  # fmt: skip


class Bar:
    def advance(self, amount: float = 1, **shown: object) -> None:
        """Nobody looks."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ikirere.data.document import DOCUMENT_SCHEMA

    root = tmp_path_factory.mktemp("inputs")
    source = Path(theta_of.__code__.co_filename).parents[1]
    texts = [path.read_text(encoding="utf-8") for path in sorted(source.rglob("*.py"))]
    texts = [text for text in texts if text.strip()]
    config = TokenizerConfig(kind="bpe", vocab_size=384)
    (root / "tokenizer").mkdir()
    tokenizer = train_tokenizer(texts, config, root / "tokenizer" / "tokenizer", 0)
    files = {}
    for split, part in (("train", texts[:20]), ("heldout", texts[20:24])):
        rows = [
            dict.fromkeys(DOCUMENT_SCHEMA.names, "x") | {"id": f"{i:032x}", "text": text, "domain": "code"}
            for i, text in enumerate(part)
        ]
        files[split] = root / f"documents-{split}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA), files[split])
    write_shards(files, tokenizer, root / "shards" / "shards", lambda amount: None)
    return {"tokenizer": root / "tokenizer", "shards": root / "shards"}


def _recipe(*more: str) -> Recipe:
    return load_recipe(DEMO, [*OVERRIDES, *more])


def _context(recipe: Recipe, folder: Path, inputs: dict[str, Path], said: list[str]) -> StageContext:
    folder.mkdir(exist_ok=True)

    def progress(label: str, total: float, unit: str) -> Any:
        return nullcontext(Bar())

    return StageContext(
        recipe=recipe, recipe_folder=folder, folder=folder, inputs=inputs, rehearsal=False,
        progress=progress, say=said.append, track=lambda values, step: None,
    )  # fmt: skip


def test_the_stage_trains_measures_and_hands_on(inputs: dict[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    result = PretrainStage().run(_context(_recipe(), tmp_path / "a", inputs, said))
    metrics = {metric.name: metric.value for metric in result.metrics}
    assert metrics["tokens"] == 4 * 32 + 3 * 32 + 3 * 32
    for name in (
        "bits_per_byte",
        "bits_per_byte/code",
        "bits_per_byte@half",
        "perplexity",
        "gzip9_bits_per_byte/code",
    ):
        assert metrics[name] > 0
    assert metrics["bits_per_byte"] == metrics["bits_per_byte/code"] < metrics["bits_per_byte@half"]
    assert metrics["xz9_bits_per_byte/code"] < 4
    model = load_pretrained(tmp_path / "a" / "model")
    assert model.config.rope_theta == 50000 and model.num_parameters() == metrics["parameters"]
    assert Tokenizer.load(tmp_path / "a" / "model").vocab_size == 384


def test_a_run_that_was_cut_ends_with_the_same_weights(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PretrainStage().run(_context(_recipe(), tmp_path / "whole", inputs, []))
    said: list[str] = []
    calls = 0

    def cut(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        raise RuntimeError("cut")

    with monkeypatch.context() as patch:
        patch.setattr("ikirere.pretrain.stage.bits_per_byte", cut)
        with pytest.raises(RuntimeError, match="cut"):
            PretrainStage().run(_context(_recipe(), tmp_path / "cut", inputs, said))
    assert calls == 1
    PretrainStage().run(_context(_recipe(), tmp_path / "cut", inputs, said))
    assert any("going on from" in line for line in said)
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_theta_changes_at_the_phases_and_stays() -> None:
    at = theta_of(_recipe().pretrain, 10_000.0)
    assert [at(done) for done in (0, 3, 4, 6, 7, 9, 10)] == [1e4, 1e4, 5e4, 5e4, 5e4, 5e4, 5e4]


def test_phases_that_cannot_be_run_are_named(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"pretrain\.phases\.1\.sequence_length 128 .*max_position_embeddings 64"
    ):
        check_phases(_recipe("pretrain.phases.1.sequence_length=128"))
    with pytest.raises(UserError, match=r"pretrain\.phases\.0\.attention"):
        check_phases(_recipe("pretrain.phases.0.attention=window"))
    small = _recipe("model.vocab_size=256")
    with pytest.raises(UserError, match=r"model\.vocab_size 256"):
        PretrainStage().run(_context(small, tmp_path / "small", inputs, []))
