"""The pipeline and its two stages, from files to batches."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ikirere.corpus.build.pipeline import build
from ikirere.corpus.publish.manifest import verify
from ikirere.corpus.stage import DataStage
from ikirere.errors import UserError
from ikirere.programme.stage import StageContext
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Data
from ikirere.recipe.sections import Tokenizer as TokenizerSection
from ikirere.recipe.yamlio import parse
from ikirere.tokenizer.train import train_tokenizer
from ikirere.tokens.loader import LoaderPhase, PackedLoader
from ikirere.tokens.shards import open_shards
from ikirere.tokens.stage import ShardStage

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "owls",
    "watch",
    "trees",
)


def text(i: int) -> str:
    """A few hundred words that no other number has."""
    return " ".join(WORDS[(i * 7 + j * (i % 5 + 1)) % len(WORDS)] + str(i * j % 91) for j in range(60)) + "\n"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for i in range(40):
        (tmp_path / "notes" / f"p{i % 20}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes" / f"p{i % 20}" / f"{i}.txt").write_text(text(i))
    (tmp_path / "notes" / "copy.txt").write_bytes(text(3).replace("\n", "\r\n").encode())
    (tmp_path / "notes" / "monster.txt").write_text("x" * 5000)
    (tmp_path / "notes" / "blob.txt").write_bytes(b"\0\1")
    rows = [
        {"text": text(100 + i), "spdx": s}
        for i, s in enumerate(["MIT"] * 30 + ["GPL-3.0-only", "NOASSERTION"])
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def data(**more: Any) -> dict[str, Any]:
    return {
        "sources": [
            {"kind": "local", "name": "notes", "path": "notes", "domain": "docs", "licence": "CC0-1.0"},
            {"kind": "jsonl", "name": "rows", "path": "rows.jsonl", "domain": "code"},
        ],
        "max_document_bytes": 3000,
        "heldout": 0.1,
    } | more


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def ledger(out: Path) -> list[dict[str, Any]]:
    return [
        row
        for path in sorted((out / "ledger").glob("[a-z]*.parquet"))
        if "-" not in path.stem
        for row in rows_of(path)
    ]


def test_build_filters_splits_and_keeps_a_ledger(sources: Path) -> None:
    out, said, read = folder(sources, "out"), [], []
    mixtures = {"main": {"code": 1.0, "docs": 3.0}}
    counts = build(Data.model_validate(data()), sources, out, 0, mixtures, read.append, said.append)
    train, heldout = (rows_of(out / f"documents-{s}.parquet") for s in ("train", "heldout"))
    assert len(train) + len(heldout) == 70 and len({r["id"] for r in train + heldout}) == 70
    assert not {r["group"] for r in train if r["domain"] == "docs"} & {r["group"] for r in heldout}
    assert {r["domain"] for r in heldout} == {"code", "docs"}
    assert all(r["family"] for r in train + heldout)
    dropped = {(r["path"], r["reason"]): r for r in ledger(out) if r["action"] == "dropped"}
    duplicate = {key for key in dropped if key[1] == "duplicate"}
    assert duplicate in ({("notes/copy.txt", "duplicate")}, {("notes/p3/3.txt", "duplicate")})
    assert set(dropped) - duplicate == {
        ("notes/blob.txt", "binary"),
        ("notes/monster.txt", "too-long"),
        ("rows/rows.jsonl:31", "licence-not-allowed"),
        ("rows/rows.jsonl:32", "licence-unknown"),
    }
    copies = [r for r in dropped.values() if r["reason"] == "duplicate"]
    assert [r["kept"] in {d["id"] for d in train + heldout} for r in copies] == [True]
    assert json.loads(copies[0]["detail"])["because"] == "read before it in the same source"
    assert dropped["notes/blob.txt", "binary"]["id"] == ""
    assert {r["licence"] for r in dropped.values() if r["reason"].startswith("licence")} == {
        "GPL-3.0-only",
        "NOASSERTION",
    }
    assert (
        said[0]
        == "source notes: 1 files or rows left out, first notes/blob.txt (binary); see ledger/read.parquet"
    )
    assert counts["notes"] == ["domain code: a single group, so it is split by document"]
    assert counts["notes"][0] in said
    assert sum(read) == sum(len(r["text"].encode()) for r in train + heldout) + sum(
        r["bytes"] for r in dropped.values()
    )
    assert counts == json.loads((out / "counts.json").read_text())
    by_domain = {r["domain"]: r for r in counts["domains"]}
    assert (
        by_domain["code"]["documents"] == 30
        and by_domain["docs"]["train_documents"] + by_domain["docs"]["heldout_documents"] == 40
    )
    assert [s["step"] for s in counts["steps"]] == ["read", "normalise", "licence", "exact", "near"]
    mixed = json.loads((out / "manifests/main/v0.1.json").read_text())
    assert {p["set"]: p["weight"] for p in mixed["parents"]} == {"code:v0.1": 0.25, "docs:v0.1": 0.75}
    assert verify(out) == []


def test_a_mixture_of_an_unknown_domain_is_refused(sources: Path) -> None:
    with pytest.raises(
        UserError, match=r"mixture main: the weight 'poems' names no set; sets are code, docs"
    ):
        build(Data.model_validate(data()), sources, folder(sources, "out"), 0, {"main": {"poems": 1.0}})


def products(out: Path) -> dict[str, bytes]:
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.relative_to(out).parts[0] != "work"
    }


def test_build_is_byte_equal_again_over_the_remains_of_a_kill(sources: Path) -> None:
    config, first, second = Data.model_validate(data()), folder(sources, "one"), folder(sources, "two")
    for name in ("documents-train.parquet.part", "counts.json.part"):
        (second / name).write_bytes(b"half")
        (first / name).write_bytes(b"half")
    build(config, sources, first)
    build(config, sources, second)
    assert products(first) == products(second)


def test_the_number_of_workers_changes_nothing(sources: Path) -> None:
    one, three = folder(sources, "one"), folder(sources, "three")
    build(Data.model_validate(data(workers=1)), sources, one)
    build(Data.model_validate(data(workers=3)), sources, three)
    assert products(one) == products(three)


def test_the_copy_that_stays_is_itself_in_the_result(tmp_path: Path) -> None:
    """An address is judged among those whose text is new: `b` repeats `a`'s text, so `c` is the first of its own."""
    texts = {
        "a": (text(1), "https://x.org/1"),
        "b": (text(1), "https://x.org/2"),
        "c": (text(2), "http://www.x.org/2/"),
    }
    texts["d"] = (text(3), "x.org/2?utm_source=feed")
    rows = [{"text": body, "spdx": "MIT", "url": url} for body, url in texts.values()]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = [{"kind": "jsonl", "name": "rows", "path": "rows.jsonl", "domain": "docs"}]
    out = folder(tmp_path, "out")
    build(Data.model_validate({"sources": sources, "heldout": 0.0, "near_duplicates": None}), tmp_path, out)
    kept = {r["id"]: r["text"] for r in rows_of(out / "documents-train.parquet")}
    assert set(kept.values()) == {text(1), text(2)}
    gone = {r["reason"]: r for r in ledger(out)}
    assert set(gone) == {"duplicate", "same-url"}
    assert kept[gone["duplicate"]["kept"]] == text(1) and kept[gone["same-url"]["kept"]] == text(2)


def test_any_licence(sources: Path) -> None:
    counts = build(Data.model_validate(data(licences="any")), sources, folder(sources, "out"))
    assert not [r for r in counts["dropped"] if r["reason"].startswith("licence-")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"max_document_bytes": 10},
            r"data\.sources: every document of the domain code was dropped .*too-long",
        ),
        ({"heldout": 0.999}, r"data\.heldout: 0\.999 leaves no training document in the domain code"),
    ],
)
def test_nothing_left_is_said(sources: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(Data.model_validate(data(**change)), sources, folder(sources, "out"))


# ---------------------------------------------------------------- the stages


class Bar:
    def __init__(self) -> None:
        self.done = 0.0

    def advance(self, amount: float = 1, **shown: object) -> None:
        self.done += amount


def context(recipe: Recipe, recipe_folder: Path, run: Path, stage: str, *needs: str) -> StageContext:
    @contextmanager
    def progress(label: str, total: float, unit: str) -> Iterator[Bar]:
        bar = Bar()
        yield bar
        assert unit == "B" and 0 < bar.done <= total * 1.2

    (run / stage).mkdir(parents=True)
    inputs = {name: run / name for name in needs}
    return StageContext(recipe, recipe_folder, run / stage, inputs, False, progress, print, lambda m, s: None)


def test_stages_from_files_to_batches(sources: Path) -> None:
    written = parse((ROOT / "recipes" / "demo.yaml").read_text(), "recipe").value
    recipe = Recipe.model_validate(written | {"data": data(near_duplicates=None)})
    run = sources / "run"
    first = DataStage()
    result = first.run(context(recipe, sources, run, "data"))
    metrics = {m.name: m.value for m in result.metrics}
    assert (
        metrics["documents/code"] == 30
        and metrics["dropped/duplicate"] == 1
        and metrics["dropped/licence-unknown"] == 1
    )
    assert metrics["bytes/docs"] > 1000 and 0.1 <= metrics["heldout_share/docs"] < 0.25
    assert all((run / "data" / name).exists() for name in result.artifacts)
    before = first.external(recipe, sources)
    assert before == first.external(recipe, sources)
    (sources / "notes" / "new.txt").write_text("new")
    assert before != first.external(recipe, sources)

    train_texts = [r["text"] for r in rows_of(run / "data" / "documents-train.parquet")]
    section = TokenizerSection(kind="bpe", vocab_size=320, train_bytes=100_000)
    tokenizer = train_tokenizer(train_texts, section, run / "tokenizer" / "tokenizer", 0)
    result = ShardStage().run(context(recipe, sources, run, "shards", "data", "tokenizer"))
    metrics = {m.name: m.value for m in result.metrics}
    shards = open_shards(run / "shards" / "shards", tokenizer_sha256=tokenizer.sha256)
    assert set(shards) == {(d, s) for d in ("code", "docs") for s in ("train", "heldout")}
    assert metrics["tokens/code/train"] == shards["code", "train"].total_tokens
    assert 1 < metrics["bytes_per_token/docs/heldout"] < 8
    texts = {r["id"]: r["text"] for r in rows_of(run / "data" / "documents-heldout.parquet")}
    held = shards["docs", "heldout"]
    for i in range(len(held)):
        assert held.tokens(i)[-1] == tokenizer.eos
        assert tokenizer.decode(held.tokens(i)[:-1].tolist()) == texts[held.id(i)]

    train = {d: s for (d, name), s in shards.items() if name == "train"}
    loader = PackedLoader(train, [LoaderPhase(3, 64, 4, {"code": 0.5, "docs": 0.5})], seed=0)
    batches = list(loader)
    assert [b.tokens.shape for b in batches] == [(4, 64)] * 3
    assert max(int(b.tokens.max()) for b in batches) < tokenizer.vocab_size


def test_engine_and_workers_are_no_part_of_the_result() -> None:
    written = parse((ROOT / "recipes" / "demo.yaml").read_text(), "recipe").value
    recipe = Recipe.model_validate(written)
    written["data"] |= {"engine": "ray", "workers": 7}
    assert DataStage().config(Recipe.model_validate(written)) == DataStage().config(recipe)
    written["seed"] = 8
    assert DataStage().config(Recipe.model_validate(written)) != DataStage().config(recipe)


# ---------------------------------------------------------------- the real mirror

mirror = pytest.mark.skipif(
    not os.environ.get("IKIRERE_DATA"), reason="IKIRERE_DATA is not set: no local mirror of real corpora"
)


@mirror
def test_mirror_licences_and_hub_stand_in(tmp_path: Path) -> None:
    config = Data.model_validate(
        {
            "sources": [
                {"kind": "parquet", "name": "peps", "path": "${IKIRERE_DATA}/corpus/edu/python+peps.parquet", "domain": "edu", "group_field": "path"},
                {"kind": "hub", "name": "xquad", "dataset": "google/xquad", "domain": "multi", "mirror": "corpus/multi/*xquad*.parquet", "max_bytes": 1_000_000},
            ],
            "licences": "permissive",
        }
    )  # fmt: skip
    with pytest.raises(UserError, match="every document of the domain multi was dropped"):
        build(config, tmp_path, folder(tmp_path, "strict"))
    out = folder(tmp_path, "any")
    said: list[str] = []
    counts = build(
        Data.model_validate(config.model_dump() | {"licences": "any"}), tmp_path, out, say=said.append
    )
    assert any("11 files of the local mirror stand in for google/xquad" in line for line in said)
    multi = [
        r
        for s in ("train", "heldout")
        for r in rows_of(out / f"documents-{s}.parquet")
        if r["domain"] == "multi"
    ]
    assert len({r["group"] for r in multi}) == 11 and len({r["lang"] for r in multi}) == 11
    assert {r["licence"] for r in multi} == {"CC-BY-SA-4.0"}
    edu = Data.model_validate(config.model_dump() | {"sources": config.model_dump()["sources"][:1]})
    counts = build(edu, tmp_path, folder(tmp_path, "edu"))
    gone = {r["licence"]: r["documents"] for r in counts["licences"] if r["outcome"].startswith("licence")}
    assert gone == {"NOASSERTION": 23, "OPUBL-1.0": 4}


@mirror
def test_mirror_books_are_whole(tmp_path: Path) -> None:
    books = {"kind": "parquet", "name": "books", "path": "${IKIRERE_DATA}/corpus/books", "domain": "books", "max_bytes": 9_000_000}  # fmt: skip
    out = folder(tmp_path, "out")
    counts = build(Data.model_validate({"sources": [books], "max_document_bytes": 4_000_000}), tmp_path, out)
    assert counts["domains"][0]["documents"] >= 5 and counts["domains"][0]["heldout_groups"] >= 1


def test_excerpts_hold_no_personal_data_where_it_is_redacted(sources: Path) -> None:
    (sources / "notes" / "big.txt").write_text("Write to ada.lovelace@analytical.co.uk soon. " + "x " * 3000)
    for pii, seen in ((None, True), ({}, False)):
        out = folder(sources, f"out-{seen}")
        build(Data.model_validate(data(pii=pii)), sources, out)
        [row] = [r for r in ledger(out) if r["path"] == "notes/big.txt"]
        assert ("ada.lovelace" in row["excerpt"]) is seen and row["excerpt"].startswith("Write to ")
