"""The learning benchmarks run their whole path in a few steps and write only their own section."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "model"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/model/NAME.py, with its neighbour `common` and not another folder's."""
    for part in dict.fromkeys(("common", name)):
        spec = importlib.util.spec_from_file_location(part, FOLDER / f"{part}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, part, module)
        spec.loader.exec_module(module)
    return module


def test_benchmark_section_replaces_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = script("common", monkeypatch)
    path = tmp_path / "RESULTS.md"
    path.write_text("# Head\n\nprose\n", encoding="utf-8")
    common.written(path, "a.py", "first")
    common.written(path, "b.py", "second")
    common.written(path, "a.py", "third\n| x |")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Head\n\nprose\n") and "first" not in text and text.count("a.py: begin") == 1
    assert text.index("third") < text.index("second") and "<!-- b.py: begin -->\nsecond\n<!--" in text


def test_benchmark_intervals_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    common = script("common", monkeypatch)
    mean, half = common.interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / math.sqrt(3))
    assert common.shown([1.5]) == "1.500" and "±" in common.shown([1.0, 2.0])
    clock = common.Clock(minutes=0.0)
    assert clock.another(3) and not clock.another(3)  # one seed always, then no time is left
    clock = common.Clock(minutes=60.0)
    assert [clock.another(2) for _ in range(3)] == [True, True, False]


def test_benchmark_text_holds_out_whole_files(monkeypatch: pytest.MonkeyPatch) -> None:
    common = script("common", monkeypatch)
    train_text, held_out = common.code_bytes()
    assert train_text.dtype == np.uint8 and 0 < 4 * len(held_out) < len(train_text)
    assert train_text[-1] == held_out[-1] == 0
    shared = set(train_text.tobytes().split(b"\0")) & set(held_out.tobytes().split(b"\0"))
    assert all(len(text) < 100 for text in shared)  # empty ones, and packages' heads that say nothing


def test_recall_rows_ask_only_for_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    recall = script("recall", monkeypatch)
    rng = np.random.default_rng(0)
    for make, pairs in ((recall.training_batch, 8), (recall.test_batch, 8), (recall.test_batch, 1)):
        batch = make(rng, 16, 64, pairs)
        asked = (batch.labels != -100).nonzero().tolist()
        assert asked and (make is recall.training_batch or len(asked) == 16 * pairs)
        for row, at in asked:
            before = batch.tokens[row, :at].tolist()
            key, value = batch.tokens[row, at].item(), batch.labels[row, at].item()
            said = before.index(key)
            assert key < recall.KEYS <= value and before[said + 1] == value
            assert at % 2 == 0 and batch.tokens[row, at + 1] == value
            assert make is recall.training_batch or at - said >= 32
    fused = recall.training_batch(rng, 16, 32, 4, fused=1.0)
    for row, at in (fused.labels != -100).nonzero().tolist():
        key, value = fused.tokens[row, at].item(), fused.labels[row, at].item()
        assert recall.FUSED + key * recall.VALUES + value - recall.KEYS in fused.tokens[row, :at].tolist()


SMALL = {
    "recall": "--seeds 2 --length 16 --pairs 2 --batch 2 --steps 2 --questions 4",
    "sinks": "--seeds 1 --length 8 --batch 2 --steps 1 --rows 2 --prompts 2",
    "ablations": "--seeds 2 --length 16 --batch 2 --steps 2 --rows 2",
    "kda_vs_full": "--seeds 2 --length 16 --batch 2 --steps 2 --rows 2 --contexts 32 64 --tokens 2 --rounds 1",
}


@pytest.mark.parametrize("name", SMALL)
def test_benchmark_writes_its_table(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script(name, monkeypatch)
    texts = np.random.default_rng(0).integers(1, 256, (2, 4096)).astype(np.uint8)
    if hasattr(module, "code_bytes"):
        monkeypatch.setattr(module, "code_bytes", lambda: tuple(texts))
    path = tmp_path / "RESULTS.md"
    path.write_text("# Head\n\n<!-- other.py: begin -->\nkept\n<!-- other.py: end -->\n", encoding="utf-8")
    more = {"measure": module.run} if name == "ablations" else {}  # in this process: a new one takes seconds
    module.main([*SMALL[name].split(), "--write", str(path)], **more)
    text = path.read_text(encoding="utf-8")
    assert "<!-- other.py: begin -->\nkept\n<!-- other.py: end -->" in text
    section = text.split(f"<!-- {module.NAME}: begin -->\n")[1].split(f"\n<!-- {module.NAME}: end -->")[0]
    assert (
        section in capsys.readouterr().out
        and f"{SMALL[name].split()[1]} seed(s)" in section
        and "nan" not in section
    )
    arms = getattr(module, "ARMS", None) or (module.FULL, module.HYBRID)
    for arm in arms:
        assert f"\n| {arm} | " in section
