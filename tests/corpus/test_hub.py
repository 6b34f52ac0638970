"""The hub: continuing a stream, mirrors instead of it, and its ways to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hub_helpers import ARC, PAIR, ROWS, as_json_gz, as_parquet, read, set_apart

from ikirere.corpus.readers import SourcePosition, fingerprint, open_source, size
from ikirere.corpus.readers.hub import HubSource
from ikirere.corpus.readers.python_environment import PythonEnvironmentSource
from ikirere.errors import UserError
from ikirere.recipe.data import Hub

pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_apart(tmp_path, monkeypatch)


# ---------------------------------------------------------------- continuing a stream


def texts(rows: list[str]) -> list[dict[str, Any]]:
    return [{"text": t, "spdx": "MIT"} for t in rows]


@pytest.mark.parametrize("make", [as_parquet, as_json_gz])
def test_hub_goes_on_at_any_row(tmp_path: Path, make: Any) -> None:
    copy = make(tmp_path / "copy", texts(["one", "", "two", "three", " ", "four"]))
    config = Hub(kind="hub", name="n", domain="d", dataset=copy, max_bytes=12)
    skips: list[tuple[str, str]] = []
    whole, positions, reported = [], [SourcePosition()], [0]
    reading = open_source(config, tmp_path, lambda *s: skips.append(s))
    for document in reading:
        whole.append(document)
        positions.append(reading.position)
        reported.append(len(skips))
    assert [d.text for d in whole] == ["one", "two", "three", "four"]
    assert positions[2] == SourcePosition(2, 6, 3)
    for k in range(len(whole) + 1):
        for start in (k, positions[k]):
            after: list[tuple[str, str]] = []
            assert (
                list(open_source(config, tmp_path, lambda *s, a=after: a.append(s), start=start)) == whole[k:]
            )
            assert after == (skips[reported[k] :] if k < len(whole) else [])


def test_hub_skips_rows_without_reading_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import IterableDataset

    past: list[int] = []
    skip = IterableDataset.skip
    monkeypatch.setattr(IterableDataset, "skip", lambda self, n: past.append(n) or skip(self, n))
    copy = as_parquet(tmp_path / "copy", texts(list("abcdef")))
    assert [d.text for d in read(tmp_path, dataset=copy, start=SourcePosition(4, 4, 4))[0]] == ["e", "f"]
    assert past == [4]
    assert [d.text for d in read(tmp_path, dataset=copy, start=4)[0]] == [
        "e",
        "f",
    ]  # a number alone is read past
    assert past == [4]


def test_a_break_names_its_row(tmp_path: Path) -> None:
    copy = Path(as_parquet(tmp_path / "copy", texts([f"text {i}" for i in range(50)])))
    second = copy / "data" / "train-00001-of-00002.parquet"
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot be streamed from the hub at row \d+"):
        read(tmp_path, dataset=str(copy))


# ---------------------------------------------------------------- mirrors


def test_a_mirror_in_the_datasets_own_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IKIRERE_DATA", str(tmp_path))
    rows = [{"question": f"q{i}", "answer": f"a{i} #### {i}"} for i in range(3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    documents, _ = read(Path(), preset="gsm8k-train", mirror="train.jsonl")
    assert [d.text for d in documents] == [f"Question: q{i}\nAnswer: a{i} #### {i}" for i in range(3)]
    assert {d.licence for d in documents} == {"MIT"} and len({d.group for d in documents}) == 3
    as_json_gz(tmp_path / "cp", [ROWS["codeparrot-clean"][0]])
    (code,) = read(Path(), preset="codeparrot-clean", mirror="cp/*.json.gz")[0]
    assert (code.text, code.licence, code.group) == ("print('hi')\n", "Apache-2.0", "n/ann/tool")
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"train": [PAIR], "test": [PAIR]}))
    assert [d.text for d in read(Path(), preset="arc-agi-1", mirror="?.json")[0]] == [f"{ARC}\n{ARC}"] * 2


def test_a_mirror_of_texts_for_a_dataset_of_other_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IKIRERE_DATA", str(tmp_path))
    table = pa.table(
        {"text": ["a", "b"], "spdx": ["MIT", None], "path": ["x/1", "x/2"], "url": ["https://a", None]}
    )
    pq.write_table(table, tmp_path / "m.parquet")
    documents, _ = read(Path(), preset="the-stack-dedup", mirror="*.parquet")
    assert [(d.text, d.licence, d.path, d.url, d.group) for d in documents] == [
        ("a", "MIT", "x/1", "https://a", "n/m.parquet"),
        ("b", "unknown", "x/2", "", "n/m.parquet"),
    ]
    pq.write_table(table.drop(["text"]), tmp_path / "m.parquet")
    with pytest.raises(UserError, match=r"n/m\.parquet: no field 'text'"):
        read(Path(), preset="the-stack-dedup", mirror="*.parquet")


def test_the_python_environment_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {
        "kind": "hub",
        "name": "cp",
        "domain": "code",
        "preset": "codeparrot-clean",
        "max_bytes": 40_000,
    }
    config = Hub(mirror="python-environment", **fields)
    # A part of it will do.
    monkeypatch.setattr(
        PythonEnvironmentSource, "_mine", lambda self, name: name in ("pydantic", "stdlib-json")
    )
    monkeypatch.setenv("IKIRERE_DATA", str(tmp_path))
    said: list[str] = []
    documents = list(open_source(config, Path(), lambda *s: None, said.append))
    assert said == ["source cp: code of the Python environment stands in for codeparrot/codeparrot-clean"]
    assert {(d.domain, d.source, d.lang) for d in documents} == {("code", "cp", "python")}
    assert sum(d.n_bytes for d in documents) >= 40_000 and size(config, Path()) == 40_000
    assert all(d.path.endswith(".py") for d in documents)
    there = fingerprint(config, Path())
    monkeypatch.delenv("IKIRERE_DATA")
    assert fingerprint(config, Path()) != there  # the hub's own rows are other text
    assert HubSource(config, Path()).environment() is None


# ---------------------------------------------------------------- ways to fail


OFFLINE = """
import sys
from pathlib import Path
from ikirere.corpus.readers import fingerprint, open_source
from ikirere.errors import UserError
from ikirere.recipe.data import Hub
print(fingerprint(Hub(kind="hub", name="s", domain="d", preset="github-issues"), Path()))
for fields in ({"preset": "codeparrot-clean", "mirror": "python-environment"}, {"dataset": "owner/none", "mirror": "x/*"}):
    try:
        list(open_source(Hub(kind="hub", name="s", domain="d", **fields), Path(), lambda *s: None))
    except UserError as error:
        print(error)
"""


def test_without_network_and_mirror(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "IKIRERE_DATA"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    same, first, second = done.stdout.splitlines()
    assert same == fingerprint(Hub(kind="hub", name="s", domain="d", preset="github-issues"), Path())
    pinned = Hub(kind="hub", name="s", domain="d", preset="github-issues", revision="abc")
    assert fingerprint(pinned, Path()) != same
    assert first.startswith(
        "data.sources (s): dataset codeparrot/codeparrot-clean cannot be streamed from the hub ("
    )
    assert second.startswith("data.sources (s): dataset owner/none cannot be streamed from the hub (")
    for line in (first, second):
        assert line.endswith("set IKIRERE_DATA to a local mirror and give the source's `mirror` pattern")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "gated",
            r"bigcode/the-stack-dedup cannot be streamed .*is a gated dataset.*accept its terms on its page and log in",
        ),
        (
            "missing",
            r"doesn't exist on the Hub.*mend `dataset`, `config` or `split` \(or log in, where it is private",
        ),
        ("script", r"no longer supported.*name a copy of it in Parquet"),
        ("network", r"connect to the network .*or set IKIRERE_DATA to a local mirror"),
    ],
)
def test_the_hubs_errors_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, words: str
) -> None:
    import datasets

    name = "bigcode/the-stack-dedup"
    raised = {
        "gated": datasets.exceptions.DatasetNotFoundError(
            f"Dataset '{name}' is a gated dataset on the Hub. You must be authenticated to access it."
        ),
        "missing": datasets.exceptions.DatasetNotFoundError(
            f"Dataset '{name}' doesn't exist on the Hub or cannot be accessed."
        ),
        "script": RuntimeError("Dataset scripts are no longer supported, but found pg19.py"),
        "network": ConnectionError("Couldn't reach the Hub"),
    }[error]

    def load(*args: Any, **more: Any) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=words):
        read(tmp_path, preset="the-stack-dedup")


def test_a_split_or_configuration_that_is_not_there(tmp_path: Path) -> None:
    copy = as_parquet(tmp_path / "copy", texts(["a"]))
    for fields in ({"split": "trian"}, {"config": "nothing"}):
        with pytest.raises(UserError, match="mend `dataset`, `config` or `split`"):
            read(tmp_path, dataset=copy, **fields)
