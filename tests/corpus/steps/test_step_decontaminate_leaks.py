"""Decontamination: what counts as a leak, in texts and in grids."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from decontamination_helpers import decontaminator, empty_mirror, kept, logged, prepared, table, words

from ikirere.corpus.readers.arc import altered, parse_task, serialise
from ikirere.corpus.readers.presets import sudoku_rows
from ikirere.corpus.steps.step import LEDGER_SCHEMA


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_mirror(tmp_path, monkeypatch)


# ------------------------------------------------------------ what counts


def test_an_item_is_found_in_another_guise_and_the_ledger_says_which(tmp_path: Path) -> None:
    step = prepared(
        tmp_path, [{"q": words(20, "other")}, {"q": words(20, "asked"), "a": words(15, "answer")}]
    )
    guise = f"Page 7.\n\n* {words(20, 'Asked').replace(' ', ',  ')}?\n** A: {words(15, 'ANSWER')}\nNext page."
    outcome = step(table([words(50, "clean"), guise]))
    assert kept(outcome) == ["p0"]
    (row,) = outcome.ledger.to_pylist()
    assert outcome.ledger.schema == LEDGER_SCHEMA
    assert (row["step"], row["action"], row["reason"]) == ("decontaminate", "dropped", "contaminated")
    assert (row["path"], row["source"], row["excerpt"]) == ("p1", "here", guise[:200])
    # 8 n-grams of the question, 3 of the answer, none that reaches over both.
    detail = {
        "set": "path:set.jsonl#q,a",
        "item": "item1",
        "coverage": 1.0,
        "ngrams": 11,
        "example": words(13, "asked"),
    }
    assert json.loads(row["detail"]) == detail
    (match,) = logged(outcome)
    assert (match["id"], match["contaminated"], match["of"]) == (row["id"], True, 11)
    assert match["examples"][0] == words(13, "asked") and len(match["examples"]) == 5


@pytest.mark.parametrize(
    ("n", "matched", "leak"), [(22, 10, True), (21, 9, False), (13, 1, False), (12, 0, False)]
)
def test_coverage_decides_and_what_is_below_it_is_logged(
    tmp_path: Path, n: int, matched: int, leak: bool
) -> None:
    """The item has 20 n-grams of 13 words; the document the first n of its 32 words."""
    step = prepared(tmp_path, [{"q": words(32, "w")}])
    outcome = step(table([f"{words(30, 'before')} {words(n, 'w')} {words(30, 'after')}"]))
    assert (kept(outcome) == []) == leak
    assert outcome.ledger.num_rows == leak
    assert [(m["ngrams"], m["of"], m["coverage"], m["contaminated"]) for m in logged(outcome)] == (
        [(matched, 20, matched / 20, leak)] if matched else []
    )
    for match in logged(outcome):
        assert all(len(e.split()) == 13 and e in words(32, "w") for e in match["examples"])
        assert len(match["examples"]) == min(matched, 5)


@pytest.mark.parametrize(("share", "dropped"), [(0.3, True), (0.31, False)])
def test_the_recipe_sets_the_share(tmp_path: Path, share: float, dropped: bool) -> None:
    step = prepared(tmp_path, [{"q": words(32, "w")}], min_coverage=share)
    assert (kept(step(table([words(18, "w")]))) == []) == dropped


def test_repeated_ngrams_count_once(tmp_path: Path) -> None:
    step = prepared(tmp_path, [{"q": words(32, "w")}])
    (match,) = logged(step(table([". ".join([words(14, "w")] * 50)])))
    assert (match["ngrams"], match["of"]) == (2, 20)
    step = prepared(tmp_path / "more", [{"q": " ".join(["again"] * 40)}, {"q": "again and " * 20}])
    assert [m["of"] for m in logged(step(table(["again " * 13, "again and " * 20])))] == [1, 2]


def test_the_question_alone_is_a_leak_and_a_short_answer_alone_is_not(tmp_path: Path) -> None:
    step = prepared(
        tmp_path, [{"q": words(20, "q"), "a": words(60, "a")}, {"q": words(60, "r"), "a": words(20, "b")}]
    )
    outcome = step(table([words(20, "q"), words(60, "a"), words(60, "r"), words(20, "b")]))
    assert kept(outcome) == ["p3"]
    assert [(m["path"], m["ngrams"], m["of"]) for m in logged(outcome)] == [
        ("p0", 8, 8),
        ("p1", 48, 56),
        ("p2", 48, 48),
        ("p3", 8, 56),
    ]


def test_a_short_question_is_taken_together_with_its_choices(tmp_path: Path) -> None:
    step = prepared(tmp_path, [{"q": words(6, "q"), "a": words(9, "a")}])
    assert kept(step(table([f"{words(6, 'q')}\n{words(9, 'a')}", words(6, "q"), words(9, "a")]))) == [
        "p1",
        "p2",
    ]


@pytest.mark.parametrize(
    ("question", "answer", "document", "found"),
    [
        (8, 0, 8, True),
        (12, 0, 12, True),
        (12, 0, 11, False),  # all of it or nothing
        (13, 0, 13, True),  # a single n-gram, and the whole text
        (7, 0, 7, False),
        (4, 4, 8, True),
        (3, 4, 7, False),
        (9, 60, 9, True),
        (7, 60, 7, False),
    ],
)
def test_short_items_are_matched_as_a_whole(
    tmp_path: Path, question: int, answer: int, document: int, found: bool
) -> None:
    text = [*words(question, "q").split(), *words(answer, "a").split()]
    step = prepared(tmp_path, [{"q": " ".join(text[:question]), "a": " ".join(text[question:])}])
    outcome = step(table([f"Before that. {' '.join(text[:document])} After it."]))
    assert (kept(outcome) == []) == found
    if found:
        (match,) = logged(outcome)
        assert (match["coverage"], match["examples"]) == (1.0, [" ".join(text[:document])])


def test_words_of_two_documents_are_never_taken_together(tmp_path: Path) -> None:
    step = prepared(tmp_path, [{"q": words(10, "s")}, {"q": words(14, "w")}, {"q": words(40, "v")}])
    halves = [words(10, "s").split(), words(14, "w").split()]
    parts = [
        " ".join(half) for whole in halves for half in (whole[: len(whole) // 2], whole[len(whole) // 2 :])
    ]
    assert logged(step(table(parts))) == []


def test_items_that_cannot_be_found_are_listed(tmp_path: Path) -> None:
    template = words(30, "template")
    items = [{"q": words(7, "s")}, {"q": "..."}, {"q": words(9, "ok")}, *({"q": template} for _ in range(11))]
    step = prepared(tmp_path, items)
    lost = pq.read_table(tmp_path / "unmatchable.parquet").to_pylist()
    assert [(row["item"], row["unmatchable"]) for row in lost] == [
        ("item0", "short"),
        ("item1", "empty"),
        *((f"item{i}", "template") for i in range(3, 14)),
    ]
    logs = step.prepared_logs()
    assert logs["unmatchable"].to_pylist() == lost
    assert logs["sets"].to_pylist() == [
        {"set": "path:set.jsonl#q,a", "items": 14, "unmatchable": 13, "missing": ""}
    ]
    assert kept(step(table([template, words(9, "ok")]))) == ["p0"]


def test_what_many_items_of_a_set_share_is_nobodys(tmp_path: Path) -> None:
    """Without that, an instruction's template would be most of each short item."""
    template = words(20, "template")
    step = prepared(
        tmp_path,
        [{"q": f"{template} {words(6, f'own{i}x')} and {words(20, f'more{i}x')}"} for i in range(12)],
    )
    outcome = step(
        table([template, f"{template} {words(40, 'mine')}", f"{words(6, 'own3x')} and {words(20, 'more3x')}"])
    )
    assert kept(outcome) == ["p0", "p1"]
    assert {(m["path"], m["item"]) for m in logged(outcome)} == {("p2", "item3")}
    few = prepared(tmp_path / "few", [{"q": f"{template} {words(5, f'own{i}x')}"} for i in range(10)])
    assert kept(few(table([template]))) == []


LICENCE = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated "
    "documentation files, to deal in the Software without restriction, including without limitation the rights to use"
)


def test_a_licence_inside_an_item_condemns_no_licensed_document(tmp_path: Path) -> None:
    step = prepared(tmp_path, [{"q": f"{LICENCE} {words(60, f'code{i}x')}"} for i in range(3)])
    outcome = step(table([f"{LICENCE}\n{words(9, f'file{n}x')}" for n in range(500)]))
    assert len(kept(outcome)) == 500
    assert len(logged(outcome)) == 1500 and max(m["coverage"] for m in logged(outcome)) < 0.3


def test_a_piece_of_a_passage_is_a_leak_and_a_quotation_is_not(tmp_path: Path, mirror: Path) -> None:
    (mirror / "wikitext2").mkdir()
    first, second = words(300, "one"), words(300, "two")
    (mirror / "wikitext2/test.txt").write_text(f" = One = \n {first} \n = Two = \n {second} \n")
    step = decontaminator(tmp_path, ["wikitext2:test"])
    step.prepare([])
    piece = " ".join(first.split()[40:80])
    across = f"{' '.join(first.split()[-30:])}. {' '.join(second.split()[:30])}"
    quotation = f"{words(100, 'x')} {piece} {words(100, 'y')}"
    outcome = step(table([piece, across, quotation, f"{words(2000, 'z')} {first}"]))
    assert kept(outcome) == ["p2"]
    shares = {
        m["path"]: (m["coverage"], m["document_coverage"]) for m in logged(outcome) if m["item"] == "0: One"
    }
    # 'one' is the first of the article's words, so that it has 301 of them.
    assert shares["p0"] == (28 / 289, 1.0)
    assert shares["p1"] == (18 / 289, 36 / 48)
    assert shares["p2"] == (28 / 289, 28 / 228)
    assert shares["p3"][0] == 288 / 289 and shares["p3"][1] < 0.2


# ------------------------------------------------------------ grids


def grid(draw: random.Random) -> list[list[int]]:
    height, width = draw.randint(3, 9), draw.randint(3, 9)
    return [[draw.randint(0, 9) for _ in range(width)] for _ in range(height)]


def task(draw: random.Random, pairs: int) -> dict[str, Any]:
    made = [{"input": grid(draw), "output": grid(draw)} for _ in range(pairs)]
    return {"train": made[:-1], "test": made[-1:]}


@given(st.integers(0, 7), st.permutations("0123456789"), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_grid_tasks_are_found_in_any_guise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symmetry: int, colours: list[str], seed: int
) -> None:
    draw = random.Random(seed)
    tasks = [task(draw, 5) for _ in range(3)]
    monkeypatch.setenv("IKIRERE_DATA", str(tmp_path))
    folder = tmp_path / "benchmarks/arc_agi_2/evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    for name, one in zip("abc", tasks):
        (folder / f"{name}.json").write_text(json.dumps(one))
    step = decontaminator(tmp_path / "work", ["arc_agi_2:evaluation"])
    step.prepare([])

    def guise(train: list[Any], test: list[Any]) -> str:
        return serialise(altered(parse_task(train, test), symmetry, "".join(colours)))

    b = tasks[1]
    other = task(draw, 5)
    texts = [
        guise(b["train"], b["test"]),
        json.dumps(b),
        guise(b["test"], other["train"]),  # one test pair, shown as a demonstration
        guise(b["train"][:3], other["test"]),  # three pairs of five, none a test
        guise(b["train"][:2], other["test"]),  # two of five
        guise(other["train"], other["test"]),
        json.dumps(other),
    ]
    outcome = step(table(texts, domain="arc"))
    assert kept(outcome) == ["p4", "p5", "p6"]
    assert [(m["item"], m["ngrams"], m["of"], m["contaminated"]) for m in logged(outcome)] == [
        ("b", 5, 5, True),
        ("b", 5, 5, True),
        ("b", 1, 5, True),
        ("b", 3, 5, True),
        ("b", 2, 5, False),
    ]
    assert logged(outcome)[2]["examples"][0].startswith("test pair ")


def test_puzzles_of_a_folder_in_the_hubs_form(tmp_path: Path, mirror: Path) -> None:
    solution = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
    puzzle = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
    fewer = puzzle.replace("5", ".", 1)
    (mirror / "sudoku_extreme").mkdir()
    (mirror / "sudoku_extreme/test.csv").write_text(
        f"source,question,answer,rating\nx,{puzzle},{solution},1\n"
    )
    step = decontaminator(tmp_path / "work", ["sudoku-extreme:test"])
    step.prepare([])
    turned = str.maketrans("123456789", "912345678")
    texts = [
        sudoku_rows(puzzle, solution),
        sudoku_rows(puzzle[::-1].translate(turned), solution[::-1].translate(turned)),
        f"{puzzle},{solution}",
        sudoku_rows(fewer, solution),
    ]
    assert kept(step(table(texts))) == ["p3"]
