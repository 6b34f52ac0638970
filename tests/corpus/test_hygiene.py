"""Licences, exact duplicates and splits."""

from __future__ import annotations

import unicodedata
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.corpus.build.group_split import split
from ikirere.corpus.dedup.exact import content_hash, url_key
from ikirere.corpus.licence import PERMISSIVE, allowed, of_metadata, spdx, spdx_expression

MIT_TEXT = """The software comes as it is.
Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal in it."""
BSD3_TEXT = """Copyright somebody.
Redistribution and use in source and binary forms, with or without modification, are permitted.
Neither the name of anybody may be used to endorse or promote products derived from this."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MIT", "MIT"),
        ("mit", "MIT"),
        ("The MIT License (MIT)", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("Apache-2.0 OR BSD-2-Clause", "Apache-2.0 OR BSD-2-Clause"),
        ("3-Clause BSD License", "BSD-3-Clause"),
        ("BSD", "LicenseRef-BSD"),
        ("License :: OSI Approved :: Apache Software License", "Apache-2.0"),
        ("License :: OSI Approved :: Something New", "unknown"),
        ("LicenseRef-Public-Domain OR CC0-1.0", "LicenseRef-Public-Domain OR CC0-1.0"),
        (MIT_TEXT, "MIT"),
        (BSD3_TEXT, "BSD-3-Clause"),
        (BSD3_TEXT.splitlines()[1], "BSD-2-Clause"),
        ("NOASSERTION", "NOASSERTION"),
        ("ask the author", "unknown"),
        ("MIT AND", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_spdx(text: str | None, expected: str) -> None:
    assert spdx(text) == expected


@pytest.mark.parametrize(
    ("expression", "permissive"),
    [
        ("MIT", True),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR GPL-3.0-only) AND BSD-3-Clause", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("CC-BY-4.0", True),
        ("CC-BY-SA-4.0", False),
        ("MPL-2.0", False),
        ("OPUBL-1.0", False),
        ("NOASSERTION", False),
        ("unknown", False),
        ("MIT AND unknown", False),
        ("LicenseRef-Public-Domain", True),
        ("MIT AND", False),
        ("", False),
    ],
)
def test_what_is_permissive(expression: str, permissive: bool) -> None:
    assert allowed(expression, "permissive") is permissive


def test_permissive_ids_are_spdx() -> None:
    assert {i for i in PERMISSIVE if spdx_expression(i) != i} == set()


def test_metadata_order() -> None:
    bsd = "License :: OSI Approved :: BSD License"
    mit = "License :: OSI Approved :: MIT License"
    assert of_metadata("ISC", [mit], "GPL") == "ISC"
    assert of_metadata(None, [mit, "Topic :: Text"], "GPL") == "MIT"
    assert of_metadata(None, [bsd, mit], None) == "LicenseRef-BSD AND MIT"
    assert of_metadata(None, [bsd], "BSD 3-Clause") == "BSD-3-Clause"
    assert of_metadata(None, [bsd], None, [BSD3_TEXT]) == "BSD-3-Clause"
    assert of_metadata(None, [bsd], None, [MIT_TEXT]) == "LicenseRef-BSD"
    assert of_metadata(None, [], None, ["no licence", MIT_TEXT]) == "MIT"
    assert of_metadata(None, [], "ask the author") == "unknown"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_gives_a_parsable_licence(text: str) -> None:
    found = spdx(text)
    assert found in ("unknown", "NOASSERTION") or spdx_expression(found) == found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=12), max_size=8))
def test_duplicates_differ_in_form_only(lines: list[str]) -> None:
    text = "\n".join(lines)
    other = "\n\n" + "\r\n".join(line + " \t" for line in lines) + "\n"
    assert content_hash(text) == content_hash(other)
    assert content_hash(text) == content_hash(unicodedata.normalize("NFD", text))


def test_what_counts_as_the_same_text() -> None:
    assert content_hash("x = 1\n") == content_hash("x = 1\r\n\r\n")
    assert content_hash("x =  1\n") != content_hash("x = 1")  # blanks inside a line count
    assert content_hash(" x = 1") != content_hash("x = 1")  # and so does indentation


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://www.Example.org/a/b/?utm_source=x&id=3#top", "example.org/a/b?id=3"),
        ("http://example.org:80/a/b?id=3", "example.org/a/b?id=3"),
        ("example.org/a", "example.org/a"),
        ("", ""),
        ("http://[broken", ""),
    ],
)
def test_url_key(url: str, key: str) -> None:
    assert url_key(url) == key


@pytest.mark.parametrize(
    ("expression", "policy", "in_"),
    [
        ("CC-BY-SA-4.0", "permissive", False),
        ("CC-BY-SA-4.0", "open", True),
        ("GFDL-1.3-no-invariants-or-later", "open", True),
        ("CC-BY-SA-4.0 AND GPL-3.0-only", "open", True),
        ("CC-BY-NC-SA-4.0", "open", False),
        ("OPUBL-1.0", "open", False),
        ("NOASSERTION", "open", False),
        ("unknown", "open", False),
        ("NOASSERTION", "any", True),
    ],
)
def test_policies(expression: str, policy: str, in_: bool) -> None:
    assert allowed(expression, policy) is in_


entries = st.lists(
    st.tuples(st.sampled_from(["code", "docs"]), st.integers(0, 30), st.integers(1, 5000)),
    min_size=1,
    max_size=80,
).map(lambda rows: [(d, f"g{g}", f"id{i}", n) for i, (d, g, n) in enumerate(rows)])


@settings(max_examples=60, deadline=None)
@given(entries, st.sampled_from([0.0, 0.05, 0.3]), st.randoms())
def test_split_keeps_groups_whole(documents: list[tuple[str, str, str, int]], share: float, random) -> None:  # type: ignore[no-untyped-def]
    decided = split(documents, share)
    shuffled = documents[:]
    random.shuffle(shuffled)
    again = split(shuffled, share)
    assert (again.groups, again.ids, again.by_document) == (decided.groups, decided.ids, decided.by_document)
    sides: dict[str, set[bool]] = defaultdict(set)
    held: dict[str, int] = defaultdict(int)
    whole: dict[str, int] = defaultdict(int)
    members: dict[str, int] = defaultdict(int)
    for domain, group, identity, n_bytes in documents:
        out = decided.heldout(domain, group, identity)
        if domain not in decided.by_document:
            sides[group].add(out)
        whole[domain] += n_bytes
        held[domain] += n_bytes * out
        members[domain] += 1
    assert all(len(s) == 1 for s in sides.values())
    for domain in whole:
        if share == 0:
            assert held[domain] == 0
        elif members[domain] > 1:
            assert held[domain] >= share * whole[domain]


def test_split_is_near_its_share_where_groups_are_small() -> None:
    documents = [(d, f"g{i}", f"{d}{i}", 100 + i) for i in range(400) for d in ("code", "docs")]
    documents.append(("code", "giant", "giant", 30_000))
    decided = split(documents, 0.05)
    assert "giant" not in decided.groups and not decided.notes
    for domain in ("code", "docs"):
        whole = sum(d[3] for d in documents if d[0] == domain)
        held = sum(d[3] for d in documents if d[0] == domain and d[1] in decided.groups)
        assert 0.05 <= held / whole <= 0.075  # one choice of groups serves both domains


def test_single_groups_are_split_by_document_and_say_so() -> None:
    decided = split([("books", "file", f"b{i}", 10) for i in range(100)] + [("one", "g", "o", 5)], 0.1)
    assert decided.by_document == {"books", "one"} and len(decided.ids) == 10
    assert decided.notes == [
        "domain books: a single group, so it is split by document",
        "domain one: a single document, so nothing of it is held out",
    ]


def test_large_groups_are_said() -> None:
    decided = split([("d", "a", "1", 50), ("d", "b", "2", 60)], 0.05)
    assert decided.groups == {"a"} and "45.5% held out where 5.0% was asked" in decided.notes[0]
