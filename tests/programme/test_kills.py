"""A whole programme killed at random points: the same command ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.programme.toys import TOYS as TOY_STAGES

from ikirere.programme.ledger import read_events
from ikirere.programme.status import status
from ikirere.programme.verify import verify

TOYS = Path(__file__).with_name("toys.py")
TINY = Path(__file__).with_name("tiny.yaml")
KILLS = 30
TIMED = ("log.jsonl", "training.jsonl", "stage.log", "report.html", "report.ipynb", "questions.jsonl")
"""Files that hold times or rates, which no two runs share."""


def kill_and_finish(command: list[str], folder: Path, kills: int, longest: float, seed: int) -> int:
    """Start the command and kill it with SIGKILL a random time after its first line, at most `longest` seconds, again and
    again; then let it end. Returns how many were killed before they ended by themselves."""
    draw = random.Random(seed)
    hit = 0
    for _ in range(kills):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        assert process.stdout is not None
        process.stdout.readline()
        drained = threading.Thread(target=process.stdout.read)
        drained.start()
        try:
            process.wait(timeout=draw.uniform(0.0, longest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            hit += 1
        assert process.stderr is not None
        error = process.stderr.read()
        assert process.wait() in (0, -signal.SIGKILL), error.decode()
        drained.join()
        assert not leftovers_under_final_names(folder)
    for _ in range(2):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert ended.returncode == 0, ended.stderr
    return hit


def leftovers_under_final_names(folder: Path) -> list[str]:
    """JSON files of the run's own that cannot be read: there must be none at any moment."""
    broken = []
    for path in [*folder.glob("*/identity.json"), *folder.glob("*/result.json"), *folder.glob("*.json")]:
        try:
            json.loads(path.read_text())
        except ValueError:
            broken.append(str(path))
    return broken


def outputs(folder: Path) -> dict[str, str]:
    """Hashes of all artifacts that hold no times."""
    found = {}
    for result in sorted(folder.glob("*/result.json")):
        for row in json.loads(result.read_text())["artifacts"]:
            if Path(row["path"]).name not in TIMED:
                found[f"{result.parent.name}/{row['path']}"] = row["sha256"]
    return found


def test_thirty_kills_of_a_small_programme(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = ("steps=400", "pause=0.01", "bytes=200000")
    command = [sys.executable, str(TOYS)]
    subprocess.run([*command, str(whole), *settings], check=True, capture_output=True, timeout=120)
    # Thirty kills take a little less than the four seconds that the stages need.
    assert kill_and_finish([*command, str(cut), *settings], cut, KILLS, longest=0.25, seed=1) == KILLS
    assert outputs(cut) == outputs(whole)
    assert {stage["state"] for stage in status(cut)["stages"]} == {"done"}
    assert verify(cut).problems == []
    assert not status(cut)["set_aside"], "nothing is set aside by a kill"
    killed = [event for event in read_events(cut / "ledger.jsonl") if event["event"] == "stage-killed"]
    assert {event["stage"] for event in killed} & set(TOY_STAGES)


@pytest.mark.slow
def test_thirty_kills_of_a_real_programme(tmp_path: Path) -> None:
    """Corpus, tokenizer, shards, pretraining, SFT, DPO, evaluation and report, with real weights."""
    command = [sys.executable, "-m", "ikirere.cli", "run", str(TINY), "--run-folder"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    began = time.monotonic()
    done = subprocess.run([*command, str(whole)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    longest = (time.monotonic() - began) / 8
    hit = kill_and_finish([*command, str(cut)], cut, KILLS, longest, seed=2)
    assert hit > KILLS / 2
    assert outputs(cut) == outputs(whole)
    assert verify(cut).problems == []
    assert not status(cut)["set_aside"]
