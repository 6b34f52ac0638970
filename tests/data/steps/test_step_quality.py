"""Quality: every rule at its bound, n-gram shares against a plain count, models that never judge what they saw."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.data.document import DOCUMENT_SCHEMA, Document
from ikirere.data.steps import make_step
from ikirere.data.steps.quality import MEASURES, QualityFilter
from ikirere.data.steps.quality_rules import RULES, Rule, c4, c4_lines, duplicates, ngram_shares, sentences
from ikirere.data.steps.seed_models import SeedModels
from ikirere.data.steps.step import StepContext
from ikirere.errors import UserError
from ikirere.recipe.data import Data
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


def context(folder: Path, say: Any = lambda line: None, seed: int = 0, **keys: Any) -> StepContext:
    sources = [{"kind": "local", "name": "here", "path": "here", "domain": "docs"}]
    return StepContext(Data.model_validate({"sources": sources, "quality": keys}), folder, folder, seed, say)


def step(*rules: str) -> QualityFilter:
    return QualityFilter(context(Path(), rules=rules or ("gopher", "gopher-repetition", "c4", "fineweb")))


def table(*rows: dict[str, Any]) -> pa.Table:
    plain = {"source": "here", "group": "g", "path": "p", "domain": "docs", "licence": "MIT"}
    return pa.Table.from_pylist([Document(**(plain | row)).row() for row in rows], schema=DOCUMENT_SCHEMA)


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


# --- repetition


def plainly(words: list[str]) -> tuple[list[float], list[float]]:
    """The shares by their definition: every n-gram listed, every character marked."""
    text = " ".join(words)
    starts = [len(" ".join([*words[:i], ""])) if i else 0 for i in range(len(words))]
    ends = [start + len(word) for start, word in zip(starts, words)]
    top, copied = [], []
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = Counter(grams)
        most = max(counts.values(), default=0)
        if n <= 4:
            longest = max((len(" ".join(gram)) for gram, k in counts.items() if k == most), default=0)
            top.append(min(1.0, most * longest / len(text)) if most > 1 else 0.0)
        else:
            marked, seen = set(), set()
            for i, gram in enumerate(grams):
                if gram in seen:
                    marked |= set(range(starts[i], ends[i + n - 1]))
                seen.add(gram)
            copied.append(len(marked) / len(text) if text else 0.0)
    return top, copied


@settings(derandomize=True, deadline=None, max_examples=120)
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "é"]), max_size=60))
def test_ngram_shares_are_those_of_listing_every_ngram(words: list[str]) -> None:
    for found, plain in zip(ngram_shares(words), plainly(words)):
        assert found == pytest.approx(plain)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=3, max_size=14), st.integers(1, 4), st.integers(0, 9))
def test_ngram_shares_of_copied_passages(passage: list[str], copies: int, gap: int) -> None:
    words = [w for k in range(copies) for w in [*passage, *(f"{k}-{i}" for i in range(gap))]]
    for found, plain in zip(ngram_shares(words), plainly(words)):
        assert found == pytest.approx(plain)


def test_duplicates_are_copies_after_the_first() -> None:
    assert duplicates(["aa", "b", "aa", "aa"]) == (0.5, 4 / 7)
    assert duplicates([]) == (0, 0)


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


# --- the models


GOOD = [
    "theorem",
    "proof",
    "lemma",
    "field",
    "ring",
    "group",
    "map",
    "exact",
    "sequence",
    "kernel",
    "image",
    "module",
    "ideal",
    "prime",
    "local",
]
OTHER = [
    "click",
    "here",
    "buy",
    "now",
    "cheap",
    "offer",
    "sale",
    "login",
    "account",
    "free",
    "price",
    "shop",
    "order",
    "cart",
    "deal",
]


def corpus(n: int = 40) -> list[dict[str, Any]]:
    """Documents of three domains; some of the last read like the first."""
    generator = np.random.default_rng(5)

    def write(side: list[str]) -> str:
        words = generator.choice([*side, *side, *["the", "of", "and", "to", "a", "in", "is", "we"]], 60)
        return " ".join(words) + f" {generator.integers(10**9)}"

    rows = [{"text": write(GOOD), "domain": "papers"} for _ in range(n)]
    rows += [{"text": write(OTHER), "domain": "shops"} for _ in range(n)]
    return rows + [{"text": write(GOOD if k % 4 == 0 else OTHER), "domain": "web"} for k in range(n)]


def parts(folder: Path, rows: list[dict[str, Any]], size: int) -> list[Path]:
    folder.mkdir()
    paths = []
    for start in range(0, len(rows), size):
        paths.append(folder / f"{start:05}.parquet")
        pq.write_table(table(*rows[start : start + size]), paths[-1])
    return paths


SEEDED: dict[str, Any] = {
    "rules": (),
    "seed_domains": ("papers",),
    "max_perplexity_quantile": 0.8,
    "min_classifier": 0.2,
}


def prepared(folder: Path, paths: list[Path], **keys: Any) -> QualityFilter:
    said: list[str] = []
    folder.mkdir(exist_ok=True)
    made = QualityFilter(context(folder, said.append, **(SEEDED | keys)))
    made.prepare(paths)
    assert len(said) == 1 and "that it did not see" in said[0]
    return made


def test_models_drop_what_is_unlike_the_seed(tmp_path: Path) -> None:
    rows = corpus()
    made = prepared(tmp_path / "models", parts(tmp_path / "parts", rows, 50))
    summary = json.loads((tmp_path / "models" / "models.json").read_text())
    assert summary["seed_documents"] == summary["good"] == 40
    assert summary["unjudged"] == 80
    assert summary["auc"] > 0.9  # ten of the unjudged read like the good
    assert set(summary["thresholds"]) == {"papers", "shops", "web"}

    outcome = made(table(*rows))
    scores = {row["id"]: row for row in outcome.logs["scores"].to_pylist()}
    of = {
        name: [row for row in scores.values() if row["domain"] == name] for name in ("papers", "shops", "web")
    }
    assert (
        np.median([r["perplexity"] for r in of["papers"]])
        < np.median([r["perplexity"] for r in of["shops"]]) / 3
    )
    assert min(r["classifier"] for r in of["papers"]) > 0.5 > max(r["classifier"] for r in of["shops"])
    for name, group in of.items():  # the quantile keeps the share that it says
        kept = sum(row["perplexity"] <= summary["thresholds"][name] for row in group)
        assert kept == 32
    for row in outcome.ledger.to_pylist():
        detail = json.loads(row["detail"])
        if row["reason"] == "perplexity":
            assert detail["value"] > detail["threshold"] == round(summary["thresholds"][row["domain"]], 5)
        else:
            assert row["reason"] == "classifier"
            assert detail["value"] < detail["threshold"] == 0.2
    kept_web = [
        text
        for text, d in zip(*(outcome.kept.column(c).to_pylist() for c in ("text", "domain")))
        if d == "web"
    ]
    assert kept_web and all("click" not in text for text in kept_web)


def test_no_document_is_judged_by_a_model_that_saw_it(tmp_path: Path) -> None:
    rows = corpus()
    paths = parts(tmp_path / "parts", rows, 200)
    made = prepared(tmp_path / "models", paths)
    assert made.models is not None
    # A document of the same id with other text changes the models of its own fold, and so not its own score.
    mark = "unheard unspoken unwritten " * 8
    table_with = pq.read_table(paths[0])
    identity = table_with.column("id")[0].as_py()
    texts = table_with.column("text").to_pylist()
    before = (made.models.perplexity(identity, mark), made.models.probability(identity, mark))
    changed = table_with.set_column(1, "text", pa.array([texts[0] + " " + mark, *texts[1:]]))
    pq.write_table(changed, paths[0])
    after = prepared(tmp_path / "other", paths)
    assert after.models is not None
    assert (after.models.perplexity(identity, mark), after.models.probability(identity, mark)) == before
    stranger = next(
        i for i in table_with.column("id").to_pylist() if after.models.perplexity(i, mark) != before[0]
    )
    assert after.models.perplexity(stranger, mark) != made.models.perplexity(stranger, mark)


def test_parts_and_order_do_not_matter_and_the_step_can_be_sent(tmp_path: Path) -> None:
    rows = corpus()
    one = prepared(tmp_path / "one", parts(tmp_path / "whole", rows, 500))
    other = prepared(tmp_path / "two", parts(tmp_path / "cut", rows[::-1], 7))
    for name in ("ngram-0.npz", "ngram-1.npz", "classifier-0.npz", "classifier-1.npz", "models.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "one").iterdir() if p.suffix == ".part") == []
    every = table(*rows)
    whole = one(every)
    sent = pickle.loads(pickle.dumps(other))
    cut = [sent(every.slice(start, 11)) for start in range(0, len(every), 11)]
    assert whole.kept.equals(pa.concat_tables([part.kept for part in cut]).combine_chunks())
    assert whole.ledger.equals(pa.concat_tables([part.ledger for part in cut]))
    assert whole.logs["scores"].equals(pa.concat_tables([part.logs["scores"] for part in cut]))
    assert len(pickle.dumps(sent)) < 10_000  # models that were opened stay behind
    assert one.fingerprint() == other.fingerprint()


def test_seed_domains_need_not_be_looked_at(tmp_path: Path) -> None:
    rows = corpus()
    made = prepared(tmp_path / "models", parts(tmp_path / "parts", rows, 500), domains=["web"])
    outcome = made(table(*rows))
    assert set(outcome.logs["scores"].column("domain").to_pylist()) == {"web"}
    assert set(outcome.ledger.column("domain").to_pylist()) == {"web"}
    assert list(made.thresholds) == ["web"]


def test_without_seed_domains_nothing_is_trained(tmp_path: Path) -> None:
    made = make_step("quality", context(tmp_path))
    assert isinstance(made, QualityFilter)
    made.prepare([tmp_path / "is-not-read.parquet"])
    assert made.models is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seed_domains", "message"),
    [
        (("nowhere",), r"0 documents of seed_domains are too few.*domains here: papers, shops, web"),
        (("papers", "shops", "web"), r"0 documents of other domains that are looked at are too few"),
    ],
)
def test_too_little_to_train_on_is_said(tmp_path: Path, seed_domains: tuple[str, ...], message: str) -> None:
    made = QualityFilter(context(tmp_path, **(SEEDED | {"seed_domains": seed_domains})))
    with pytest.raises(UserError, match=r"data\.quality\.seed_domains: " + message):
        made.prepare(parts(tmp_path / "parts", corpus(), 500))
    assert not (tmp_path / "models.json").exists()


def test_without_other_domains_there_is_perplexity_and_no_classifier(tmp_path: Path) -> None:
    folder, said, rows = tmp_path / "models", [], corpus()
    folder.mkdir()
    (folder / "classifier-0.npz").write_bytes(b"of an earlier recipe")
    keys = SEEDED | {"seed_domains": ("papers", "shops", "web"), "min_classifier": 0.0}
    made = QualityFilter(context(folder, said.append, **keys))
    made.prepare(parts(tmp_path / "parts", rows, 500))
    assert said == [
        "quality: trained on 120 documents of papers, shops, web; "
        "no classifier, for there are too few documents of other domains"
    ]
    assert json.loads((folder / "models.json").read_text())["accuracy"] is None
    assert {path.name for path in folder.iterdir()} == {"models.json", "ngram-0.npz", "ngram-1.npz"}
    outcome = made(table(*rows))
    assert set(outcome.ledger.column("reason").to_pylist()) == {"perplexity"}
    assert outcome.logs["scores"].column("classifier").null_count == 120


def test_models_are_opened_once_and_only_when_asked_for(tmp_path: Path) -> None:
    models = SeedModels(tmp_path / "nothing-here", 0)
    with pytest.raises(FileNotFoundError):
        models.perplexity("a", "b c d")


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
