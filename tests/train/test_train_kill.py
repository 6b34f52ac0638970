"""Real processes: killed at any point and started again they end with the same bits; two ranks train as one."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("train_helpers.py")
TIMES = {"seconds", "tokens_per_second", "wait_seconds"}
KILLED = -signal.SIGKILL


class Server:
    """Runs `train_helpers.py` in fresh processes that need not import torch again."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, folder: Path, *changes: str, ranks: int = 1) -> list[int]:
        """Exit codes."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        asked = [([str(folder), *changes], {**common, "RANK": str(rank)}) for rank in range(ranks)]
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        codes: list[int] = json.loads(self.process.stdout.readline())
        return codes


@pytest.fixture(scope="module")
def call() -> Iterator[Server]:
    server = Server()
    yield server
    assert server.process.stdin is not None and server.process.stdout is not None
    server.process.stdin.close()
    assert server.process.wait(30) == 0
    server.process.stdout.close()


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed, in a process of its own."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run([sys.executable, str(PROGRAM), str(folder), "steps=22"], check=True, timeout=600)
    return folder


def same(a: Path, b: Path) -> None:
    assert (a / "weights").read_text() == (b / "weights").read_text()
    assert rows(a) == rows(b)
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())


def test_killed_at_random_steps(call: Server, whole: Path, tmp_path: Path) -> None:
    """Also before the first checkpoint, and twice between the same two."""
    steps = [2, *sorted(random.Random(3).sample(range(4, 22), 5))]
    for step in steps:
        assert call(tmp_path, "steps=22", f"kill_step={step}") == [KILLED]
        assert not (tmp_path / "weights").exists()
    assert call(tmp_path, "steps=22") == [0]
    same(whole, tmp_path)


def test_killed_while_a_checkpoint_is_written(call: Server, whole: Path, tmp_path: Path) -> None:
    for point in ("seal:4", "swap:4", "prune:4", "swap:12", "prune:16", "prune:22"):
        assert call(tmp_path, "steps=22", f"kill_save={point}") == [KILLED]
    assert call(tmp_path, "steps=22") == [0]
    same(whole, tmp_path)


def test_a_torn_checkpoint_is_passed_over(call: Server, whole: Path, tmp_path: Path) -> None:
    assert call(tmp_path, "steps=22", "kill_step=14") == [KILLED]
    data = tmp_path / "step-000012" / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-100])
    assert call(tmp_path, "steps=22") == [0]
    (tmp_path / "step-000012.refused").rename(tmp_path.with_name("refused"))
    same(whole, tmp_path)


def test_killed_by_a_clock(call: Server, whole: Path, tmp_path: Path) -> None:
    """Wherever it happens to be, again and again until it is through."""
    codes = [[KILLED]]
    while codes[-1] == [KILLED] and len(codes) < 40:
        codes.append(call(tmp_path, "steps=22", f"kill_after={0.1 + 0.03 * len(codes)}"))
    assert codes.count([KILLED]) > 1
    assert call(tmp_path, "steps=22") == [0]
    same(whole, tmp_path)


def test_killed_after_the_settings_were_changed(call: Server, tmp_path: Path) -> None:
    """Also before the first checkpoint with the new ones, and within one."""
    changed = ("steps=24", "key=b", "accepted=a", "lr=0.001")
    for folder in (tmp_path / "whole", tmp_path / "cut"):
        assert call(folder, "steps=14") == [0]
    assert call(tmp_path / "whole", *changed) == [0]
    for point in ("kill_step=15", "kill_save=swap:16", "kill_step=19", "kill_save=prune:20"):
        assert call(tmp_path / "cut", *changed, point) == [KILLED]
    assert call(tmp_path / "cut", *changed) == [0]
    same(tmp_path / "whole", tmp_path / "cut")
    assert [row["step"] for row in rows(tmp_path / "cut") if "go_on" in row] == [14]


# ---------------------------------------------------------------- several ranks


@pytest.fixture(scope="module")
def alone(call: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert call(folder, "steps=7", "micro=2") == [0]
    return folder


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_ranks_train_as_one(call: Server, alone: Path, tmp_path: Path, mode: str) -> None:
    """Losses, over steps that depend on the gradients before; also across a kill."""
    changes = ("steps=7", "micro=2", f"mode={mode}")
    assert call(tmp_path, *changes, "kill_step=5", ranks=2) == [KILLED, KILLED]
    assert call(tmp_path, *changes, ranks=2) == [0, 0]
    assert len(rows(alone)) == len(rows(tmp_path)) == 3
    for one, two in zip(rows(alone), rows(tmp_path), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        assert (one["tokens"], one["lr"]) == (two["tokens"], two["lr"])


def test_several_processes_need_a_mode(call: Server, tmp_path: Path) -> None:
    assert call(tmp_path, ranks=2) == [1, 1]
