"""A whole programme killed at random points: the same command ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
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


def kill_and_finish(command: list[str], folder: Path, kills: int, longest: float, seed: int) -> None:
    """Start the command and kill it with SIGKILL after a random time, again and again; then let it end."""
    draw = random.Random(seed)
    done = 0
    while done < kills:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            process.wait(timeout=draw.uniform(0.1, longest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            done += 1
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error.decode()
        assert not leftovers_under_final_names(folder)
    for _ in range(2):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert ended.returncode == 0, ended.stderr


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
    settings = ("steps=60", "pause=0.02", "bytes=200000")
    command = [sys.executable, str(TOYS)]
    began = time.monotonic()
    subprocess.run([*command, str(whole), *settings], check=True, capture_output=True, timeout=120)
    longest = time.monotonic() - began
    kill_and_finish([*command, str(cut), *settings], cut, KILLS, longest, seed=1)
    assert outputs(cut) == outputs(whole)
    assert {stage["state"] for stage in status(cut)["stages"]} == {"done"}
    assert verify(cut).problems == []
    assert not status(cut)["set_aside"], "nothing is set aside by a kill"
    killed = [event for event in read_events(cut / "ledger.jsonl") if event["event"] == "stage-killed"]
    assert killed, f"no stage was hit by kills in the first {longest:.1f} s"
    assert set(TOY_STAGES) >= {event["stage"] for event in killed}


@pytest.mark.slow
def test_thirty_kills_of_a_real_programme(tmp_path: Path) -> None:
    """Corpus, tokenizer, shards, pretraining, SFT, DPO, evaluation and report, with real weights."""
    command = [sys.executable, "-m", "ikirere.cli", "run", str(TINY), "--run-folder"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    began = time.monotonic()
    done = subprocess.run([*command, str(whole)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    longest = max(8.0, (time.monotonic() - began) / 2)
    kill_and_finish([*command, str(cut)], cut, KILLS, longest, seed=2)
    assert outputs(cut) == outputs(whole)
    assert verify(cut).problems == []
    assert not status(cut)["set_aside"]
