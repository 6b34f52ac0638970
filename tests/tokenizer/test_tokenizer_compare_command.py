"""The tokenizer's commands: documents of files and runs, training, reports, and comparisons."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ikirere.recipe.yamlio import dump_yaml, parse

sys.path.insert(0, str(Path(__file__).parent))
from compare_helpers import DOCUMENTS, TEXTS, two_sizes

from ikirere.errors import UserError
from ikirere.tokenizer import command
from ikirere.tokenizer.base import Tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_sizes(tmp_path_factory.mktemp("compare"))


def test_files_become_documents(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name, data in {
        "a.py": b"x = 1\r\n", "b/c.CPP": b"int x;", "b/d.md": "é".encode(), "e.json": b"{}",
        "f.bin": b"\0", "g.py": b"\xff", ".hidden/h.py": b"1", "b/i.odd": b"odd",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    said: list[str] = []
    found = command.read_files(tmp_path, said.append)
    assert [(d.id, d.domain, d.text) for d in found] == [
        ("a.py", "code", "x = 1\r\n"),
        ("b/c.CPP", "code", "int x;"),
        ("b/d.md", "text", "é"),
        ("e.json", "data", "{}"),
    ]
    assert said == [f"{tmp_path}: 1 files left out (unreadable or not UTF-8)"]
    assert [d.domain for d in command.read_files(f"{tmp_path}/**/*.odd")] == ["other"]
    assert [d.text for d in command.read_files(tmp_path / "b" / "i.odd")] == ["odd"]
    for nothing in (f"{tmp_path}/*.none", tmp_path / "none", f"{tmp_path}/**x/y"):
        with pytest.raises(UserError, match=r"no text file there|not a glob"):
            command.read_files(nothing)


def parquet(file: Path, texts: dict[str, list[str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"{d}{i}", "domain": d, "text": t} for d, group in texts.items() for i, t in enumerate(group)
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)


def test_a_run_folder_gives_its_held_out_documents(tmp_path: Path) -> None:
    file = tmp_path / "data" / "documents-heldout.parquet"
    parquet(file, {"code": ["a", "b"], "docs": ["c"]})
    for place in (tmp_path, tmp_path / "data", file):
        found = command.read_held_out(place)
        assert [(d.id, d.domain, d.text) for d in found] == [
            ("code0", "code", "a"),
            ("code1", "code", "b"),
            ("docs0", "docs", "c"),
        ]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tree = parse((ROOT / "recipes" / "demo.yaml").read_text(), "recipe").value
    tree["tokenizer"] = {"kind": "bpe", "vocab_size": 500, "train_bytes": 100_000}
    tree["model"]["vocab_size"] = 500
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_yaml(tree))
    return file


def test_train_from_a_run_and_from_files(tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    said: list[str] = []
    with pytest.raises(UserError, match=r"documents-train\.parquet: not there; give --text FILES"):
        command.train(recipe, out=tmp_path / "t", run_folder=run, say=said.append)
    parquet(run / "data" / "documents-train.parquet", {"code": TEXTS})
    made = command.train(recipe, out=tmp_path / "t", run_folder=run, say=said.append)
    assert made.vocab_size == 500 and Tokenizer.load(tmp_path / "t").sha256 == made.sha256
    assert any(line.startswith("code: 0.1 MB") for line in said)
    with pytest.raises(UserError, match=r"already holds a tokenizer\.json; give another --out"):
        command.train(recipe, out=tmp_path / "t", run_folder=run, say=said.append)
    files = tmp_path / "files"
    files.mkdir()
    for i, text in enumerate(TEXTS):
        (files / f"{i:02d}.py").write_text(text, encoding="utf-8")
    overrides = ["tokenizer.train_bytes=60000", "tokenizer.vocab_size=450"]
    other = command.train(recipe, overrides, tmp_path / "o", run, [str(files)], said.append)
    assert other.vocab_size == 450
    assert not list(tmp_path.rglob("*.part*"))


def test_report_says_what_it_gives(trained: Path, tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "documents-heldout.parquet", {"code": TEXTS[:5], "docs": ["A word.\n"]})
    said: list[str] = []
    values = command.report(trained / "large", tmp_path, say=said.append)
    assert set(values) == {"", "code", "docs"}
    size = sum(len(text.encode()) for text in TEXTS[:5])
    count = sum(len(ids) for ids in Tokenizer.load(trained / "large").encode_batch(TEXTS[:5]))
    assert values["code"]["bytes_per_token"] == size / count
    assert values[""]["forged_specials"] == values[""]["round_trip_failures"] == 0
    text = "\n".join(said)
    assert "large: 900 ids" in text and f"| large | {size / count:.3f} (" in text
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="no document with text"):
        command.report(trained / "large", tmp_path / "empty.py", say=said.append)


def test_the_comparison_from_the_command_line(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for document in DOCUMENTS[:10]:
        (folder / document.id).write_bytes(document.text.encode())
    said: list[str] = []
    made = command.compare(
        [str(trained / "large")],
        [f"base={trained / 'small'}"],
        folder,
        tmp_path / "out",
        "base",
        say=said.append,
    )
    assert [arm.name for arm in made.plan.arms] == ["large", "base"]
    assert [arm.candidate for arm in made.plan.arms] == [True, False]
    assert not made.missed
    assert "PASS: large: bytes_per_token/code >= base" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "plan.json",
        "report.json",
        "report.md",
        "rows.jsonl",
        "speed.jsonl",
    ]
    with pytest.raises(UserError, match="--baseline gpt: no arm has this name; arms are large, base"):
        command.compare(
            [str(trained / "large")], [f"base={trained}"], folder, tmp_path / "x", "gpt", say=said.append
        )
    one = command.compare(
        [str(trained / "large")], [], folder, tmp_path / "y", None, ["bytes_per_token > 9"], say=said.append
    )
    assert one.missed and "MISS: large: bytes_per_token > 9" in said
