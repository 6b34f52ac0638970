"""The report shows what is in the run folder, reports what was not measured, and never renders text as markup."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from tests.report.made_run import HOSTILE, go, read, recipe

from ikirere.errors import UserError
from ikirere.programme.identity import read_record
from ikirere.report.html import render, write_report
from ikirere.report.notebook import write_notebook
from ikirere.report.stage import ReportStage
from ikirere.report.tables import band, duration, number, percent, setting, size


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("report") / "made"
    assert go(run, recipe()) == 0
    return run


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "made")


def test_the_page_holds_what_was_measured(folder: Path) -> None:
    page = render(read(folder))
    assert "95.0%" in page and "INSIDE NOISE" in page
    assert "calculator({&#39;expression&#39;: &#39;2+2&#39;})" in page and "it is a sum" in page
    assert page.count("<svg") == 5  # time, mixture, loss, bits per byte, with and without the tool
    artifact = next(a for a in read(folder).stages["evaluate"].artifacts if a["path"] == "answers.jsonl")
    assert artifact["sha256"] in page


def test_text_of_the_run_is_never_markup(folder: Path) -> None:
    page = render(read(folder))
    assert HOSTILE not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_the_same_run_gives_the_same_bytes(folder: Path) -> None:
    for name in ("one.html", "two.html"):
        write_report(read(folder), folder / name)
    assert (folder / "one.html").read_bytes() == (folder / "two.html").read_bytes()


def test_the_notebook_is_valid_and_its_outputs_are_those_of_its_code(folder: Path) -> None:
    path = folder / "report" / "report.ipynb"
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


def test_the_notebook_begins_with_the_verdict(folder: Path) -> None:
    write_notebook(read(folder), folder / "report.ipynb")
    cells = nbformat.read(folder / "report.ipynb", as_version=4).cells
    assert cells[2].source == "## Verdict"
    shown = cells[3].outputs[0].data["text/html"]
    assert "DO NOT SHIP" in shown and "red team" in shown


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        read(tmp_path)


def test_the_report_keeps_the_recipe_and_no_secret(folder: Path) -> None:
    record = read_record(folder / "report")
    assert record is not None and record.parts["config"]["seed"] == 7
    assert recipe().tracker.key == "hush"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if b"hush" in path.read_bytes()]


def test_other_code_of_a_stage_makes_the_report_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = ReportStage().external(recipe(), tmp_path)
    assert ReportStage().external(recipe(), tmp_path) == before
    monkeypatch.setattr("ikirere.report.stage.code_hash", lambda module: "other")
    after = ReportStage().external(recipe(), tmp_path)
    assert [label for label in before if before[label] != after[label]] == ["code of the stages"]


def test_numbers_as_people_read_them() -> None:
    assert number(None) == "not measured" and number(1234567.0) == "1,234,567"
    assert number(0.12345) == "0.123" and number(0.00012) == "1.20e-04" and number(float("nan")) == "nan"
    assert band({"low": None, "high": None}) == "" and band({"low": 0.5, "high": 0.75}) == "0.500 to 0.750"
    assert percent({"value": 0.5, "low": 0.25, "high": 0.75}) == "50.0% (25 to 75)"
    assert size(2_500_000) == "2.50 MB" and duration(754) == "12:34" and duration(9.94) == "9.9 s"
    assert duration(7322) == "2:02:02" and duration(59.97) == "1:00"
    assert setting({"a": [1]}) == '{"a": [1]}' and len(setting("x" * 500)) == 160
