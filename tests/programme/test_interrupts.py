"""Kills, Ctrl-C, a second process and a full disk, each in real processes on real files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.programme.toys import load_toy, toy_recipe

from ikirere.errors import Refused
from ikirere.programme import execute, lock
from ikirere.programme.ledger import read_events
from ikirere.programme.status import status

TOYS = Path(__file__).with_name("toys.py")


def toys(folder: Path, *settings: str) -> list[str]:
    return [sys.executable, str(TOYS), str(folder), *settings]


def call(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(toys(folder, *settings), capture_output=True, text=True, timeout=60)


def start(folder: Path, *settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        toys(folder, *settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def states(folder: Path) -> list[str]:
    return [stage["state"] for stage in status(folder)["stages"]]


def artifacts(folder: Path) -> dict[str, str]:
    """Hashes of what the stages made (times and logs are not made by stages)."""
    found = {}
    for stage in ("numbers", "square", "total"):
        for row in json.loads((folder / stage / "result.json").read_text())["artifacts"]:
            path = folder / stage / row["path"]
            found[f"{stage}/{row['path']}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_killed_in_the_middle_of_a_stage_it_ends_the_same(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    execute.run(toy_recipe(), tmp_path, whole, load_toy)
    assert call(cut, "kill_at=7").returncode == -signal.SIGKILL
    assert states(cut) == ["done", "interrupted", "waiting"]
    assert len((cut / "square" / "steps.jsonl").read_text().splitlines()) == 8
    again = call(cut, "kill_at=7")
    assert again.returncode == 0, again.stderr
    assert "square: continues" in again.stdout
    assert artifacts(cut) == artifacts(whole)
    assert json.loads((cut / "square" / "result.json").read_text())["attempts"] == 2


def test_a_torn_ledger_line_is_removed_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    execute.run(toy_recipe(), tmp_path, folder, load_toy)
    with (folder / "ledger.jsonl").open("ab") as handle:
        handle.write(b'{"event": "stage-sta')
    assert states(folder) == ["done"] * 3
    capsys.readouterr()
    execute.run(toy_recipe(), tmp_path, folder, load_toy)
    said = capsys.readouterr().out
    assert "torn last line" in said
    assert "total: unchanged, kept" in said
    assert read_events(folder / "ledger.jsonl")[-1]["event"] == "run-finished"


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ctrl_c_is_one_line_and_resumable(tmp_path: Path, number: int, code: int, word: str) -> None:
    folder = tmp_path / "run"
    process = start(folder, "pause=0.05", "steps=600")
    steps = folder / "square" / "steps.jsonl"
    wait_for(lambda: steps.exists() and steps.stat().st_size > 0)
    assert states(folder)[1] == "running"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors == f"{word}; give the same command again to continue\n"
    assert states(folder) == ["done", "interrupted", "waiting"]
    done = len(steps.read_text().splitlines())
    again = call(folder, "pause=0", "steps=600")
    assert again.returncode == 0
    assert "square: continues" in again.stdout
    assert 0 < done < 600


def test_a_second_process_is_refused_with_the_pid(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, "pause=0.05", "steps=600")
    try:
        wait_for(lambda: lock.holder_of(folder) == process.pid)
        second = call(folder)
        assert second.returncode == 2
        assert second.stderr == (
            f"error: {folder}: held by process {process.pid}; "
            f"wait for it or end it, then give the command again\n"
        )
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert lock.holder_of(folder) is None
    assert call(folder).returncode == 0


def test_a_lock_left_open_by_an_orphan_of_a_dead_holder_is_taken_over(tmp_path: Path) -> None:
    # The child inherits the locked file and outlives its parent, as a loader's worker may.
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom ikirere.programme.lock import RunLock\n"
        "held = RunLock(Path(sys.argv[1])).__enter__()\npid = os.fork()\n"
        "if pid == 0:\n    os.close(1); os.close(2)\n    time.sleep(60)\nprint(pid, flush=True)\nos._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=30
    )
    orphan = int(done.stdout)
    try:
        with lock.RunLock(tmp_path):
            assert lock.holder_of(tmp_path) == os.getpid()
            with pytest.raises(Refused, match=f"held by process {os.getpid()}"), lock.RunLock(tmp_path):
                pass
    finally:
        os.kill(orphan, signal.SIGKILL)
    assert lock.holder_of(tmp_path) is None


def test_the_lock_is_free_again_even_while_a_worker_lives(tmp_path: Path) -> None:
    with lock.RunLock(tmp_path):
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with lock.RunLock(tmp_path):
            assert lock.holder_of(tmp_path) == os.getpid()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_full_disk_is_one_line_and_resumable(small_disk: Path, tmp_path: Path) -> None:
    folder = small_disk / "run"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 500_000)
    full = call(folder, "bytes=600000")
    assert full.returncode == 1
    assert re.fullmatch(
        rf"error: square: disk full: cannot write {re.escape(str(folder / 'square'))}\S* \(\d+ bytes free\); "
        r"free some space and give the command again\n",
        full.stderr,
    ), full.stderr
    assert "Traceback" not in full.stdout + full.stderr
    assert not (folder / "square" / "model" / "weights.bin").exists()
    ballast.unlink()
    again = call(folder, "bytes=600000")
    assert again.returncode == 0, again.stderr
    assert "numbers: unchanged, kept" in again.stdout
    assert "square: continues" in again.stdout
    execute.run(toy_recipe(bytes=600_000), tmp_path, tmp_path / "elsewhere", load_toy)
    assert artifacts(folder) == artifacts(tmp_path / "elsewhere")


def test_a_disk_full_from_the_start_is_one_line(small_disk: Path) -> None:
    ballast = os.open(small_disk / "ballast", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(ballast, b"x" * 4096):
            pass
    os.close(ballast)
    full = call(small_disk / "run")
    assert full.returncode == 1
    assert full.stderr.startswith("error: disk full: cannot write ")
    assert full.stderr.count("\n") == 1
    (small_disk / "ballast").unlink()
    assert call(small_disk / "run").returncode == 0
