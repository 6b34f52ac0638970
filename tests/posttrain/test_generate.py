"""Generated conversations: real results, canonical forms, disjoint splits, the same for the same seed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.errors import UserError
from ikirere.posttrain.generate import KINDS, Row, answer_is_right, conversations
from ikirere.posttrain.generate.objects import facts
from ikirere.posttrain.generate.row import prompt_of, question_of
from ikirere.posttrain.generate.smalltalk import TOPICS
from ikirere.posttrain.generate.units import CONVERSIONS
from ikirere.posttrain.generate.wordings import OPERATIONS
from ikirere.tools import sandbox
from ikirere.tools.registry import execute

needs_python = pytest.mark.skipif(sandbox.protection() is None, reason="python_exec is off here")
COUNT = {"train": 240, "heldout": 60}
SYMBOLS = {"+": "plus", "-": "minus", "*": "times"}


@pytest.fixture(scope="module")
def documents() -> dict[str, list[dict[str, Any]]]:
    """Real documents of both splits: files of the standard library, distinguished by their position in the list."""
    folder = Path(re.__file__).parent.parent
    files = sorted(folder.glob("*.py"))[:90]
    rows = [{"text": f.read_text(encoding="utf-8"), "path": f.name, "domain": "code"} for f in files]
    rows += [
        {"text": f"# The {w} guide\n\nThis text is about {w}, its use and its limits.\n\nMore follows.\n", "path": "a.md", "domain": "docs"}
        for w in ("queue", "parser", "socket", "logger")
    ]  # fmt: skip
    return {"train": rows[::2], "heldout": rows[1::2]}


@pytest.fixture(scope="module")
def rows(documents: dict[str, list[dict[str, Any]]]) -> dict[tuple[str, str], list[Row]]:
    return {
        (kind, split): conversations(kind, COUNT[split], 3, split, documents[split])  # type: ignore[arg-type]
        for kind in KINDS
        for split in COUNT
    }


def test_there_is_a_kind_for_each_of_the_recipes(rows: dict[tuple[str, str], list[Row]]) -> None:
    assert list(KINDS) == ["calculator", "units", "strings", "documents", "chat", "direct"]
    assert sum(len(o.plain) + len(o.stories) for o in OPERATIONS) >= 60
    assert len(facts()) > 100 and len(CONVERSIONS) > 20 and sum(len(t.prompts) for t in TOPICS) > 150


@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_the_standard_form(kind: str, rows: dict[tuple[str, str], list[Row]]) -> None:
    for split, count in COUNT.items():
        found = rows[kind, split]
        assert len(found) == count if split == "train" else len(found) >= 20
        for row in found:
            roles = [m["role"] for m in prompt_of(row)]
            assert roles[-1] == "user" and set(roles) <= {"user", "assistant", "tool"}
            after = [m["role"] for m in row["messages"][len(roles) :]]
            assert after == (["assistant", "tool", "assistant"] if row["expects_tool"] else ["assistant"])
            assert (row["expects_tool"] is None) == (row["expects_arguments"] is None)
            offered = [t["function"]["name"] for t in row["tools"] or ()]
            assert row["expects_tool"] is None or row["expects_tool"] in offered
            final = row["messages"][-1]["content"]
            assert final and (row["answer"] is None or answer_is_right(row["answer"], final))


@pytest.mark.parametrize("kind", KINDS)
def test_no_heldout_question_is_in_training(kind: str, documents: dict[str, Any]) -> None:
    train: set[str] = set()
    for seed in (1, 2):
        for row in conversations(kind, 400, seed, "train", documents["train"]):
            train |= {m["content"] for m in row["messages"] if m["role"] == "user"}
    held = [question_of(r) for r in conversations(kind, 60, 9, "heldout", documents["heldout"])]
    assert len(set(held)) == len(held) >= 20
    assert not train & set(held)


def test_heldout_excerpts_are_new_even_where_documents_are_shared(documents: dict[str, Any]) -> None:
    train = {question_of(r) for r in conversations("documents", 300, 1, "train", documents["train"])}
    held = {question_of(r) for r in conversations("documents", 100, 1, "heldout", documents["train"])}
    assert held and not train & held


def test_heldout_operands_and_words_are_new(rows: dict[tuple[str, str], list[Row]]) -> None:
    def pairs(*kinds_and_splits: tuple[str, str]) -> set[frozenset[str]]:
        return {
            frozenset(re.findall(r"\d+", question_of(row)))
            for key in kinds_and_splits
            for row in rows[key]
            if len(re.findall(r"\d+", question_of(row))) == 2
        }

    train = pairs(("calculator", "train"), ("direct", "train"))
    assert not train & pairs(("calculator", "heldout"), ("direct", "heldout"))

    def words(split: str) -> set[str]:
        return {
            re.findall(r"'([a-z]{3,10})", r["expects_arguments"]["code"])[0] for r in rows["strings", split]
        }  # type: ignore[index]

    assert not words("train") & words("heldout")


def test_some_wordings_are_only_in_heldout(rows: dict[tuple[str, str], list[Row]]) -> None:
    new = [o.of(story, True)[len(o.of(story, False)) :] for o in OPERATIONS for story in (True, False)]
    assert (
        all(new)
        and 0.07 < sum(map(len, new)) / sum(len(o.of(s, True)) for o in OPERATIONS for s in (0, 1)) < 0.15
    )
    begins = tuple(w.split("{")[0] for o in OPERATIONS for w in o.of(False, True)[len(o.of(False, False)) :])
    assert not any(question_of(r).startswith("What remains of") for r in rows["calculator", "train"])
    assert begins


def test_calculator_expressions_are_canonical_and_right(rows: dict[tuple[str, str], list[Row]]) -> None:
    for row in rows["calculator", "train"] + rows["calculator", "heldout"]:
        match = re.fullmatch(r"(\d{2,4})([-+*])(\d{2,4})", row["expects_arguments"]["expression"])  # type: ignore[index]
        assert match, row
        a, op, b = int(match[1]), match[2], int(match[3])
        assert row["answer"] == str({"+": a + b, "-": a - b, "*": a * b}[op])
        assert {match[1], match[3]} <= set(re.findall(r"\d+", question_of(row)))
        turn = row["messages"][-3]
        assert turn["reasoning_content"] == f"{a} {SYMBOLS[op]} {b}."
        assert row["messages"][-2]["content"] == row["answer"]


def test_operations_digits_and_stories_are_spread(rows: dict[tuple[str, str], list[Row]]) -> None:
    found = rows["calculator", "train"]
    text = [r["expects_arguments"]["expression"] for r in found]  # type: ignore[index]
    for symbol in "+-*":
        assert 0.2 < sum(symbol in t for t in text) / len(text) < 0.5
    for digits in (2, 3, 4):
        assert 0.2 < sum(len(re.split(r"[-+*]", t)[0]) == digits for t in text) / len(text) < 0.5
    assert 0.2 < sum(len(question_of(r)) > 45 for r in found) / len(found) < 0.6


@needs_python
def test_python_results_equal_those_of_the_tool(rows: dict[tuple[str, str], list[Row]]) -> None:
    for row in rows["strings", "train"][:12] + rows["strings", "heldout"][:6]:
        assert execute("python_exec", row["expects_arguments"]).content == row["answer"]


def test_units_results_are_the_calculators(rows: dict[tuple[str, str], list[Row]]) -> None:
    for row in rows["units", "train"]:
        assert execute("calculator", row["expects_arguments"]).content == row["answer"]
        assert len(row["answer"] or "") <= 9


def test_document_answers_stand_in_the_excerpt(rows: dict[tuple[str, str], list[Row]]) -> None:
    for row in rows["documents", "train"]:
        answer = row["answer"] or ""
        assert answer.isdigit() or answer in question_of(row)


def test_direct_rows_offer_no_tool_and_are_right(rows: dict[tuple[str, str], list[Row]]) -> None:
    for row in rows["direct", "train"]:
        assert row["tools"] is None and row["expects_tool"] is None
        assert re.fullmatch(r"-?\d+\.", row["messages"][-1]["content"])


def test_some_training_conversations_go_on(rows: dict[tuple[str, str], list[Row]]) -> None:
    before = [len(prompt_of(r)) for kind in KINDS for r in rows[kind, "train"]]
    assert 0.01 < sum(n > 1 for n in before) / len(before) < 0.15 and max(before) == 5
    assert all(len(prompt_of(r)) == 1 for kind in KINDS for r in rows[kind, "heldout"])


STORY = """Once upon a time there was a small boat named Bobby. Bobby liked to sail in the morning. One day a storm came up.

"Help!" said the little fish. Nobody heard it because the wind was loud. The boat came quickly and carried it home.
A line without an end, as in a list
"""


def test_prose_without_headings_is_asked_about_word_by_word() -> None:
    rows = conversations(
        "documents", 200, 1, "train", [{"text": STORY, "path": "1.txt", "domain": "stories"}]
    )
    rows += conversations(
        "documents", 200, 1, "heldout", [{"text": STORY, "path": "1.txt", "domain": "stories"}]
    )
    answers = {row["answer"] for row in rows}
    assert answers <= {
        "Once upon a time there was a small boat named Bobby.", "One day a storm came up.",
        "The boat came quickly and carried it home.", "was", "heard", "fish",
        '"Help!" said the little fish.',
    }  # fmt: skip
    assert answers
    for row in rows:
        question = question_of(row)
        assert row["answer"] in question and "A line without" not in question
        if " " not in row["answer"]:
            before = re.search(r'"(\w+)"[?.]', question)
            assert before and f"{before[1]} {row['answer']}" in question


def test_the_same_seed_gives_the_same_rows(documents: dict[str, Any]) -> None:
    for kind in ("calculator", "documents", "chat"):
        first, again, other = (conversations(kind, 30, s, "train", documents["train"]) for s in (1, 1, 2))
        assert first == again != other


def test_exhausted_kinds_repeat_in_training_only(documents: dict[str, Any]) -> None:
    few = documents["train"][:3]
    train = conversations("documents", 500, 1, "train", few)
    held = conversations("documents", 500, 1, "heldout", few)
    assert len(train) == 500 and 0 < len(held) < 500
    assert len({question_of(r) for r in held}) == len(held)


def test_bad_requests_are_named() -> None:
    with pytest.raises(UserError, match=r"'riddles'.*calculator, units"):
        conversations("riddles", 3, 1, "train")
    with pytest.raises(UserError, match=r"kind documents.*nothing to ask"):
        conversations("documents", 3, 1, "train", [{"text": "x = 1", "path": "a.py", "domain": "code"}])
    with pytest.raises(UserError, match=r"kind strings.*fewer than 20 words"):
        conversations("strings", 3, 1, "train", [{"text": "one two three", "path": "a.md", "domain": "docs"}])


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("408", "408.", True),
        ("408", "It is 408.", True),
        ("408", "408", True),
        ("408", "4080.", False),
        ("408", "-408.", False),
        ("408", "12 times 34 is 408.", False),
        ("408", "408. Again: 408", True),
        ("408", "", False),
        ("408", "I do not know.", False),
        ("2.5", "2.5 metres.", True),
        ("2.5", "2.50 metres.", False),
        ("-23", "-23.", True),
        ("olleh", "olleh.", True),
        ("olleh", "It is olleh.", True),
        ("olleh", "hello.", False),
        ("Return a copy.", "Return a copy", True),
        ("os.path", "os.path.", True),
    ],
)
def test_what_counts_as_right(answer: str, text: str, right: bool) -> None:
    assert answer_is_right(answer, text) is right


@settings(max_examples=50, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_only_the_number_itself_is_right(a: int, b: int) -> None:
    assert answer_is_right(str(a), f"It is {a}.")
    assert answer_is_right(str(a), f"{b}.") is (a == b)
