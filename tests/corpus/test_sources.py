"""Every kind of source, on real files in its own format."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ikirere.corpus.document import Document
from ikirere.corpus.licence import spdx_expression
from ikirere.corpus.readers import SourcePosition, fingerprint, open_source, reader, size
from ikirere.corpus.readers.docstrings import documentation
from ikirere.corpus.readers.python_environment import PythonEnvironmentSource, generated
from ikirere.corpus.readers.text import decode, interleave
from ikirere.errors import UserError
from ikirere.recipe.sections import Source

LONG = "Prose of some length, with words in it, that no filter takes for a name list. " * 4


def config(**fields: Any) -> Source:
    source: Source = TypeAdapter(Source).validate_python(fields)
    return source


def read(folder: Path, **fields: Any) -> tuple[list[Document], list[tuple[str, str]]]:
    skipped: list[tuple[str, str]] = []
    documents = list(open_source(config(**fields), folder, lambda *found: skipped.append(found)))
    return documents, skipped


# ---------------------------------------------------------------- the Python environment


@pytest.fixture(scope="module")
def environment() -> list[Document]:
    return read(Path(), kind="python-environment", max_bytes=1_500_000)[0]


def test_environment_is_real_and_broad(environment: list[Document]) -> None:
    assert {d.domain for d in environment} == {"code", "docs"}
    assert 1_500_000 <= sum(d.n_bytes for d in environment) < 3_000_000
    groups = {d.group for d in environment}
    stdlib = {g for g in groups if g.startswith("stdlib-")}
    assert len(stdlib) > 50 and len(groups - stdlib) > 30
    by_group = {g: sum(d.n_bytes for d in environment if d.group == g) for g in groups}
    assert max(by_group.values()) < 60_000  # none crowds out the others
    assert all(d.licence == "unknown" or spdx_expression(d.licence) for d in environment)
    assert {d.licence for d in environment if d.group.startswith("stdlib-")} == {"PSF-2.0"}
    assert {d.licence for d in environment if d.group == "pydantic"} <= {"MIT"}
    assert len({d.licence for d in environment}) > 5


def test_environment_leaves_itself_and_caches_out(environment: list[Document]) -> None:
    assert not any("ikirere" in d.group or d.path.startswith("ikirere") for d in environment)
    assert not any("__pycache__" in d.path or "site-packages" in d.path for d in environment)
    assert not any(d.path.endswith(("/RECORD", "LICENSE.txt", "top_level.txt")) for d in environment)


def test_environment_is_the_same_again(environment: list[Document]) -> None:
    source = config(kind="python-environment", max_bytes=1_500_000)
    again = list(islice(open_source(source, Path(), lambda path, reason: None), 60))
    assert again == environment[:60]
    assert fingerprint(source, Path()) == fingerprint(source, Path())
    assert size(source, Path()) == 1_500_000


def test_environment_slices_are_disjoint(environment: list[Document]) -> None:
    groups = {d.group for d in environment}
    readers = [
        PythonEnvironmentSource(config(kind="python-environment", slice=f"{i}/3"), Path()) for i in (1, 2, 3)
    ]  # type: ignore[arg-type]
    mine = [{g for g in groups if reader._mine(g)} for reader in readers]
    assert set.union(*mine) == groups and sum(map(len, mine)) == len(groups) and all(mine)


def test_environment_of_one_kind_and_domain() -> None:
    documents, _ = read(
        Path(), kind="python-environment", include=["docs"], domain="prose", max_bytes=60_000, slice="2/9"
    )
    assert {d.domain for d in documents} == {"prose"} and {d.lang for d in documents} == {"en"}


def test_docstrings_become_documents() -> None:
    source = f'''"""{LONG}"""
import os

class Box(dict):
    """A box."""
    def open(self, key, *, wide: bool = False) -> int:
        """Open it.

        Twice.
        """
        def inner(): "not part of the interface"
    async def close(self): """Close it."""

def bare(): return 1
'''
    assert documentation(source, "pack.box") == (
        f"# pack.box\n\n{LONG}\n\n## class Box(dict)\n\nA box.\n\n"
        "### Box.open(self, key, *, wide: bool=False)\n\nOpen it.\n\nTwice.\n\n### Box.close(self)\n\nClose it.\n"
    )
    assert documentation('"""Short."""\n', "m") is None
    assert documentation("x = 1\n" * 99, "m") is None
    assert documentation(f'"""{LONG}"""\nprint "old"\n', "m") is None
    assert documentation(Path(ast.__file__).read_text(), "ast").startswith("# ast\n")  # type: ignore[union-attr]


def test_generated_files_are_told_from_written_ones() -> None:
    assert not generated(Path(ast.__file__).read_text())
    assert generated("x = '" + "a" * 2000 + "'\n")
    assert generated("t = [\n" + "    0x01, 0x02, 0x03,\n" * 50 + "]\n")
    assert generated(("word " * 30 + "\n") * 50)


# ---------------------------------------------------------------- files


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    (root / "deep").mkdir(parents=True)
    (root / "a.txt").write_text("first\n")
    (root / "deep" / "b.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    (root / "c.txt").write_bytes(b"\xff\xfeh\x00i\x00")
    (root / "photo.png").write_bytes(b"\x89PNG\r\n\x00\x00")
    (root / "bad.txt").write_bytes(b"caf\xe9")
    (root / "empty.txt").write_text(" \n")
    (root / ".hidden").write_text("no")
    (root / "loop").symlink_to(root)
    rows = [{"text": "row one", "spdx": "MIT", "lang": "en", "who": "ann"}, {"text": "row two", "who": "bob"}]
    lines = [*map(json.dumps, rows), "{broken", "[1]", '{"text": "\\ud800"}', '{"text": null}', ""]
    (root / "rows.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table({"text": ["pq one", "pq two"], "path": ["x/1", None]}), root / "t.parquet")
    return root


def test_local_folder(corpus: Path) -> None:
    documents, skipped = read(
        corpus.parent, kind="local", name="n", path="corpus", domain="d", licence="CC0-1.0"
    )
    assert {(d.text, d.path, d.group, d.licence) for d in documents} == {
        ("first\n", "n/a.txt", "n/a.txt", "CC0-1.0"),
        ("# -*- coding: latin-1 -*-\nname = 'é'\n", "n/deep/b.py", "n/deep/b.py", "CC0-1.0"),
        ("hi", "n/c.txt", "n/c.txt", "CC0-1.0"),
        ("row one", "n/rows.jsonl:1", "n/rows.jsonl", "MIT"),
        ("row two", "n/rows.jsonl:2", "n/rows.jsonl", "CC0-1.0"),
        ("pq one", "x/1", "n/t.parquet", "CC0-1.0"),
        ("pq two", "n/t.parquet:2", "n/t.parquet", "CC0-1.0"),
    }
    assert sorted(skipped) == [
        ("n/bad.txt", "undecodable"),
        ("n/empty.txt", "empty"),
        ("n/loop", "link"),
        ("n/photo.png", "binary"),
        ("n/rows.jsonl:3", "bad-row"),
        ("n/rows.jsonl:4", "bad-row"),
        ("n/rows.jsonl:5", "undecodable"),
        ("n/rows.jsonl:6", "empty"),
    ]


def test_jsonl_and_parquet_kinds_read_only_theirs(corpus: Path) -> None:
    fields = {"name": "n", "path": str(corpus), "domain": "d"}
    documents, _ = read(corpus, kind="jsonl", group_field="who", **fields)
    assert [(d.text, d.group, d.lang) for d in documents] == [
        ("row one", "n/ann", "en"),
        ("row two", "n/bob", ""),
    ]
    assert [d.text for d in read(corpus, kind="parquet", **fields)[0]] == ["pq one", "pq two"]
    (corpus / "rows.jsonl").rename(corpus / "rows.any")
    fields["path"] = str(corpus / "rows.any")
    assert len(read(corpus, kind="jsonl", **fields)[0]) == 2


def test_pattern_and_max_bytes(corpus: Path) -> None:
    fields = {"kind": "local", "name": "n", "path": str(corpus), "domain": "d"}
    assert [d.path for d in read(corpus, pattern="deep/*.py", **fields)[0]] == ["n/deep/b.py"]
    few = read(corpus, max_bytes=8, **fields)[0]
    assert sum(d.n_bytes for d in few[:-1]) < 8 <= sum(d.n_bytes for d in few)


def test_fingerprint_follows_content(corpus: Path) -> None:
    source = config(kind="local", name="n", path=str(corpus), domain="d")
    before = fingerprint(source, corpus)
    assert fingerprint(source, corpus) == before
    (corpus / "a.txt").write_text("First\n")
    assert fingerprint(source, corpus) != before


def test_truncated_parquet_is_counted_and_the_rest_goes_on(corpus: Path) -> None:
    whole = (corpus / "t.parquet").read_bytes()
    (corpus / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    documents, skipped = read(corpus, kind="parquet", name="n", path=str(corpus), domain="d")
    assert len(documents) == 2 and skipped == [("n/loop", "link"), ("n/cut.parquet:1", "truncated")]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"path": "nowhere"}, r"data\.sources \(n\)\.path: .*nowhere does not exist"),
        ({"path": "${IKIRERE_DATA}/x"}, r"needs the environment variable IKIRERE_DATA, which is not set"),
        ({"path": "corpus", "pattern": "*.none"}, r"source 'n' \(local\) gave no document"),
        (
            {"path": "corpus/rows.jsonl", "text_field": "body"},
            r"rows\.jsonl:1: no field 'body' \(text_field of source",
        ),
    ],
)
def test_mistakes_are_named(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], words: str
) -> None:
    monkeypatch.delenv("IKIRERE_DATA", raising=False)
    with pytest.raises(UserError, match=words):
        read(corpus.parent, kind="local", name="n", domain="d", **fields)


def test_mirror_paths(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IKIRERE_DATA", str(corpus.parent))
    documents, _ = read(Path(), kind="local", name="n", path="${IKIRERE_DATA}/corpus/a.txt", domain="d")
    assert [d.text for d in documents] == ["first\n"]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_text_or_have_a_reason(raw: bytes, python: bool) -> None:
    text, reason = decode(raw, python)
    assert reason in (None, "binary", "undecodable") and (reason is None or text == "")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 30), max_size=10), max_size=12), st.integers(1, 5))
def test_interleave_gives_everything_and_deals_by_bytes(sizes: list[list[int]], width: int) -> None:
    def stream(i: int) -> Iterator[Document]:
        return (Document("x" * n, "s", f"g{i}", str(j), "d") for j, n in enumerate(sizes[i]))

    found = list(interleave([lambda i=i: stream(i) for i in range(len(sizes))], width))
    for i, expected in enumerate(sizes):
        assert [d.n_bytes for d in found if d.group == f"g{i}"] == expected


def test_interleave_cuts_the_large() -> None:
    def stream(name: str, n: int) -> Iterator[Document]:
        return (Document("x" * 10, "s", name, str(j), "d") for j in range(n))

    found = list(islice(interleave([lambda: stream("big", 1000), lambda: stream("small", 5)]), 20))
    assert sum(d.group == "small" for d in found) == 5


# ---------------------------------------------------------------- continuing


TASK = {
    "train": [{"input": [[1, 2]], "output": [[2], [1]]}],
    "test": [{"input": [[0, 3]], "output": [[3], [0]]}],
}
KINDS: dict[str, dict[str, Any]] = {
    "python-environment": {"slice": "3/40", "max_bytes": 60_000},
    "local": {"path": "corpus", "max_bytes": 40},
    "jsonl": {"path": "corpus"},
    "parquet": {"path": "corpus"},
    "hub": {"dataset": "hub", "text_field": "content", "max_bytes": 8},
    "hub, mirrored": {"dataset": "a/b", "mirror": "corpus/**/*.*"},
    "hub, by the environment": {"dataset": "a/b", "mirror": "python-environment", "max_bytes": 20_000},
    "arc": {"path": "tasks", "augment": 3, "max_bytes": 150},
    "puzzles": {"count": 40, "max_bytes": 12_000},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_on_where_it_was(
    kind: str, corpus: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any document on, by a number or a position, the documents, the limit and the ledger's rows are those of a
    reading that was never interrupted."""
    if kind == "hub":
        pytest.importorskip("datasets")
    if kind == "hub, by the environment":  # a part of it will do
        monkeypatch.setattr(
            PythonEnvironmentSource, "_mine", lambda self, name: name in ("pydantic", "stdlib-json")
        )
    if "mirror" in KINDS[kind]:
        monkeypatch.setenv("IKIRERE_DATA", str(tmp_path))
    (tmp_path / "tasks").mkdir()
    for name in "abc":
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(TASK))
    (tmp_path / "tasks" / "d.json").write_text("[]")
    common = {"name": "n"} | ({} if kind.startswith(("python", "puzzles")) else {"domain": "d"})
    source = config(kind=kind.split(",")[0], **common, **KINDS[kind])
    skips: list[tuple[str, str]] = []
    whole: list[Document] = []
    positions, reported = [SourcePosition()], [0]
    reading = open_source(source, tmp_path, lambda *found: skips.append(found))
    for document in reading:
        whole.append(document)
        positions.append(reading.position)
        reported.append(len(skips))
    assert len(whole) > 1 and positions[-1].n_bytes == sum(d.n_bytes for d in whole)
    # The environment takes a second to open.
    points = {len(whole) // 2} if "environment" in kind else {*range(12), len(whole) - 1, len(whole)}
    for k in points & {*range(len(whole) + 1)}:
        for start in (k, positions[k]):
            after: list[tuple[str, str]] = []
            again = open_source(source, tmp_path, lambda *found, a=after: a.append(found), start=start)
            assert list(again) == whole[k:] and again.position == positions[-1]
            full = source.max_bytes is not None and positions[-1].n_bytes >= source.max_bytes
            assert after == skips[reported[k] :] or (k == len(whole) and full)


def test_a_source_that_has_shrunk_is_named(corpus: Path) -> None:
    source = config(kind="jsonl", name="n", path=str(corpus), domain="d")
    for start in (3, SourcePosition(3, 21)):
        with pytest.raises(UserError, match=r"has 2 documents, but 3 were read before"):
            list(open_source(source, corpus, lambda *found: None, start=start))


def test_a_reader_by_itself_goes_on(corpus: Path) -> None:
    made = reader(config(kind="local", name="n", path=str(corpus), domain="d"), corpus)
    whole = list(made.documents(lambda *found: None, lambda line: None))
    for k in range(len(whole)):
        assert list(made.documents(lambda *found: None, lambda line: None, k)) == whole[k:]


# ---------------------------------------------------------------- the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("IKIRERE_DATA", raising=False)
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for split_name, texts in {"train": ["one", "two", ""], "validation": ["three"]}.items():
        table = pa.table({"content": texts, "license": [["mit"]] * len(texts), "repo": ["r1"] * len(texts)})
        pq.write_table(table, folder / f"{split_name}-00000-of-00001.parquet")
    return folder.parent


def test_hub_streams_a_dataset_in_its_format(hub: Path) -> None:
    pytest.importorskip("datasets")
    fields = {"kind": "hub", "name": "stack", "dataset": str(hub), "domain": "code", "text_field": "content"}
    documents, skipped = read(Path(), licence_field="license", group_field="repo", **fields)
    assert [(d.text, d.licence, d.group, d.source) for d in documents] == [
        ("one", "MIT", "stack/r1", "stack"),
        ("two", "MIT", "stack/r1", "stack"),
    ]
    assert skipped == [(f"{hub}:3", "empty")]
    assert [d.text for d in read(Path(), split="validation", **fields)[0]] == ["three"]
    assert len({d.group for d in read(Path(), **fields)[0]}) == 2


def test_hub_mirror_stands_in(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"text": ["mirrored"], "spdx": ["CC-BY-4.0"]}), hub / "m.parquet")
    monkeypatch.setenv("IKIRERE_DATA", str(hub))
    said: list[str] = []
    source = config(
        kind="hub", name="s", dataset="owner/name", domain="d", text_field="content", mirror="*.parquet"
    )
    documents = list(open_source(source, Path(), lambda *a: None, said.append))
    assert [(d.text, d.licence) for d in documents] == [("mirrored", "CC-BY-4.0")]
    assert said == ["source s: 1 files of the local mirror stand in for owner/name"]
    missing = config(kind="hub", name="s", dataset="owner/name", domain="d", mirror="none/*.parquet")
    with pytest.raises(UserError, match=r"mirror: no file below IKIRERE_DATA.* fits 'none"):
        list(open_source(missing, Path(), lambda *a: None))


def test_hub_without_network_names_the_ways_out(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*args: Any, **more: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    fields = {"kind": "hub", "name": "s", "dataset": "owner/name", "domain": "d", "mirror": "x/*.parquet"}
    with pytest.raises(
        UserError, match=r"owner/name cannot be streamed.*connect to the network.*IKIRERE_DATA"
    ):
        read(Path(), **fields)


def test_hub_without_its_package(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ikirere.corpus.readers.hub as module

    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install ikirere\[hub\]"):
        read(Path(), kind="hub", name="s", dataset="owner/name", domain="d")
    assert sys.modules["ikirere.corpus.readers.hub"] is module
