"""Bars and lines; trackers that never harm a run."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from ikirere.errors import UserError
from ikirere.programme.progress import Reporter, amount, clock
from ikirere.programme.tracker import Tracker, check
from ikirere.recipe import sections


def test_amounts_and_times_read_well() -> None:
    assert amount(12_345_678, "bytes") == "12.3 MB"
    assert amount(400, "steps") == "400 steps"
    assert amount(52_428_800, "tokens") == "52.4M tokens"
    assert amount(0.25, "documents") == "0.25 documents"
    assert [clock(5), clock(75), clock(3700)] == ["0:05", "1:15", "1:01:40"]


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_pipe_gets_one_line_in_ten_seconds() -> None:
    out, ticks = io.StringIO(), Ticks()
    reporter = Reporter(Console(file=out, width=200), ticks)
    with reporter.progress("pretrain", 100, "steps") as bar:
        for step in range(100):
            ticks.now += 0.5
            bar.advance(1, loss=4.0 - step / 100)
    lines = out.getvalue().splitlines()
    assert len(lines) == 6, "one at 10, 20, 30, 40 and 50 seconds, and the end"
    assert lines[0].startswith("pretrain: 20 of 100 steps")
    assert " left" in lines[0]
    assert "loss 3.81" in lines[0]
    assert lines[-1].startswith("pretrain: 100 of 100 steps  in 0:")


def test_a_short_step_on_a_pipe_is_silent() -> None:
    out = io.StringIO()
    reporter = Reporter(Console(file=out), Ticks())
    with reporter.progress("short", 5, "files") as bar:
        bar.advance(5)
    assert out.getvalue() == ""


def test_a_terminal_gets_bars_with_rate_and_time_left() -> None:
    out = io.StringIO()
    reporter = Reporter(Console(file=out, force_terminal=True, width=160))
    with (
        reporter.progress("outer", 2_000_000, "bytes") as outer,
        reporter.progress("inner", 10, "steps") as inner,
    ):
        outer.advance(1_000_000)
        for _ in range(10):
            inner.advance(1, loss=2.5)
        reporter.say("a line above the bars")
    shown = out.getvalue()
    assert "outer" in shown and "1.0 MB of 2.0 MB" in shown and "10 of 10 steps" in shown
    assert "loss 2.5" in shown and "a line above the bars" in shown
    with reporter.progress("after", 1, "files") as bar:
        bar.advance(1)
    assert "after" in out.getvalue()


def test_bars_end_when_the_step_fails() -> None:
    reporter = Reporter(Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(ValueError), reporter.progress("broken", 10, "steps"):
        raise ValueError
    with reporter.progress("next", 1, "steps") as bar:
        bar.advance(1)


def test_no_tracker_makes_no_files(tmp_path: Path) -> None:
    tracker = Tracker(sections.Tracker(kind="none"), tmp_path / "tracker", "run", {}, print)
    tracker.log("stage", {"loss": 1.0}, 1)
    tracker.close()
    assert not (tmp_path / "tracker").exists()


def test_a_broken_tracker_is_one_line_and_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    tracker = Tracker(sections.Tracker(kind="trackio"), tmp_path, "run", {}, said.append)

    def broken() -> None:
        raise OSError("the attic is full\nand more")

    monkeypatch.setattr(tracker, "_open", broken)
    for step in range(3):
        tracker.log("stage", {"loss": 1.0}, step)
    tracker.close()
    assert said == ["tracker trackio off: the attic is full"]


def test_wandb_without_package_or_key_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    config = sections.Tracker(kind="wandb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"tracker\.kind: 'wandb' is not installed; pip install 'ikirere\[wandb\]'"
    ):
        check(config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"tracker\.key: wandb needs a key"):
        check(config)
    check(sections.Tracker(kind="wandb", key="abc"))
    check(sections.Tracker(kind="trackio"))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder written by trackio in a process that may not open any connection, and what it printed."""
    folder = tmp_path_factory.mktemp("tracked")
    script = f"""
import socket
def refuse(*args, **options):
    raise AssertionError("a connection was opened")
socket.socket.connect = refuse
socket.create_connection = refuse
from pathlib import Path
from ikirere.programme.tracker import Tracker
from ikirere.recipe import sections
for start in (0, 5):
    tracker = Tracker(sections.Tracker(), Path({str(folder)!r}), "demo", {{"seed": 7}}, print)
    for step in range(start, start + 5):
        tracker.log("pretrain", {{"loss": 5.0 - step}}, step)
    tracker.close()
"""
    environment = {**os.environ, "TRACKIO_SPACE_ID": "someone/elsewhere", "HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    yield folder, done.stdout + done.stderr


def test_trackio_writes_below_the_run_folder_and_nowhere_else(tracked: tuple[Path, str]) -> None:
    folder, said = tracked
    assert "off" not in said and "Trackio" not in said, said
    databases = list(folder.glob("*.db"))
    assert len(databases) == 1
    with sqlite3.connect(databases[0]) as connection:
        rows = connection.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in rows] == list(range(10))
    assert json.loads(rows[3][1])["pretrain/loss"] == 2.0
