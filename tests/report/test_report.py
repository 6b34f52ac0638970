"""The report shows what is in the run folder, says what was not measured, and never runs what text spells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ikirere.errors import UserError
from ikirere.programme.metrics import measure
from ikirere.report.collect import read_run
from ikirere.report.html import render, write_report
from ikirere.report.notebook import write_notebook
from ikirere.report.tables import band, duration, number, percent, size

HOSTILE = "<script>alert(1)</script>"


def _stage(folder: Path, metrics: list[Any], gates: list[dict[str, Any]]) -> None:
    content = {
        "metrics": [metric.to_json() for metric in metrics],
        "gates": gates,
        "artifacts": [{"path": "answers.jsonl", "sha256": "ab" * 32, "bytes": 1234}],
        "seconds": 65.4,
        "peak_rss_bytes": 512_000_000,
        "rehearsal": False,
    }
    (folder / "result.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "demo"
    recipe = {
        "name": "demo", "description": f"A {HOSTILE} run", "seed": 7, "stages": ["pretrain", "evaluate", "safety", "report"],
        "tokenizer": {"kind": "bpe", "vocab_size": 512},
        "gates": {"safety": [{"name": "red team", "metric": "unsafe", "op": "==", "target": 0.0, "on_miss": "stop"}]},
    }  # fmt: skip
    pretrain, evaluate = run / "pretrain", run / "evaluate"
    for path in (pretrain, evaluate):
        path.mkdir(parents=True)
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    (run / "environment.json").write_text(json.dumps({"cpu": "a processor", "packages": {"numpy": "2.0"}}))
    rows = [{"step": s, "loss": 5.0 / s, "lr": 0.01, "tokens": 1000 * s} for s in range(1, 9)]
    (pretrain / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = [{"domain": "code", "bits": 16.0 + i, "bytes": 8} for i in range(5)]
    (pretrain / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    bits = measure(pretrain, "bits_per_byte/code", "ratio", "heldout.jsonl", "bits", "bytes")
    _stage(pretrain, [bits], [])
    answers = [{"right": i > 0, "bare": 0} for i in range(20)]
    (evaluate / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    right = measure(evaluate, "answer/calculator", "proportion", "answers.jsonl", "right")
    bare = measure(evaluate, "answer_without_tool/calculator", "proportion", "answers.jsonl", "bare")
    gate = {
        "name": "calculator",
        "metric": "answer/calculator",
        "op": ">=",
        "target": 0.9,
        "value": right.value,
    }
    _stage(
        evaluate, [right, bare], [{**gate, "low": right.low, "high": right.high, "verdict": "INSIDE NOISE"}]
    )
    call = {"function": {"name": "calculator", "arguments": {"expression": "2+2"}}}
    messages = [
        {"role": "user", "content": HOSTILE},
        {"role": "assistant", "content": "", "reasoning_content": "it is a sum", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "4."},
    ]
    (evaluate / "samples.json").write_text(json.dumps([{"kind": "calculator", "messages": messages}]))
    return run


def test_the_page_holds_what_was_measured(folder: Path) -> None:
    page = render(read_run(folder, skip=("report",)))
    assert (
        "95.0%" in page
        and "INSIDE NOISE" in page
        and "calculator({&#39;expression&#39;: &#39;2+2&#39;})" in page
    )
    assert page.count("<svg") == 4  # loss, bits per byte, time, with and without the tool
    assert "it is a sum" in page and "ab" * 32 in page


def test_a_stage_that_did_not_run_is_not_run(folder: Path) -> None:
    run = read_run(folder, skip=("report",))
    assert run.stages["safety"].gates[0]["verdict"] == "NOT RUN"
    page = render(run)
    assert "NOT RUN" in page and "not measured" in page


def test_text_of_the_run_is_never_markup(folder: Path) -> None:
    page = render(read_run(folder, skip=("report",)))
    assert HOSTILE not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_the_same_run_gives_the_same_bytes(folder: Path) -> None:
    for name in ("one.html", "two.html"):
        write_report(read_run(folder, skip=("report",)), folder / name)
    assert (folder / "one.html").read_bytes() == (folder / "two.html").read_bytes()


def test_the_notebook_is_valid_and_its_outputs_are_those_of_its_code(folder: Path) -> None:
    (folder / "report").mkdir()
    path = folder / "report" / "report.ipynb"
    write_notebook(read_run(folder, skip=("report",)), path)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    shown: list[tuple[str, str]] = []
    display = {
        "HTML": lambda text: ("text/html", text),
        "SVG": lambda text: ("image/svg+xml", text),
        "display": shown.append,
    }
    space: dict[str, Any] = dict(display)
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        lines = [line for line in cell.source.splitlines() if not line.startswith("from IPython")]
        source = "\n".join(lines).replace("Path('..')", f"Path({str(folder)!r})")
        shown.clear()
        value = None
        if source.startswith("HTML("):
            value = eval(source, space)
        else:
            exec(source, space)
        expected = [(kind, text) for output in cell.outputs for kind, text in output.data.items()]
        assert ([value] if value else shown) == expected


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe\.yaml"):
        read_run(tmp_path)


def test_numbers_as_people_read_them() -> None:
    assert number(None) == "not measured" and number(1234567.0) == "1,234,567"
    assert number(0.12345) == "0.123" and number(0.00012) == "1.20e-04" and number(float("nan")) == "nan"
    assert band({"low": None, "high": None}) == "" and band({"low": 0.5, "high": 0.75}) == "0.500 to 0.750"
    assert percent({"value": 0.5, "low": 0.25, "high": 0.75}) == "50.0% (25 to 75)"
    assert size(2_500_000) == "2.50 MB" and duration(754) == "12:34" and duration(9.94) == "9.9 s"
