"""Quality by rules: every rule at its bound, C4's lines, what ledger and log hold, and real texts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from quality_helpers import context, table

from ikirere.corpus.steps.quality import MEASURES, QualityFilter
from ikirere.corpus.steps.quality_rules import RULES, Rule, c4, c4_lines, sentences
from ikirere.recipe.hygiene import Quality

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
]


def prose(n_lines: int, bullet: str = "") -> str:
    """Lines of 15 words and one sentence each; from eight lines on no rule objects."""
    generator = np.random.default_rng(0)
    lines = []
    for _ in range(n_lines):
        a, b, c, d, e, f, g, h, i, j = generator.choice(WORDS, 10, replace=False)
        lines.append(
            f"{bullet}{a} {b} {c} the {d} {e} {f} of {g} {h} and {i} {j} {generator.integers(1000)} too."
        )
    return "\n".join(lines)


def step(*rules: str) -> QualityFilter:
    return QualityFilter(context(Path(), rules=rules or ("gopher", "gopher-repetition", "c4", "fineweb")))


def broken(text: str, *rules: str) -> list[str]:
    made = step(*rules)
    return [name for name, _, _ in made.broken("docs", made.measure("id", text)[0])]


def test_groups_and_bounds_are_the_published_ones() -> None:
    named = Quality.model_fields["rules"].annotation
    assert set(RULES) == set(get_args(get_args(named)[0]))
    bounds = {rule.name: (rule.low, rule.high) for group in RULES.values() for rule in group}
    assert bounds["gopher-word-count"] == (50, 100_000)
    assert bounds["gopher-mean-word-length"] == (3, 10)
    assert [bounds[f"gopher-top-{n}-gram"][1] for n in (2, 3, 4)] == [0.2, 0.18, 0.16]
    assert [bounds[f"gopher-duplicate-{n}-grams"][1] for n in range(5, 11)] == [
        0.15,
        0.14,
        0.13,
        0.12,
        0.11,
        0.1,
    ]
    assert bounds["c4-sentences"] == (3, None)
    assert bounds["fineweb-line-punctuation"] == (0.12, None)


def test_a_bound_is_allowed_unless_strict() -> None:
    assert [Rule("r", 1, 2).broken(v) for v in (0.9, 1, 2, 2.1)] == [1, None, None, 2]
    assert [Rule("r", 1, 2, strict=True).broken(v) for v in (1, 1.1, 1.9, 2)] == [1, None, None, 2]


def test_good_prose_breaks_nothing() -> None:
    assert broken(prose(12)) == []


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("gopher-word-count", "the man and " * 16, "the man and " * 17),
        ("gopher-word-count", "the man and " * 33_334, "the man and " * 33_333),
        ("gopher-mean-word-length", "the be to of a a a a " * 10, "the have with that " * 20),
        ("gopher-mean-word-length", "the incomprehensibilities " * 40, "the unusual cases and others " * 20),
        ("gopher-hash-ratio", prose(8) + "#" * 15, prose(8) + "#" * 11),
        ("gopher-ellipsis-ratio", prose(8) + " ..." * 15, prose(8) + "..." * 11),
        ("gopher-ellipsis-ratio", prose(8) + "…" * 15, prose(8) + "…" * 11),
        ("gopher-bullet-lines", prose(10, bullet="• "), "So.\n" + prose(9, bullet=" - ")),
        ("gopher-ellipsis-lines", prose(12).replace(".", "...", 4), prose(12).replace(".", "...", 3)),
        ("gopher-alphabetic-words", "the man and 1 2 " * 20 + "3", "the man and a 2 " * 20),
        ("gopher-stop-words", "a man is the word " * 20, "a man is the word of " * 20),
        ("gopher-duplicate-lines", "a b\n" * 4 + "c\nd\ne\nf\ng", "a b\n" * 4 + "c\nd\ne\nf\ng\nh"),
        ("gopher-duplicate-paragraphs", "a b\n\n" * 4 + "\n\n".join("cdefg"), "a b\n\n" * 4 + "\n\n".join("cdefgh")),
        ("gopher-duplicate-line-characters", "aaaa\naaaa\n" + "bbbbbbbbb\n" * 1, "aaaa\naaaa\n" + "b" * 12),
        ("gopher-duplicate-paragraph-characters", "aaaa\n\naaaa\n\n" + "b" * 11, "aaaa\n\naaaa\n\n" + "b" * 12),
        ("c4-lorem-ipsum", prose(8) + "\nLorem Ipsum dolor sit amet and so on.", prose(8) + "\nlorem dolor."),
        ("c4-curly-bracket", prose(8) + "\n{", prose(8) + "\n}"),
        ("c4-sentences", prose(2) + "\nno end of the line here", prose(3)),
        ("fineweb-line-punctuation", "the end\n" * 22 + prose(3), "the end\n" * 21 + prose(3)),
        ("fineweb-duplicate-line-characters", "ab\nab\n" + "c" * 16, "ab\nab\n" + "c" * 17),
        ("fineweb-short-lines", "x" * 30 + "\n" + "y" * 29 + "\nz\nz", "x" * 30 + "\n" + "y" * 30 + "\nz" * 4),
    ],
)  # fmt: skip
def test_each_rule_on_both_sides_of_its_bound(rule: str, bad: str, good: str) -> None:
    group = next(name for name, rules in RULES.items() if any(r.name == rule for r in rules))
    assert rule in broken(bad, group)
    assert rule not in broken(good, group)


def test_measures_are_what_they_say() -> None:
    text = "The cat sat... #1\n\n- on 22 mats…\n  \nthe END of it\n"
    found, _, _ = step().measure("id", text)
    assert found["gopher-word-count"] == 12
    assert found["gopher-mean-word-length"] == pytest.approx(34 / 12)
    assert found["gopher-hash-ratio"] == pytest.approx(1 / 12)
    assert found["gopher-ellipsis-ratio"] == pytest.approx(2 / 12)
    assert found["gopher-bullet-lines"] == pytest.approx(1 / 3)
    assert found["gopher-ellipsis-lines"] == pytest.approx(1 / 3)
    assert found["gopher-alphabetic-words"] == pytest.approx(9 / 12)
    assert found["gopher-stop-words"] == 2  # the, of; however often
    assert found["fineweb-line-punctuation"] == 0  # c4 left no line
    assert step().measure("id", "{{}")[0]["c4-curly-bracket"] == 2


def test_an_empty_text_is_measured_too() -> None:
    for text in ("", " \n\n", "\x00"):
        reasons = broken(text)
        assert reasons[0] == "gopher-word-count"
        assert "c4-sentences" in reasons


# --- C4


def test_c4_keeps_lines_of_prose() -> None:
    lines = [
        "A line of five words.",
        'She said that "it is so."',
        "He said “this is not so”",
        "Is this a question[12] of taste?",
        "Four words are few.",
        "This line has no end",
        "This line trails off at its end...",
        "Please switch on JavaScript to read this.",
        "By going on you accept our Privacy Policy.",
        "A very long " + "w" * 1_001 + " word is here.",
        "   This one is indented, yet it counts!   ",
        "The river is long.[3]",
        "It has a source[citation needed] in the hills.",
    ]
    kept, removed = c4_lines("\n".join(lines))
    assert kept.split("\n") == [
        "A line of five words.",
        'She said that "it is so."',
        "He said “this is not so”",
        "Is this a question of taste?",
        "This one is indented, yet it counts!",
        "It has a source in the hills.",
    ]
    assert removed == {
        "few-words": 2, "javascript": 1, "long-word": 1, "no-terminal-punctuation": 2, "policy-notice": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("", 0),
        ("One. Two! Three?", 3),
        ("No end", 1),
        ("One (two.) Three.\nFour", 3),
        ("It is 3.5 m, e.g. here.", 1),
        ("So... she went.", 1),
    ],
)
def test_sentences_are_counted(text: str, n: int) -> None:
    assert sentences(text) == n


@settings(derandomize=True, deadline=None)
@given(st.text(alphabet='abc .!?\n"[1]{#…-', max_size=200))
def test_c4_is_settled_after_one_pass_and_no_text_breaks_a_rule_in_two(text: str) -> None:
    _, kept, _ = c4(text)
    assert c4_lines(kept)[0] == kept or "[" in text
    values, _, _ = step().measure("id", text)
    assert all(v is not None and v >= 0 and (v <= 1 or name in COUNTS) for name, v in values.items())


COUNTS = {"gopher-word-count", "gopher-mean-word-length", "gopher-hash-ratio", "gopher-ellipsis-ratio"} | {
    "gopher-stop-words", "c4-lorem-ipsum", "c4-curly-bracket", "c4-sentences",
}  # fmt: skip


# --- the step


def test_ledger_and_log_of_rules() -> None:
    good, short = prose(12), "the man and the dog"
    lines = prose(12) + "\nHome | News | Contact"
    rows = table({"text": good}, {"text": short}, {"text": lines}, {"text": short, "domain": "code"})
    outcome = step()(rows)
    assert outcome.kept.column("text").to_pylist() == [good, good, short]
    assert outcome.kept.column("id").to_pylist() == [rows.column("id")[i].as_py() for i in (0, 2, 3)]
    dropped, changed = outcome.ledger.to_pylist()
    assert (dropped["action"], dropped["reason"], dropped["excerpt"]) == (
        "dropped",
        "gopher-word-count",
        short,
    )
    assert json.loads(dropped["detail"]) == {
        "value": 5.0, "threshold": 50, "also": ["c4-sentences", "fineweb-line-punctuation"],
    }  # fmt: skip
    assert (changed["action"], changed["reason"]) == ("changed", "c4-lines")
    assert json.loads(changed["detail"]) == {"no-terminal-punctuation": 1}
    assert changed["bytes"] == len(lines)
    scores = outcome.logs["scores"]
    assert scores.column_names == ["id", "domain", *MEASURES]
    assert scores.column("gopher-word-count").to_pylist()[:2] == [180.0, 5.0]
    assert scores.column("perplexity").null_count == len(scores) == 3


def test_rules_that_are_not_asked_for_are_not_measured() -> None:
    scores = step("fineweb")(table({"text": prose(3)})).logs["scores"]
    measured = {name for name in MEASURES if scores.column(name).null_count == 0}
    assert measured == {rule.name for rule in RULES["fineweb"]}


def test_c4_changes_what_fineweb_sees() -> None:
    text = "\n".join(f"item {n}" for n in range(60)) + "\n" + prose(12)
    assert "fineweb-short-lines" in broken(text, "fineweb")
    assert broken(text, "c4", "fineweb") == []


@pytest.mark.skipif("IKIRERE_DATA" not in os.environ, reason="IKIRERE_DATA names no mirror of corpora")
def test_real_articles_pass_and_real_lists_do_not() -> None:
    corpus_folder = Path(os.environ["IKIRERE_DATA"]) / "corpus"
    kept = {}
    for name in ("wiki/ugolbck+WikiSearchEngine", "math/stacks+stacks-project"):
        texts = pq.read_table(corpus_folder / f"{name}.parquet", columns=["text"])["text"].to_pylist()[::7]
        made = QualityFilter(context(Path(), rules=("gopher", "gopher-repetition", "c4")))
        outcome = made(table(*({"text": text[:50_000], "path": str(n)} for n, text in enumerate(texts))))
        kept[name] = len(outcome.kept) / len(texts)
    assert kept["wiki/ugolbck+WikiSearchEngine"] > 0.85
    assert kept["math/stacks+stacks-project"] < 0.1  # curly brackets of LaTeX
