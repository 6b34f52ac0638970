"""Decontamination: what counts as a leak, and what is said of it."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ikirere.data.document import DOCUMENT_SCHEMA, Document
from ikirere.data.evaluation_sets import SetMissing
from ikirere.data.evaluation_sets import read as reading
from ikirere.data.sources.arc import altered, parse_task, serialise
from ikirere.data.sources.presets import sudoku_rows
from ikirere.data.steps.decontaminate import Decontaminator
from ikirere.data.steps.step import LEDGER_SCHEMA, Outcome, StepContext
from ikirere.errors import UserError
from ikirere.recipe.data import Data

SOURCES = [{"kind": "local", "name": "here", "path": "here", "domain": "docs"}]


def decontaminator(
    folder: Path, sets: Sequence[str], said: list[str] | None = None, **keys: Any
) -> Decontaminator:
    data = Data.model_validate({"sources": SOURCES, "evaluation_sets": sets, "decontaminate": keys})
    folder.mkdir(parents=True, exist_ok=True)
    said = [] if said is None else said
    return Decontaminator(StepContext(data, folder, folder, 0, said.append))


def prepared(folder: Path, items: Sequence[dict[str, Any]], **keys: Any) -> Decontaminator:
    """A step against one set of questions and answers."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"id": f"item{i}", "q": "", "a": ""} | item for i, item in enumerate(items))
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = decontaminator(folder, ["path:set.jsonl#q,a"], **keys)
    step.prepare([])
    return step


def table(texts: Sequence[str | None], **columns: str) -> pa.Table:
    rows = []
    for number, text in enumerate(texts):
        document = Document(
            text or "", "here", f"g{number}", f"p{number}", columns.get("domain", "docs"), "MIT"
        )
        rows.append(document.row() | {"text": text})
    return pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)


def logged(outcome: Outcome) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = outcome.logs["matches"].to_pylist()
    return rows


def kept(outcome: Outcome) -> list[str]:
    paths: list[str] = outcome.kept.column("path").to_pylist()
    return paths


def words(count: int, seed: str) -> str:
    """So many different words that no other seed gives."""
    return " ".join(f"{seed}{i}" for i in range(count))


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


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IKIRERE_DATA", str(tmp_path / "mirror"))
    monkeypatch.setattr(reading, "hub_away", lambda: "no network (said by the test)")
    (tmp_path / "mirror/benchmarks").mkdir(parents=True)
    return tmp_path / "mirror/benchmarks"


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


# ------------------------------------------------------------ the step


def test_with_drop_evaluation_the_items_leave_and_the_documents_stay(tmp_path: Path) -> None:
    items = [{"q": words(30, "w")}, {"q": words(30, "v")}]
    step = prepared(tmp_path, items, drop="evaluation")
    outcome = step(table([words(30, "w"), words(30, "w"), words(15, "v"), "clean"]))
    assert kept(outcome) == ["p0", "p1", "p2", "p3"] and outcome.ledger.num_rows == 0
    left_out = outcome.logs["evaluation-items"].to_pylist()
    assert [(r["set"], r["item"], r["path"], r["coverage"]) for r in left_out] == [
        ("path:set.jsonl#q,a", "item0", "p0", 1.0),
        ("path:set.jsonl#q,a", "item0", "p1", 1.0),
    ]
    assert [m["contaminated"] for m in logged(outcome)] == [True, True, False]
    other = prepared(tmp_path / "training", items)(table(["clean"]))
    assert set(other.logs) == {"matches"}


def test_missing_sets_stop_or_are_told(tmp_path: Path, mirror: Path) -> None:
    said: list[str] = []
    step = decontaminator(tmp_path / "a", ["sudoku-extreme:test", "gsm8k:test"], said)
    step.prepare([])
    assert [line.split(":")[:3] for line in said[:2]] == [
        ["decontaminate", " NOT compared with sudoku_extreme", "test"],
        ["decontaminate", " NOT compared with gsm8k", "test"],
    ]
    assert said[2].startswith("decontaminate: 0 evaluation sets, 0 items, 0 n-grams")
    assert [bool(row["missing"]) for row in step.prepared_logs()["sets"].to_pylist()] == [True, True]
    assert kept(step(table(["text"]))) == ["p0"]
    step = decontaminator(tmp_path / "a", ["sudoku-extreme:test", "gsm8k:test"], on_missing="stop")
    with pytest.raises(SetMissing, match="sudoku_extreme"):
        step.prepare([])
    with pytest.raises(UserError, match="unknown set 'gsm9k'; known are humaneval:test"):
        decontaminator(tmp_path, ["gsm9k"])


def test_a_stand_in_is_told(tmp_path: Path, mirror: Path) -> None:
    (mirror / "dialogsum").mkdir()
    (mirror / "dialogsum/dialogsum.test.jsonl").write_text(
        json.dumps({"dialogue": words(20, "d"), "summary1": "s"})
    )
    said: list[str] = []
    decontaminator(tmp_path, ["samsum:test"], said).prepare([])
    assert said[0] == "decontaminate: DialogSum stands in for samsum:test"


def test_no_sets_no_work(tmp_path: Path) -> None:
    step = decontaminator(tmp_path, [])
    step.prepare([])
    outcome = step(table(["text", None]))
    assert kept(outcome) == ["p0", "p1"] and not list(tmp_path.iterdir())


def test_the_index_is_kept_while_sets_and_settings_are_the_same(tmp_path: Path) -> None:
    def hashes(folder: Path) -> dict[str, str]:
        files = sorted((folder / "index").iterdir())
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    items = [{"q": words(30, f"w{i}x"), "a": words(9, "a")} for i in range(50)]
    step = prepared(tmp_path / "a", items)
    first, made = hashes(tmp_path / "a"), (tmp_path / "a/index").stat().st_mtime_ns
    assert first == hashes(prepared(tmp_path / "b", items).folder)
    step.prepare([])
    assert (tmp_path / "a/index").stat().st_mtime_ns == made
    mark = step.fingerprint()
    again = prepared(tmp_path / "a", [*items, {"q": words(30, "v")}])
    assert again.fingerprint() != mark and hashes(tmp_path / "a") != first
    before = (tmp_path / "a/index").stat().st_mtime_ns
    decontaminator(tmp_path / "a", ["path:set.jsonl#q,a"], ngram=5).prepare([])
    assert (tmp_path / "a/index").stat().st_mtime_ns != before


@pytest.mark.parametrize("n", [1, 5, 8, 13])
def test_other_lengths_of_ngrams(tmp_path: Path, n: int) -> None:
    step = prepared(tmp_path, [{"q": words(n, "w")}, {"q": words(n + 7, "v")}], ngram=n)
    outcome = step(table([f"a {words(n, 'w')} b", f"a {words(n + 7, 'v')} b", words(n - 1, "w"), ""]))
    # Of a single n-gram only eight words are enough where n-grams are longer; of shorter ones, one is the
    # whole text.
    assert kept(outcome) == ["p2", "p3"]


def test_results_do_not_depend_on_parts_or_processes(tmp_path: Path) -> None:
    draw = random.Random(7)
    items = [
        {"q": words(draw.randint(5, 60), f"w{i}x"), "a": words(draw.randint(0, 30), f"a{i}x")}
        for i in range(60)
    ]
    step = prepared(tmp_path, items)
    texts = []
    for _ in range(200):
        parts = [words(draw.randint(0, 400), f"n{draw.random()}")]
        for item in draw.sample(items, draw.randint(0, 3)):
            text = f"{item['q']} {item['a']}".split()
            start = draw.randint(0, len(text))
            parts += [" ".join(text[start : start + draw.randint(1, 80)]), words(20, f"m{draw.random()}")]
        texts.append(" ".join(parts))
    whole = table([*texts, "é" * 200_000, words(60_000, "long")])

    def together(outcomes: list[Outcome]) -> tuple[list[Any], ...]:
        return (
            [row for o in outcomes for row in o.kept.to_pylist()],
            [row for o in outcomes for row in o.ledger.to_pylist()],
            [row for o in outcomes for row in logged(o)],
        )

    expected = together([step(whole)])
    assert len(expected[1]) > 20 and len(expected[2]) > len(expected[1])
    for size in (1, 7, 100):
        elsewhere: Decontaminator = pickle.loads(pickle.dumps(step))
        parts = [whole.slice(start, size) for start in range(0, len(whole), size)]
        assert together([elsewhere(part) for part in parts]) == expected


@given(st.lists(st.text() | st.none(), max_size=5))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_is_too_odd(tmp_path: Path, texts: list[str | None]) -> None:
    texts = [t if t is None else t.encode("utf-8", "replace").decode() for t in texts]
    if not (tmp_path / "odd").exists():
        prepared(tmp_path / "odd", [{"q": words(20, "w")}, {"q": words(9, "v")}])
    step = decontaminator(tmp_path / "odd", ["path:set.jsonl#q,a"])
    assert step(table([*texts, words(20, "w")])).kept.column("text").to_pylist() == texts


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
