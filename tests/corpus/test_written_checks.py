"""The checks of a build see what was written, whatever its steps reported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from build_helpers import corpus, documents, questions, text

from ikirere.corpus.build import pipeline, written_checks
from ikirere.corpus.build.pipeline import build
from ikirere.corpus.build.split_documents import DocumentSplit, split_documents
from ikirere.corpus.build.written_checks import CheckRow
from ikirere.corpus.parts import read_part, write_table
from ikirere.recipe.data import Data

ITEM = (
    "A farmer walks seventeen miles before noon and sells nine baskets of ripe plums to the miller "
    "who pays him with flour for how many weeks does the flour last"
)
Rewrite = Callable[[list[str]], list[str]]


def checks(
    folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch, rewrite: Rewrite | None = None
) -> dict[str, CheckRow]:
    """The checks of a build; with `rewrite` of one whose texts are changed after all steps."""

    def late(parts: Sequence[Path], share: float, out: Path, say: Callable[[str], None]) -> DocumentSplit:
        changed = []
        for path in parts:
            table = read_part(path)
            texts = pa.array(rewrite(table["text"].to_pylist()), pa.string())  # type: ignore[misc]
            changed.append(folder / path.name)
            index = table.schema.get_field_index("text")
            write_table(table.set_column(index, "text", texts), changed[-1])
        return split_documents(changed, share, out, say)

    if rewrite is not None:
        monkeypatch.setattr(pipeline, "split_documents", late)
    (folder / "out").mkdir()
    counts = build(Data.model_validate(data), folder, folder / "out")
    return {row["check"]: row for row in counts["checks"]}


def test_equal_texts_after_the_steps_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three documents get one text. Pairs within training and across the split count."""

    def equal(texts: list[str]) -> list[str]:
        return [texts[0]] * 3 + texts[3:]

    found = checks(tmp_path, corpus(tmp_path), monkeypatch, equal)
    texts = [row["text"] for s in ("train", "heldout") for row in documents(tmp_path / "out", s)]
    copied = next(one for one in texts if texts.count(one) == 3)
    train = sum(row["text"] == copied for row in documents(tmp_path / "out", "train"))
    assert found["near_duplicate_pairs_left"]["count"] == train * (train - 1) // 2 + train * (3 - train) > 0


def test_redaction_that_makes_texts_equal_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pii` runs after near-duplicates are dropped: pages that differ in their addresses alone."""

    def page(who: str) -> str:
        return " ".join(f"{word} {who}{i}@analytical.co.uk" for i, word in enumerate(text(77, 40).split()))

    pages = {"x.txt": page("ada"), "y.txt": page("grace")}
    data = corpus(tmp_path, pages) | {"heldout": 0.0}
    found = checks(tmp_path, data | {"pii": {"kinds": ["email"]}}, monkeypatch)
    row = found["near_duplicate_pairs_left"]
    assert row["count"] == 1
    assert row["documents"] == row["of_documents"] == 32 and row["bytes"] == row["of_bytes"] > 0


def test_a_leak_after_the_steps_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus(tmp_path, {"leak.txt": f"{text(50, 20)} {ITEM} {text(51, 20)}"})
    data |= {"evaluation_sets": [questions(tmp_path, ITEM)], "heldout": 0.0}

    def leaking(texts: list[str]) -> list[str]:
        assert not any(ITEM in one for one in texts)  # the step has dropped it
        return [f"{texts[0]} {ITEM}", *texts[1:]]

    found = checks(tmp_path, data, monkeypatch, leaking)
    assert found["contaminated_documents"]["count"] == 1
    assert found["contaminated_documents"]["documents"] == 30
    assert found["unchecked_evaluation_sets"]["count"] == 0


def test_a_clean_build_has_nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus(tmp_path, {"leak.txt": f"{text(50, 20)} {ITEM}", "copy.txt": text(3) + " more"})
    data["evaluation_sets"] = [questions(tmp_path, ITEM), "path:nowhere.jsonl"]
    found = checks(tmp_path, data, monkeypatch)
    assert {name: row["count"] for name, row in found.items()} == {
        "near_duplicate_pairs_left": 0,
        "contaminated_documents": 0,
        "unchecked_evaluation_sets": 1,
    }
    assert not any("leak" in row["path"] for row in documents(tmp_path / "out", "train"))


def test_of_much_text_a_sample_is_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written_checks, "EXAMINED_BYTES", 6000)
    data = corpus(tmp_path) | {"heldout": 0.0, "evaluation_sets": [questions(tmp_path, ITEM)]}
    found = checks(tmp_path, data, monkeypatch)
    near, leaks = found["near_duplicate_pairs_left"], found["contaminated_documents"]
    assert near["of_documents"] == leaks["of_documents"] == 30
    assert 3 <= near["documents"] == leaks["documents"] <= 25  # some 11 of 30
    assert 0.1 < near["bytes"] / near["of_bytes"] < 0.9 and near["bytes"] == leaks["bytes"]
