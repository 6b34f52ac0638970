"""What the data stage depends on, what it refuses at once, and what of a finished build is kept."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from build_helpers import corpus, products, questions, text

from ikirere.corpus.build import pipeline
from ikirere.corpus.build.ingest import read_sources
from ikirere.corpus.build.inputs import check_inputs, external_inputs
from ikirere.corpus.build.pipeline import build
from ikirere.corpus.readers.puzzles.source import PuzzleSource
from ikirere.corpus.stage import DataStage
from ikirere.errors import UserError
from ikirere.recipe.data import Data
from ikirere.recipe.schema import Recipe
from ikirere.recipe.yamlio import parse

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo.yaml"


def recipe(data: dict[str, Any], mixture: dict[str, float] | None = None, **top: Any) -> Recipe:
    written = parse(DEMO.read_text(), str(DEMO)).value | {"data": data} | top
    written["pretrain"]["phases"][0]["mixture"] = mixture or {"docs": 1.0}
    return Recipe.model_validate(written)


@pytest.fixture
def everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Data that reads each kind of thing from outside."""
    monkeypatch.setenv("IKIRERE_DATA", str(tmp_path / "mirror"))
    benchmark = tmp_path / "mirror" / "benchmarks" / "gsm8k" / "test.jsonl"
    benchmark.parent.mkdir(parents=True)
    benchmark.write_text(json.dumps({"question": text(90), "answer": "4"}) + "\n")
    (tmp_path / "words.txt").write_text("zounds\n")
    pq.write_table(pa.table({"id": ["1"], "text": [text(91)]}), tmp_path / "seen.parquet")
    data = corpus(tmp_path)
    data["sources"].append({"kind": "puzzles", "count": 5})
    return data | {
        "evaluation_sets": ["gsm8k:test", questions(tmp_path, text(92))],
        "policy": {"words": "words.txt"},
        "near_duplicates": {"against": ["seen.parquet"]},
    }


# ---------------------------------------------------------------- keys


def test_settings_that_change_no_document_are_in_no_key(everything: dict[str, Any]) -> None:
    stage = DataStage()
    before = stage.config(recipe(everything))
    assert before["seed"] == 7 and before["data"]["sources"][0]["path"] == "notes"
    others = {"engine": "ray", "workers": 7, "version": "v9", "decontaminate": {"on_missing": "stop"}}
    others["near_duplicates"] = {"against": ["seen.parquet"], "spill_bytes": 1000}
    assert stage.config(recipe(everything | others, {"synthesis": 0.5, "docs": 0.5})) == before
    changed: dict[str, Any] = {"heldout": 0.2, "licences": "any", "near_duplicates": None, "pii": {}}
    for key, value in changed.items():
        assert stage.config(recipe(everything | {key: value})) != before, key
    assert stage.config(recipe(everything, seed=8)) != before


def test_mixtures_and_version_are_measuring(everything: dict[str, Any]) -> None:
    stage = DataStage()
    before = stage.measuring(recipe(everything))
    assert before["pretrain"]["phases"] == [{"name": "main", "mixture": {"docs": 1.0}}]
    assert stage.measuring(recipe(everything, {"synthesis": 1.0})) != before
    assert stage.measuring(recipe(everything | {"version": "v9"})) != before
    assert stage.measuring(recipe(everything | {"heldout": 0.2})) == before


@pytest.mark.parametrize(
    ("file", "label"),
    [
        ("notes/n07.txt", "data.sources.0 (notes)"),
        ("mirror/benchmarks/gsm8k/test.jsonl", "data.evaluation_sets.0 (gsm8k:test)"),
        ("items.jsonl", "data.evaluation_sets.1 (path:items.jsonl#question)"),
        ("words.txt", "data.policy.words (words.txt)"),
        ("seen.parquet", "data.near_duplicates.against.0 (seen.parquet)"),
    ],
)
def test_each_thing_from_outside_counts_by_its_content(
    everything: dict[str, Any], tmp_path: Path, file: str, label: str
) -> None:
    stage, full = DataStage(), recipe(everything)
    before = stage.external(full, tmp_path)
    assert label in before and len(before) == 5
    path = tmp_path / file
    whole = path.read_bytes()
    os.utime(path, (1, 1))
    assert stage.external(full, tmp_path) == before
    path.write_bytes(whole + b"\n")
    after = stage.external(full, tmp_path)
    assert {key for key in before if after[key] != before[key]} == {label}


def test_an_empty_file_changes_nothing_and_a_name_does(everything: dict[str, Any], tmp_path: Path) -> None:
    data = Data.model_validate(everything)
    before = external_inputs(data, tmp_path)
    (tmp_path / "notes" / "empty.txt").touch()
    assert external_inputs(data, tmp_path) == before
    (tmp_path / "notes" / "n07.txt").rename(tmp_path / "notes" / "n77.txt")
    assert external_inputs(data, tmp_path) != before


def test_the_machine_is_no_key(everything: dict[str, Any], tmp_path: Path) -> None:
    everything["sources"].append({"kind": "python-environment", "max_bytes": 1000})
    stage, full = DataStage(), recipe(everything)
    assert list(stage.surroundings(full, tmp_path)) == [
        "data.sources.1 (puzzles)",
        "data.sources.2 (python-environment)",
    ]
    assert not set(stage.surroundings(full, tmp_path)) & set(stage.external(full, tmp_path))


def test_a_reading_that_was_cut_short_needs_the_machine_it_began_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data.model_validate({"sources": [{"kind": "puzzles", "count": 6}]})
    said: list[str] = []

    def read() -> bool:
        said.clear()
        assert read_sources(data, tmp_path, tmp_path / "read", lambda n: None, said.append).documents == 6
        return bool(said)

    assert not read()
    monkeypatch.setattr(PuzzleSource, "fingerprint", lambda self: "another Python")
    assert read() and said == ["source puzzles: 6 documents read before"]
    (tmp_path / "read" / "00" / "done.json").unlink()
    assert not read()  # from the beginning
    (tmp_path / "read" / "00" / "done.json").unlink()
    assert read() and said == ["source puzzles: continued after 6 documents"]


# ---------------------------------------------------------------- a finished build


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, bytes]]:
    """Builds into one folder, and can forbid that anything is built again."""
    data = corpus(tmp_path)
    (tmp_path / "out").mkdir()

    def again(mixture: dict[str, float], forbidden: bool, **more: Any) -> dict[str, bytes]:
        def refuse(*given: object) -> None:
            raise AssertionError("built again")

        with monkeypatch.context() as patch:
            if forbidden:
                patch.setattr(pipeline, "Build", refuse)
            counts = build(
                Data.model_validate(data | more), tmp_path, tmp_path / "out", mixtures={"main": mixture}
            )
        assert counts == json.loads((tmp_path / "out" / "counts.json").read_text())
        return products(tmp_path / "out")

    return again


def test_another_mixture_rewrites_its_manifest_alone(finished: Callable[..., dict[str, bytes]]) -> None:
    first = finished({"docs": 1.0}, False)
    assert finished({"docs": 1.0}, True) == first
    second = finished({"docs": 0.5}, True, version="v0.2", workers=2)
    manifests = {name for name in second if name.startswith("manifests/")}
    assert manifests == {"manifests/docs/v0.2.json", "manifests/main/v0.2.json"}
    assert {n: b for n, b in second.items() if n not in manifests | {"counts.json"}} == {
        n: b for n, b in first.items() if not n.startswith("manifests/") and n != "counts.json"
    }
    assert finished({"docs": 1.0}, True) == first
    with pytest.raises(UserError, match="the weight 'poems' names no set"):
        finished({"poems": 1.0}, True)


def test_a_damaged_file_or_a_changed_source_is_built_again(
    finished: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    first = finished({"docs": 1.0}, False)

    def built_again() -> None:
        with pytest.raises(AssertionError, match="built again"):
            finished({"docs": 1.0}, True)

    for name in (
        "documents-train.parquet",
        "ledger/exact.parquet",
        "counts.json",
        "manifests/docs/v0.1.json",
    ):
        path = tmp_path / "out" / name
        path.write_bytes(b"torn")
        built_again()
        path.unlink()
        built_again()
        path.write_bytes(first[name])
    assert finished({"docs": 1.0}, True) == first
    (tmp_path / "out" / "documents-train.parquet").write_bytes(b"torn")
    assert finished({"docs": 1.0}, False) == first
    (tmp_path / "notes" / "n07.txt").write_text(text(400))
    built_again()


# ---------------------------------------------------------------- refused before any work


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"sources": [{"kind": "local", "name": "a", "path": "none", "domain": "d"}]},
            r"none does not exist",
        ),
        (
            {"sources": [{"kind": "local", "name": "a", "path": "notes", "domain": "d", "pattern": "*.md"}]},
            r"source 'a' \(local\) gave no document",
        ),
        (
            {"sources": [{"kind": "jsonl", "name": "a", "path": "items.jsonl", "domain": "d"}]},
            r"no field 'text'",
        ),
        (
            {"sources": [{"kind": "hub", "name": "a", "dataset": "x/y", "domain": "d", "mirror": "no/*"}]},
            r"no file below IKIRERE_DATA=.* fits 'no/\*'",
        ),
        (
            {"sources": [{"kind": "hub", "name": "a", "dataset": "x/y", "domain": "d"}]},
            r"data\.sources \(a\): x/y cannot be streamed from the hub \(HF_HUB_OFFLINE is set\)",
        ),
        ({"evaluation_sets": ["gsm9k"]}, r"data\.evaluation_sets: unknown set 'gsm9k'"),
        (
            {"evaluation_sets": ["mmlu:test"], "decontaminate": {"on_missing": "stop"}},
            r"data\.evaluation_sets: mmlu:test: .* cannot be had from the hub",
        ),
        ({"evaluation_sets": ["path:items.jsonl#prompt"]}, r"no column 'prompt'"),
        ({"policy": {"words": "empty.txt"}}, r"data\.policy\.words: .*empty\.txt holds no words"),
        ({"language": {"keep": ["xx"]}}, r"data\.language\.keep: 'xx' is not known"),
        ({"near_duplicates": {"against": ["nowhere"]}}, r"against: no Parquet file at .*nowhere"),
        ({"near_duplicates": {"against": ["items.jsonl"]}}, r"items\.jsonl: cannot be read as Parquet"),
        ({"quality": {"seed_domains": ["books"]}}, r"seed_domains: no source has the domain 'books'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    everything: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from ikirere.corpus.contamination.evaluation_sets import hub_away

    hub_away.cache_clear()
    monkeypatch.setattr(pipeline, "read_sources", None)
    (tmp_path / "empty.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    DataStage().check(recipe(everything), tmp_path)
    with pytest.raises(UserError, match=words):
        check_inputs(Data.model_validate(everything | change), tmp_path)
    hub_away.cache_clear()
    assert sorted(tmp_path.rglob("*")) == before
