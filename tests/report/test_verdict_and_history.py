"""The verdict on the first screen, and what became of a run: stops, rehearsals, changes on the way, stale results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.report.made_run import MODULES, go, read, recipe

from ikirere.programme import environment
from ikirere.report.html import cards, gate_rows, render, verdict_lists
from ikirere.report.sections import build_sections


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ikirere.programme.resources.give_back_memory", lambda: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "made"


def listed(folder: Path) -> dict[str, list[str]]:
    return {row["title"]: [str(reason) for reason in row["reasons"]] for row in verdict_lists(read(folder))}


def test_the_verdict_comes_first_and_names_what_blocks(folder: Path) -> None:
    go(folder, recipe(calculator=1.5))
    page = (folder / "report" / "report.html").read_text()
    assert (
        page.index('<p class="word">DO NOT SHIP</p>') < page.index('class="cards"') < page.index("Gates</h2>")
    )
    assert listed(folder) == {
        "Gates that block": ["safety: red team: NOT RUN"],
        "Stages not done": ["safety: not built"],
        "Warnings": ["evaluate: calculator: MISS"],
    }


def test_a_run_that_lacks_nothing_is_to_ship(folder: Path) -> None:
    whole = recipe(stop_beyond=30.0, stages=["data", "pretrain", "evaluate", "report"], planned={}, gates={})
    assert go(folder, whole, until=None) == 0
    page = (folder / "report" / "report.html").read_text()
    assert '<p class="word">SHIP</p>' in page and "All stages are done." in page
    assert "not built" not in page and "REHEARSAL" not in page


def test_a_stop_at_a_milestone_is_reported_with_its_band(folder: Path) -> None:
    assert go(folder, recipe(stop_beyond=10.0)) == 3
    run = read(folder)
    assert (run.stages["pretrain"].state, run.stages["pretrain"].step) == ("stopped", 4)
    assert "pretrain: early: MISS" in listed(folder)["Gates that block"]
    assert listed(folder)["Stages not done"] == [
        "pretrain: stopped",
        "evaluate: waiting",
        "safety: not built",
    ]
    section = next(s for s in build_sections(run) if s.title == "Pretraining")
    (table,) = section.tables
    assert table.title == "Milestones"
    assert table.rows == [("early", "4", "perplexity@early", "20", "<= 5", "10", "stop")]
    assert "stopped" in section.warning and "step 4" in section.warning
    assert len(section.figures) == 1, "the loss up to the stop"
    assert "DO NOT SHIP" in (folder / "report" / "report.html").read_text()


def test_between_target_and_bound_a_milestone_is_to_be_investigated(folder: Path) -> None:
    go(folder, recipe(stop_beyond=30.0))
    section = next(s for s in build_sections(read(folder)) if s.title == "Pretraining")
    assert section.tables[0].rows == [("early", "4", "perplexity@early", "20", "<= 5", "30", "investigate")]
    assert section.warning == ""


def test_a_rehearsal_has_no_verdict(folder: Path) -> None:
    assert go(folder, recipe(stop_beyond=10.0, calculator=0.99), until=None, rehearsal=True) == 0
    page = render(read(folder))
    assert '<p class="word">REHEARSAL</p>' in page and "A full run would still lack:" in page
    assert "SHIP" not in page
    assert listed(folder) == {
        "Gates not measured": ["safety: red team: NOT RUN"],
        "Stages not done": ["safety: not built"],
    }


def test_changes_on_the_way_are_shown_with_old_and_new_values(folder: Path) -> None:
    go(folder, recipe(steps=8))
    assert "stroke-dasharray" not in (folder / "report" / "report.html").read_text()
    go(folder, recipe(steps=12), go_on=True)
    programme, _, pretraining, *_ = build_sections(read(folder))
    changes = next(table for table in programme.tables if "--go-on" in table.title)
    assert changes.rows == [("pretrain", "8", "pretrain.steps", "8", "12")]
    loss = pretraining.figures[0]
    assert "stroke-dasharray" in loss.svg and "after step 8" in loss.caption
    page = (folder / "report" / "report.html").read_text()
    assert "Settings changed during training" in page and "stroke-dasharray" in page
    aside = next(table for table in programme.tables if table.title == "Set aside")
    (row,) = aside.rows
    assert re.fullmatch(r"pretrain\.step-8\.tokens-8k\.key-[0-9a-f]{8}", row[0])
    assert row[1:4] == ("pretrain", "8", "finished") and row[4].endswith("B")


def test_numbers_of_a_stale_stage_are_marked_and_not_current(folder: Path) -> None:
    go(folder, recipe())
    assert "12.35 M" in str(cards(read(folder)))
    (folder.parent / "source.txt").write_text("another text")
    go(folder, recipe(), until="data")
    run = read(folder)
    assert run.stages["pretrain"].state == "stale"
    assert "12.35 M" not in str(cards(run)) and "95.0%" not in str(cards(run))
    assert "pretrain: stale" in listed(folder)["Stages not done"]
    assert {row["stage"]: row["stale"] for row in gate_rows(run)} == {
        "pretrain": True, "evaluate": True, "safety": False,
    }  # fmt: skip
    section = next(s for s in build_sections(run) if s.title == "Pretraining")
    assert section.warning.startswith("Stale: made from other outputs of data.")
    page = render(run)
    assert (
        "Stale: made from other outputs of data." in page
        and page.count('<td>pretrain <span class="pill noise">stale</span></td>') == 1
    )
    section = next(s for s in build_sections(run) if s.title.startswith("Tool use"))
    assert section.warning.startswith("Stale: made from other outputs of pretrain.")
    asides = next(table for table in build_sections(run)[0].tables if table.title == "Set aside")
    assert [row[1] for row in asides.rows] == ["data"]


def test_results_of_other_code_or_another_environment_are_marked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(folder, recipe())
    assert not any(stage.marks for stage in read(folder).stages.values())
    run = read(folder, {**MODULES, "evaluate": "ikirere.errors"})
    assert {name: stage.marks for name, stage in run.stages.items() if stage.marks} == {
        "evaluate": ["made by other code"]
    }
    assert "</span> made by other code</p>" in render(run)
    today = environment.made_in()
    monkeypatch.setattr(environment, "made_in", lambda: {**today, "torch": "9.0"})
    page = render(read(folder))
    assert f"made in another environment (torch {today['torch']} -&gt; 9.0)" in page


def test_planned_settings_are_shown_as_planned(folder: Path) -> None:
    go(folder, recipe())
    table = next(t for t in build_sections(read(folder))[0].tables if t.title == "Planned, not built")
    assert table.rows == [("safety", "attacks", '["roleplay", "encoding"]')]
