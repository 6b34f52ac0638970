"""Word lists: what counts as a match, when a document goes, and that the ledger quotes nothing."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.corpus.document import DOCUMENT_SCHEMA, Document
from ikirere.corpus.steps import make_step
from ikirere.corpus.steps.policy import SHIPPED, PolicyFilter, WordList, read_words
from ikirere.corpus.steps.step import StepContext
from ikirere.errors import UserError
from ikirere.recipe.data import Data

LIST = """# Weather that nobody wants.
drizzle
[winter]
Sleet
black ice
black frost
[wind]
gale-force wind
"""
CALM = "the sun shines over the hills and people walk by the lake until the evening comes "


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(LIST)
    return path


def context(folder: Path, **keys: Any) -> StepContext:
    sources = [{"kind": "local", "name": "here", "path": "here", "domain": "docs"}]
    return StepContext(Data.model_validate({"sources": sources, "policy": keys}), folder, folder, 0)


def step(words: Path, **keys: Any) -> PolicyFilter:
    return PolicyFilter(context(words.parent, words=words.name, **keys))


def table(*rows: dict[str, Any]) -> pa.Table:
    plain = {"source": "here", "group": "g", "path": "p", "domain": "docs", "licence": "MIT"}
    return pa.Table.from_pylist([Document(**(plain | row)).row() for row in rows], schema=DOCUMENT_SCHEMA)


def test_words_and_phrases_are_counted_whole_by_category(words: Path) -> None:
    count = read_words(words, "key").count
    assert count("Sleet, SLEET and sleeting; Drizzle.") == (Counter({"winter": 2, "listed": 1}), 3, 5)
    assert count("Black ice on the road, black\nfrost in the field, black coffee") == (
        Counter({"winter": 2}),
        4,
        12,
    )
    assert count("a gale-force wind, a gale force wind") == (Counter({"wind": 2}), 6, 8)
    assert count("") == (Counter(), 0, 0)


@settings(derandomize=True, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["sleet", "drizzle", "black", "ice", "frost", "gale", "force", "wind", "calm", "Sleet"]
        ),
        max_size=30,
    )
)
def test_counts_are_those_of_looking_at_every_place(found: list[str]) -> None:
    phrases = {
        "black": [(("black", "ice"), "a"), (("black", "frost"), "a")],
        "gale": [(("gale", "force", "wind"), "b")],
    }
    listed = WordList({"drizzle": "a", "sleet": "b"}, phrases)
    entries = [("drizzle",), ("sleet",), ("black", "ice"), ("black", "frost"), ("gale", "force", "wind")]
    lower = tuple(word.lower() for word in found)
    hits = [
        entry
        for position in range(len(lower))
        for entry in entries
        if lower[position : position + len(entry)] == entry
    ]
    matches, matched, every = listed.count(" ".join(found))
    assert (matches.total(), matched, every) == (len(hits), sum(map(len, hits)), len(found))


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        (CALM * 10 + "sleet " * 2, True),  # too few matches
        (CALM * 10 + "sleet " * 3, False),
        (CALM * 40 + "sleet " * 3, True),  # too small a share: 3 of 643 words
        (CALM * 10 + "black ice " * 3, False),
        ("", True),
    ],
)
def test_a_document_goes_for_many_matches_that_are_a_share(words: Path, text: str, keep: bool) -> None:
    outcome = step(words, min_matches=3, max_share=0.01)(table({"text": text}))
    assert len(outcome.kept) == keep


def test_the_share_must_be_exceeded(words: Path) -> None:
    rows = table({"text": "calm " * 97 + "sleet " * 3})
    assert len(step(words, max_share=0.03)(rows).kept) == 1
    assert len(step(words, max_share=0.0299)(rows).kept) == 0


def test_the_ledger_counts_and_quotes_nothing(words: Path) -> None:
    outcome = step(words)(table({"text": "Sleet, sleet and black ice in a gale-force wind"}, {"text": CALM}))
    [row] = outcome.ledger.to_pylist()
    assert (row["action"], row["reason"], row["excerpt"]) == ("dropped", "policy", "")
    assert json.loads(row["detail"]) == {
        "matches": 4, "share": 0.7, "words": 10, "categories": {"wind": 1, "winter": 3},
    }  # fmt: skip
    assert not any(word in str(row).lower() for word in ("sleet", "black", "gale"))
    assert outcome.logs["scores"].to_pylist()[1] == {
        "id": outcome.kept.column("id")[0].as_py(), "domain": "docs", "matches": 0, "share": 0.0, "score": None,
    }  # fmt: skip


def rainy(text: str) -> float:
    return 0.9 if "rain" in text else 0.1


class WithScorer(PolicyFilter):
    scorer = staticmethod(rainy)
    max_score = 0.8


def test_a_scorer_can_be_put_beside_the_list(words: Path) -> None:
    made = WithScorer(context(words.parent, words=words.name))
    outcome = made(table({"text": "rain in spain"}, {"text": CALM}, {"text": "sleet " * 3}))
    assert outcome.kept.column("text").to_pylist() == [CALM]
    assert [json.loads(d)["score"] for d in outcome.ledger.column("detail").to_pylist()] == [0.9, 0.1]
    assert outcome.logs["scores"].column("score").to_pylist() == [0.9, 0.1, 0.1]
    assert made.fingerprint() != step(words).fingerprint()


def test_the_shipped_list_is_short_and_leaves_everyday_and_medical_words_alone() -> None:
    lines = [line for line in SHIPPED.read_text().splitlines() if line and line[0] not in "#["]
    assert 40 <= len(lines) == len(set(lines)) <= 80
    listed = read_words(SHIPPED, "key")
    assert set(listed.words.values()) == {"sexual", "slurs"}
    assert {category for found in listed.phrases.values() for _, category in found} >= {"violence"}
    plain = (
        "sex education, breast cancer, the killing of Caesar, rape law, a bastard sword, hell, damn, nipple"
    )
    assert listed.count(plain)[0].total() == 0
    made = make_step("policy", context(Path()))
    assert made is not None
    assert (
        len(made(table({"text": "hentai porn pornstars gangbang xvideos camgirls"}, {"text": CALM})).kept)
        == 1
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe\xff", "cannot be read as UTF-8"),
        (b"# nothing\n[here]\n", "holds no words"),
    ],
)
def test_a_list_that_is_no_list_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(
        UserError, match=rf"data\.policy\.words: .*list\.txt.*{message}|data\.policy\.words.*{message}"
    ):
        PolicyFilter(context(tmp_path, words="list.txt"))


def test_domains_parts_and_sending(words: Path) -> None:
    made = pickle.loads(pickle.dumps(step(words)))
    made.prepare([])
    bad = "sleet " * 5
    rows = table(
        *(
            {"text": f"{text} {n}", "domain": d}
            for n in range(3)
            for text in (bad, CALM)
            for d in ("docs", "code")
        )
    )
    whole, parts = made(rows), [made(rows.slice(start, 5)) for start in range(0, len(rows), 5)]
    assert len(whole.kept) == 9
    assert whole.kept.equals(pa.concat_tables([part.kept for part in parts]))
    assert whole.ledger.equals(pa.concat_tables([part.ledger for part in parts]))
    assert len(step(words, domains=["code"])(rows).kept) == 9
    other = words.with_name("other.txt")
    other.write_text(LIST + "hail\n")
    assert step(other).fingerprint() != made.fingerprint()
