"""The stage `shards`: what it declares, what it repeats, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ikirere.common.files import write_json, write_rows
from ikirere.corpus.document import DOCUMENT_SCHEMA, Document, TableWriter
from ikirere.corpus.seal import make_seal
from ikirere.errors import UserError
from ikirere.programme.stage import StageContext
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Tokenizer as Section
from ikirere.recipe.yamlio import parse
from ikirere.tokenizer.train import train_tokenizer
from ikirere.tokens.stage import ShardStage

ROOT = Path(__file__).parents[2]
TEXTS = {"train": ["def f(x): return x", "one two three"], "heldout": ["def g(): pass", "four five"]}


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    folders = {name: tmp_path / name for name in ("data", "tokenizer", "shards")}
    for folder in folders.values():
        folder.mkdir()
    sides = {}
    for split, texts in TEXTS.items():
        documents = [Document(t, "s", "g", "p", d) for t, d in zip(texts, ("code", "docs"))]
        with TableWriter(folders["data"] / f"documents-{split}.parquet", DOCUMENT_SCHEMA) as writer:
            for document in documents:
                writer.add(document.row())
        ids = np.array([document.id for document in documents], "S32")
        sides[split] = (ids, ids)
    write_json(folders["data"] / "seal.json", make_seal(sides))
    write_rows(folders["data"] / "domains.jsonl", [{"bytes": 100}])
    train_tokenizer(
        TEXTS["train"] * 50, Section(kind="bpe", vocab_size=280), folders["tokenizer"] / "tokenizer", 0
    )

    @contextmanager
    def progress(label: str, total: float, unit: str) -> Iterator[object]:
        yield type("Bar", (), {"advance": lambda self, amount=1, **shown: None})()

    return StageContext(
        recipe=Recipe.model_validate(parse((ROOT / "recipes" / "demo.yaml").read_text(), "recipe").value),
        recipe_folder=tmp_path,
        folder=folders["shards"],
        inputs={"data": folders["data"], "tokenizer": folders["tokenizer"]},
        rehearsal=False,
        progress=progress,  # type: ignore[arg-type]
        say=lambda line: None,
        track=lambda metrics, step: None,
    )


def contents(context: StageContext) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (context.folder / "shards").iterdir()}


def test_the_stage_declares_what_it_makes(context: StageContext) -> None:
    result = ShardStage().run(context)
    declared = {
        pattern.replace("{domain}", domain).replace("{split}", split)
        for pattern in ShardStage.makes
        for domain in ("code", "docs")
        for split in TEXTS
    }
    assert {metric.name for metric in result.metrics} == declared
    assert set(ShardStage.outputs) <= set(result.artifacts)


def test_whole_shards_are_kept_and_damaged_ones_become_the_same_again(context: StageContext) -> None:
    first = ShardStage().run(context)
    whole = contents(context)
    file = context.folder / "shards" / "code-train.bin"
    written = file.stat().st_mtime_ns
    assert ShardStage().run(context).metrics == first.metrics
    assert file.stat().st_mtime_ns == written
    file.write_bytes(file.read_bytes()[:-2])
    assert ShardStage().run(context).metrics == first.metrics
    assert contents(context) == whole


def test_shards_of_another_tokenizer_are_encoded_anew(context: StageContext) -> None:
    ShardStage().run(context)
    before = contents(context)
    section = Section(kind="bpe", vocab_size=284)
    train_tokenizer(TEXTS["train"] * 50, section, context.inputs["tokenizer"] / "tokenizer", 0)
    ShardStage().run(context)
    assert contents(context) != before


def test_its_inputs_have_to_be_in_the_recipe(context: StageContext) -> None:
    stage = ShardStage()
    stage.check(context.recipe, Path())
    tree = context.recipe.model_dump()
    tree["stages"] = [name for name in tree["stages"] if name != "tokenizer"]
    tree["gates"] = {name: gates for name, gates in tree["gates"].items() if name != "tokenizer"}
    with pytest.raises(UserError, match="stages: shards needs the stage tokenizer before it"):
        stage.check(Recipe.model_validate(tree), Path())
