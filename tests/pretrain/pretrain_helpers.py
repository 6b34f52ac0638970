"""Inputs of the stage `pretrain` of a small decoder, its recipe, and a context to run it in."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ikirere.pretrain.stage import PretrainStage
from ikirere.programme.stage import StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Tokenizer as TokenizerConfig
from ikirere.recipe.yamlio import parse
from ikirere.tokenizer.train import train_tokenizer
from ikirere.tokens.shards import write_shards

ROOT = Path(__file__).parents[2]
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
TEXTS = [path.read_text(encoding="utf-8")[:3000] for path in sorted(LIBRARY.glob("[a-f]*.py"))[:30]]
VOCAB = 400


@contextmanager
def one_thread() -> Iterator[None]:
    """Products this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def made_inputs(folder: Path) -> dict[str, Path]:
    """The folders of `tokenizer` and `shards`."""
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
    tree = parse((ROOT / "recipes" / "demo.yaml").read_text(), "recipe").value
    tree["tokenizer"]["vocab_size"] = VOCAB
    tree["gates"] = {}
    tree["stages"] = ["data", "tokenizer", "shards", "pretrain"]
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


def context(
    folder: Path, inputs: dict[str, Path], wanted: Recipe, lines: list[str], **more: Any
) -> StageContext:
    class Bar:
        def advance(self, amount: float = 1, **shown: object) -> None:
            pass

    @contextmanager
    def progress(label: str, total: float, unit: str) -> Iterator[Bar]:
        yield Bar()

    folder.mkdir(exist_ok=True)
    return StageContext(
        wanted, ROOT, folder, inputs, False, progress, lines.append, lambda values, step: None, **more
    )


def run(folder: Path, inputs: dict[str, Path], **pretrain: Any) -> StageResult:
    return PretrainStage().run(context(folder, inputs, recipe(**pretrain), []))


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()
