"""Which language a document is in, and what is looked at to decide."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.corpus.document import DOCUMENT_SCHEMA, Document
from ikirere.corpus.steps import make_step
from ikirere.corpus.steps.language import LanguageFilter
from ikirere.corpus.steps.prose import prose, sample
from ikirere.corpus.steps.step import StepContext
from ikirere.errors import UserError
from ikirere.recipe.data import Data

ENGLISH = "The river runs slowly through the valley, and in the evening the farmers bring their cattle home."
GERMAN = "Der Fluss fließt langsam durch das Tal, und am Abend bringen die Bauern ihre Rinder nach Hause."
FRENCH = "La rivière coule lentement dans la vallée et le soir les paysans ramènent leurs vaches à la maison."
CHINESE = "河水缓缓地流过山谷，傍晚时分，农民们把牛群赶回家，孩子们在村口等着他们，炊烟从屋顶升起。"
CODE = """```python
für = lambda wert: wert + 1  # erhöht den Wert um eins und gibt ihn zurück an die aufrufende Funktion
Zähler = [für(wert) for wert in range(100) if wert is not None and wert > 0]
```
"""


def context(**keys: Any) -> StepContext:
    sources = [{"kind": "local", "name": "here", "path": "here", "domain": "docs"}]
    data = Data.model_validate({"sources": sources, "language": {}} | keys)
    return StepContext(data, Path(), Path(), 0)


def step(**language: Any) -> LanguageFilter:
    made = LanguageFilter(context(language=language))
    made.prepare([])
    return made


def table(*rows: dict[str, Any]) -> pa.Table:
    plain = {"source": "here", "group": "g", "path": "p", "domain": "docs", "licence": "MIT"}
    return pa.Table.from_pylist([Document(**(plain | row)).row() for row in rows], schema=DOCUMENT_SCHEMA)


@pytest.mark.parametrize(("text", "language"), [(GERMAN, "de"), (FRENCH, "fr"), (CHINESE, "zh")])
def test_other_languages_go_and_english_stays(text: str, language: str) -> None:
    outcome = step()(table({"text": ENGLISH}, {"text": text}))
    assert outcome.kept.column("text").to_pylist() == [ENGLISH]
    [row] = outcome.ledger.to_pylist()
    assert (row["action"], row["reason"], row["excerpt"]) == ("dropped", "language", text)
    detail = json.loads(row["detail"])
    assert (detail["language"], detail["by"]) == (language, "detector")
    assert detail["score"] < 0.1
    scores = outcome.logs["scores"].to_pylist()
    assert [s["language"] for s in scores] == ["en", language]
    assert scores[0]["score"] > 0.9 > scores[1]["score"]


def test_several_languages_can_be_kept() -> None:
    outcome = step(keep=["en", "de"])(table({"text": ENGLISH}, {"text": GERMAN}, {"text": FRENCH}))
    assert outcome.kept.column("text").to_pylist() == [ENGLISH, GERMAN]


def test_code_and_formulas_do_not_count() -> None:
    judged = step()
    assert judged.judge(f"{ENGLISH}\n\n{CODE * 30}", "").keep
    tex = r"\begin{theorem}\label{thm:größe} " + ENGLISH + r" \end{theorem} $\forall x \in X$" * 40
    assert judged.judge(tex, "").keep
    html = "<div class='größe-der-spalte'><a href='https://beispiel.de/über-uns'>" * 30 + ENGLISH
    assert judged.judge(html, "").keep
    assert not judged.judge(
        f"{GERMAN}\n\n```\nif the value is not in the list then return the other value\n```\n" * 9, ""
    ).keep


@pytest.mark.parametrize(
    ("text", "declared", "keep", "by"),
    [
        (ENGLISH, "fr", True, "detector"),  # a page filed under French that is still English
        (GERMAN, "en", False, "detector"),
        ("x = 1", "", True, "nobody"),
        ("x = 1", "en", True, "declared"),
        ("x = 1", "de", False, "declared"),
        ("x = 1", "en-US", True, "declared"),
        ("x = 1", "pt_BR", False, "declared"),
        ("x = 1", "python", True, "nobody"),
    ],
)
def test_the_detector_wins_where_it_can_tell(text: str, declared: str, keep: bool, by: str) -> None:
    verdict = step().judge(text, declared)
    assert (verdict.keep, verdict.by) == (keep, by)


def test_the_declared_language_decides_where_no_language_is_likely() -> None:
    mixed = " ".join(f"{a} {b} {c}" for a, b, c in zip(ENGLISH.split(), GERMAN.split(), FRENCH.split()))
    sure = step(min_score=1.0)
    verdicts = {declared: sure.judge(mixed, declared) for declared in ("en", "de", "")}
    assert {d: (v.keep, v.by) for d, v in verdicts.items()} == {
        "en": (True, "declared"),
        "de": (False, "declared"),
        "": (False, "detector"),
    }


def test_domains_of_code_are_left_alone_unless_named() -> None:
    rows = table({"text": GERMAN, "domain": "code"}, {"text": FRENCH, "domain": "other"})
    assert len(step()(rows).kept) == 1
    assert len(step(domains=["code"])(rows).kept) == 1
    assert step(domains=["code"])(rows).logs["scores"].column("domain").to_pylist() == ["code"]
    other = LanguageFilter(context(normalise={"code_domains": ["other"]}))
    assert other(rows).kept.column("domain").to_pylist() == ["other"]


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(UserError, match=r"data\.language\.keep: 'xx' is not known; accepted are .*\ben\b"):
        step(keep=["xx"])


def test_parts_do_not_matter_and_the_step_can_be_sent() -> None:
    made = make_step("language", context())
    assert made is not None
    made = pickle.loads(pickle.dumps(made))
    rows = table(*({"text": f"{text} {n}"} for n in range(4) for text in (ENGLISH, GERMAN, CHINESE)))
    whole, parts = made(rows), [made(rows.slice(start, 5)) for start in range(0, len(rows), 5)]
    assert whole.kept.equals(pa.concat_tables([part.kept for part in parts]))
    assert whole.ledger.equals(pa.concat_tables([part.ledger for part in parts]))
    assert whole.logs["scores"].equals(pa.concat_tables([part.logs["scores"] for part in parts]))
    assert made.fingerprint().startswith("py3langid ")


def test_an_empty_table_gives_empty_tables() -> None:
    outcome = step()(table())
    assert len(outcome.kept) == len(outcome.ledger) == len(outcome.logs["scores"]) == 0
    assert outcome.kept.schema == DOCUMENT_SCHEMA


PIECES = [
    "```",
    "$",
    "$$",
    "\\begin{align}",
    "\\end{align}",
    "<p",
    ">",
    "](",
    "`",
    "word ",
    "\n",
    "{",
    "https://a b",
]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=60).map("".join))
def test_markup_that_does_not_close_is_borne(text: str) -> None:
    found = prose(text)
    assert len(found) <= 2 * len(text) + 2
    assert not any(line != line.strip() or not line for line in found.split("\n") if found)


@settings(derandomize=True)
@given(st.text(), st.integers(3, 60))
def test_a_sample_is_of_bounded_length(text: str, characters: int) -> None:
    found = sample(text, characters)
    assert len(found) <= characters + 2
    if len(" ".join(text.split())) <= characters:
        assert found == " ".join(text.split())


def test_beginning_middle_and_end_of_a_long_text_are_looked_at() -> None:
    filler = "1 2 3 4 5 6 7 8 9 0\n" * 1_000
    line = ENGLISH + "\n"
    assert prose(line + filler + GERMAN + "\n" + filler + line) == f"{ENGLISH}\n{GERMAN}\n{ENGLISH}"
    assert prose(filler + line + filler * 3) == ""
    assert not step().judge(filler + (GERMAN + "\n") * 10 + filler, "").keep


@pytest.mark.skipif("IKIRERE_DATA" not in os.environ, reason="IKIRERE_DATA names no mirror of corpora")
@pytest.mark.parametrize(
    ("file", "least", "most"),
    [
        ("wiki/ugolbck+WikiSearchEngine", 1.0, 1.0),
        ("math/OpenLogicProject+OpenLogic", 0.98, 1.0),
        ("edu/rust-lang+rfcs", 0.98, 1.0),
        ("multi/google-deepmind+xquad.de", 0.0, 0.0),
        ("multi/google-deepmind+xquad.zh", 0.0, 0.0),
        ("multi/bundestag+gesetze", 0.0, 0.0),
    ],
)
def test_real_documents(file: str, least: float, most: float) -> None:
    path = Path(os.environ["IKIRERE_DATA"]) / "corpus" / f"{file}.parquet"
    texts = [text for text in pq.read_table(path, columns=["text"])["text"].to_pylist() if len(text) > 200][
        ::6
    ]
    rows = table(*({"text": text, "path": str(n)} for n, text in enumerate(texts)))
    assert least <= len(step()(rows).kept) / len(rows) <= most
