"""Normalising and licences: the steps before texts are compared."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikirere.corpus.document import DOCUMENT_SCHEMA, Document
from ikirere.corpus.steps import make_step
from ikirere.corpus.steps.licence_filter import LicenceFilter, licence_in_head
from ikirere.corpus.steps.normalise import Normaliser
from ikirere.corpus.steps.step import Outcome, StepContext
from ikirere.recipe.data import Data

SOURCES = [{"kind": "local", "name": "here", "path": "here", "domain": "docs"}]


def context(**keys: Any) -> StepContext:
    return StepContext(Data.model_validate({"sources": SOURCES} | keys), Path(), Path(), 0)


def table(*rows: dict[str, Any]) -> pa.Table:
    plain = {"text": "", "source": "here", "group": "g", "path": "p", "domain": "docs", "licence": "MIT"}
    return pa.Table.from_pylist([Document(**(plain | row)).row() for row in rows], schema=DOCUMENT_SCHEMA)


def texts(outcome: Outcome) -> list[str]:
    found: list[str] = outcome.kept.column("text").to_pylist()
    return found


def test_mojibake_is_mended_in_prose_and_left_in_code() -> None:
    broken = "The cafÃ© is closed.\nThe naïve line stays."
    outcome = Normaliser(context())(table({"text": broken}, {"text": broken, "domain": "code"}))
    assert texts(outcome) == ["The café is closed.\nThe naïve line stays.", broken]
    [row] = outcome.ledger.to_pylist()
    assert (row["action"], row["reason"], json.loads(row["detail"])) == ("changed", "encoding", {"count": 1})
    assert outcome.kept.column("id").to_pylist()[0] == Document(broken, "", "", "", "").id


def test_prose_is_composed_and_rid_of_stray_characters() -> None:
    outcome = Normaliser(context())(table({"text": "\ufeffZoe\u0308 said\0 so"}))
    assert texts(outcome) == ["Zoë said so"]
    assert {r["reason"] for r in outcome.ledger.to_pylist()} == {"stray-characters", "composed"}


@given(st.text())
def test_what_normalise_gives_it_leaves_alone(text: str) -> None:
    step = Normaliser(context())
    once, _ = step.prose(text)
    assert unicodedata.is_normalized("NFC", once)
    assert step.prose(once)[0] == once


def test_long_texts_go_by_their_bytes() -> None:
    outcome = Normaliser(context(max_document_bytes=8))(table({"text": "éééé"}, {"text": "ééééé"}))
    assert texts(outcome) == ["éééé"]
    [row] = outcome.ledger.to_pylist()
    assert (row["reason"], json.loads(row["detail"]), row["bytes"]) == (
        "too-long",
        {"bytes": 10, "limit": 8},
        10,
    )


def test_a_null_section_alters_nothing() -> None:
    assert make_step("normalise", context(normalise=None)) is None


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("# SPDX-License-Identifier: apache-2.0\nx = 1\n", "Apache-2.0"),
        ("/* SPDX-License-Identifier: GPL-2.0-only */\nint x;\n", "GPL-2.0-only"),
        ("# Licensed under the Apache License, Version 2.0 (the 'License')\n", "Apache-2.0"),
        ('"""A parser for licences."""\nNAMES = ["MIT"]\n', "unknown"),
        ("x = 1\n" * 2000 + "# SPDX-License-Identifier: MIT\n", "unknown"),
    ],
)
def test_heads(head: str, expected: str) -> None:
    assert licence_in_head(head) == expected


@pytest.mark.parametrize(
    ("policy", "declared", "head", "expected"),
    [
        ("permissive", "MIT", "unknown", ("MIT", "")),
        ("permissive", "MIT", "Apache-2.0", ("(MIT) AND (Apache-2.0)", "")),
        ("permissive", "MIT OR Apache-2.0", "Apache-2.0", ("MIT OR Apache-2.0", "")),
        ("permissive", "MIT", "GPL-3.0-only", ("(MIT) AND (GPL-3.0-only)", "licence-conflict")),
        ("permissive", "GPL-3.0-only", "unknown", ("GPL-3.0-only", "licence-not-allowed")),
        ("permissive", "unknown", "unknown", ("unknown", "licence-unknown")),
        ("permissive", "NOASSERTION", "unknown", ("NOASSERTION", "licence-unknown")),
        ("permissive", "unknown", "MIT", ("MIT", "")),
        ("open", "CC-BY-SA-4.0", "unknown", ("CC-BY-SA-4.0", "")),
        ("open", "OPUBL-1.0", "unknown", ("OPUBL-1.0", "licence-not-allowed")),
        ("any", "NOASSERTION", "unknown", ("NOASSERTION", "")),
    ],
)
def test_decisions(policy: str, declared: str, head: str, expected: tuple[str, str]) -> None:
    assert LicenceFilter(context(licences=policy)).decide(declared, head) == expected


def test_licences_are_noted_with_what_was_declared() -> None:
    rows = (
        {"text": "# SPDX-License-Identifier: GPL-3.0-only\n", "domain": "code"},
        {"text": "SPDX-License-Identifier: GPL-3.0-only is how one writes it.\n"},
    )
    outcome = LicenceFilter(context())(table(*rows))
    assert outcome.kept.column("domain").to_pylist() == ["docs"]
    [row] = outcome.ledger.to_pylist()
    assert row["reason"] == "licence-conflict" and json.loads(row["detail"])["head"] == "GPL-3.0-only"
    assert row["excerpt"].startswith("# SPDX")
