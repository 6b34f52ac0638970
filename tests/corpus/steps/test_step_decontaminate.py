"""Decontamination: what the step drops, keeps and reports, however its input is cut."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from decontamination_helpers import decontaminator, empty_mirror, kept, logged, prepared, table, words

from ikirere.corpus.contamination.evaluation_sets import SetMissing
from ikirere.corpus.steps.decontaminate import Decontaminator
from ikirere.corpus.steps.step import Outcome
from ikirere.errors import UserError


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_mirror(tmp_path, monkeypatch)


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
