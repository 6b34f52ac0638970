"""The sample that a tokenizer is trained on, and the stage."""

from __future__ import annotations

import hashlib
import json
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ikirere.errors import UserError
from ikirere.programme.stage import StageContext
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.recipe.yamlio import parse
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.corpus import choose_sample
from ikirere.tokenizer.stage import TokenizerStage
from ikirere.tokenizer.train import train_tokenizer

ROOT = Path(__file__).parents[2]
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
TEXTS = [file.read_text(encoding="utf-8")[:8000] for file in sorted(LIBRARY.glob("[a-h]*.py"))[:40]]


def write(path: Path, texts: Mapping[str, list[str]]) -> None:
    rows = [
        {"id": hashlib.sha256(text.encode()).hexdigest()[:32], "text": text, "domain": domain, "source": "s",
         "group": "g", "path": "p", "licence": "MIT", "lang": "en"}
        for domain, group in texts.items()
        for text in group
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_samples_follow_the_mixture_and_repeat(tmp_path: Path) -> None:
    file = tmp_path / "d.parquet"
    write(file, {"code": TEXTS[:30], "docs": [f"é{i} " * 2000 for i in range(20)]})
    sample = choose_sample(file, 40_000, {"code": 3, "docs": 1}, seed=1)
    assert sample.taken == {"code": 30_000, "docs": 10_000}
    texts = list(sample)
    assert 39_990 <= sum(len(t.encode()) for t in texts) <= 40_000  # a character is never cut in two
    assert texts == list(choose_sample(file, 40_000, {"code": 3, "docs": 1}, seed=1))
    assert texts != list(choose_sample(file, 40_000, {"code": 3, "docs": 1}, seed=2))
    everything = choose_sample(file, 10**9, {}, seed=0)
    assert sum(len(t.encode()) for t in everything) == sum(everything.taken.values())
    short = choose_sample(file, 1_000_000, {"docs": 1}, seed=0)
    assert short.taken["docs"] < short.wanted["docs"]
    with pytest.raises(UserError, match=r"tokenizer\.mixture: .* domain law; domains are code, docs"):
        choose_sample(file, 1000, {"law": 1.0}, seed=0)
    with pytest.raises(UserError, match="all weights are 0"):
        choose_sample(file, 1000, {"code": 0.0}, seed=0)
    with pytest.raises(UserError, match="absent"):
        choose_sample(tmp_path / "absent.parquet", 1000, {}, seed=0)


class Bar:
    def __init__(self, total: float) -> None:
        self.total, self.done = total, 0.0

    def advance(self, amount: float = 1, **shown: object) -> None:
        self.done += amount


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    tree = parse((ROOT / "recipes" / "demo.yaml").read_text(), "recipe").value
    tree["tokenizer"] = {"kind": "bpe", "vocab_size": 600, "train_bytes": 200_000}
    data, folder = tmp_path / "data", tmp_path / "tokenizer"
    data.mkdir()
    folder.mkdir()
    write(data / "documents-train.parquet", {"code": TEXTS[:30], "docs": ["Some prose, with words.\n" * 200]})
    write(
        data / "documents-heldout.parquet",
        {"code": TEXTS[30:], "docs": ["Other prose; 漢字.\n", "no end", ""]},
    )
    said: list[str] = []

    @contextmanager
    def progress(label: str, total: float, unit: str) -> Iterator[Bar]:
        yield Bar(total)

    return StageContext(
        recipe=Recipe.model_validate(tree),
        recipe_folder=tmp_path,
        folder=folder,
        inputs={"data": data},
        rehearsal=False,
        progress=progress,
        say=said.append,
        track=lambda metrics, step: None,
    )


def test_the_stage_trains_and_measures(context: StageContext) -> None:
    (context.folder / "tokenizer.part").mkdir()
    (context.folder / "training.part.x").mkdir()
    result = TokenizerStage().run(context)
    metrics = {m.name: m for m in result.metrics}
    assert set(metrics) == {
        "bytes_per_token/code", "bytes_per_token/docs", "tokens_per_line/code",
        "round_trip", "forged_specials", "unknown_tokens", "id_parity", "round_trip_failures", "parity_failures",
    }  # fmt: skip
    assert metrics["round_trip"].value == 1 and metrics["round_trip"].n == 12
    assert metrics["forged_specials"].value == 0
    assert metrics["unknown_tokens"].value == 0
    tokenizer = Tokenizer.load(context.folder)
    assert tokenizer.vocab_size == 600
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS[30:])
    assert metrics["bytes_per_token/code"].value == pytest.approx(
        sum(len(t.encode()) for t in TEXTS[30:]) / tokens
    )
    assert metrics["tokens_per_line/code"].value == pytest.approx(
        tokens
        / sum(
            len(t.rstrip("\n").split("\n")) if t.endswith("\n") else len(t.split("\n")) for t in TEXTS[30:]
        ),
        rel=0.02,
    )
    assert sorted(p.name for p in context.folder.iterdir()) == ["heldout.jsonl", "tokenizer", "totals.jsonl"]
    assert result.artifacts == ["tokenizer", "heldout.jsonl", "totals.jsonl"]
    first = tokenizer.sha256
    TokenizerStage().run(context)
    assert Tokenizer.load(context.folder).sha256 == first


def test_the_stage_asks_for_held_out_documents(context: StageContext) -> None:
    schema = pq.read_schema(context.inputs["data"] / "documents-heldout.parquet")
    pq.write_table(schema.empty_table(), context.inputs["data"] / "documents-heldout.parquet")
    with pytest.raises(UserError, match=r"data\.heldout"):
        TokenizerStage().run(context)


def changed(recipe: Recipe, **keys: Any) -> Recipe:
    return Recipe.model_validate(recipe.model_dump() | keys)


def test_the_stage_declares_what_it_makes(context: StageContext) -> None:
    result = TokenizerStage().run(context)
    domains = sorted(context.recipe.data.domains)
    assert domains == ["code", "docs"]
    declared = {pattern.replace("{domain}", domain) for pattern in TokenizerStage.makes for domain in domains}
    assert {metric.name for metric in result.metrics} == declared
    assert set(TokenizerStage.outputs) <= set(result.artifacts)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_equal_inputs_give_equal_bytes(context: StageContext, kind: str) -> None:
    context.recipe = changed(context.recipe, tokenizer={"kind": kind, "vocab_size": 600})
    folder = context.folder / "tokenizer"
    made = []
    for _ in range(2):
        TokenizerStage().run(context)
        made.append({file.name: file.read_bytes() for file in folder.iterdir()})
        shutil.rmtree(folder)
    assert made[0] == made[1] and len(made[0]) == 3


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "bpe", "vocab_size": 100}, r"tokenizer\.vocab_size: 100 is too small for byte-level BPE"),
        ({"kind": "unigram", "vocab_size": 100}, r"tokenizer\.vocab_size: 100 is too small for Unigram"),
        ({"kind": "bpe", "vocab_size": 600, "preserve": ["a b"]}, r"tokenizer\.preserve: 'a b' is cut"),
        ({"kind": "unigram", "vocab_size": 600, "preserve": ["x1"]}, r"tokenizer\.preserve: 'x1' holds a digit"),
        ({"kind": "bpe", "vocab_size": 600, "mixture": {"law": 1}}, r"no source gives the domain law; domains are code, docs"),
        ({"kind": "bpe", "vocab_size": 600, "mixture": {"code": 0}}, r"tokenizer\.mixture: all weights are 0"),
        ({"kind": "pretrained", "vocab_size": 600, "pretrained": "torn.json"}, r"torn\.json: not a tokenizer\.json"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_there_is_data(
    context: StageContext, section: dict[str, Any], message: str
) -> None:
    (context.recipe_folder / "torn.json").write_text("{")
    TokenizerStage().check(context.recipe, context.recipe_folder)
    with pytest.raises(UserError, match=message):
        TokenizerStage().check(changed(context.recipe, tokenizer=section), context.recipe_folder)


def test_without_held_out_documents_or_data_it_is_refused(context: StageContext) -> None:
    recipe = context.recipe
    with pytest.raises(UserError, match=r"data\.heldout: 0 leaves no document"):
        TokenizerStage().check(changed(recipe, data=recipe.data.model_dump() | {"heldout": 0.0}), Path())
    stages = [name for name in recipe.stages if name != "data"]
    gates = {name: gates for name, gates in recipe.gates.items() if name != "data"}
    with pytest.raises(UserError, match="stages: tokenizer needs the stage data"):
        TokenizerStage().check(changed(recipe, stages=stages, gates=gates), Path())


def test_the_stage_depends_on_its_section_and_on_an_adopted_file(context: StageContext) -> None:
    stage = TokenizerStage()
    assert stage.config(context.recipe)["tokenizer"]["vocab_size"] == 600
    assert json.dumps(stage.config(context.recipe))
    assert stage.external(context.recipe, context.recipe_folder) == {}
    small = train_tokenizer(
        TEXTS[:5], Config(kind="bpe", vocab_size=600), context.recipe_folder / "mine", seed=0
    )
    section = Config(kind="pretrained", vocab_size=600, pretrained="mine")
    trained = stage.config(context.recipe)
    assert trained["seed"] == context.recipe.seed and trained["tokenizer"]["train_bytes"] == 200_000
    context.recipe = context.recipe.model_copy(update={"tokenizer": section})
    assert stage.config(context.recipe) == {
        "tokenizer": {"kind": "pretrained", "vocab_size": 600, "pretrained": "mine"}
    }
    stage.check(context.recipe, context.recipe_folder)
    assert len(stage.external(context.recipe, context.recipe_folder)["tokenizer.pretrained"]) == 64
    stage.run(context)
    assert Tokenizer.load(context.folder).encode(TEXTS[3]) == small.encode(TEXTS[3])
