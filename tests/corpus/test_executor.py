"""The same build natively and on Ray, and after a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ikirere.corpus.build.pipeline import build
from ikirere.corpus.executor import Engine
from ikirere.errors import UserError
from ikirere.recipe.data import Data

SCRIPT = """
import json, sys, time
from pathlib import Path
from ikirere.corpus.build import ingest as reading
from ikirere.corpus.build.pipeline import build
from ikirere.recipe.data import Data
reading.PART_BYTES = 6000
keys, folder, pause = json.loads(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def say(line):
    print(line, flush=True)
    time.sleep(pause)
print(build(Data.model_validate(keys), folder.parent, folder, 5, {"main": {"code": 1, "docs": 1}}, say=say)["sha256"])
"""


def material(root: Path) -> dict[str, Any]:
    """A few hundred documents with copies, near-copies and bad licences."""
    rows = []
    for i in range(240):
        words = [f"w{(i * 31 + j * j) % 977}" for j in range(40)]
        if i % 20 == 7:
            words = [f"w{((i - 1) * 31 + j * j) % 977}" for j in range(40)]
            words[20] = "other"
        rows.append({"text": " ".join(words), "spdx": "GPL-3.0-only" if i % 33 == 5 else "MIT"})
        if i % 25 == 3:
            rows.append(rows[-1] | {"text": rows[-1]["text"] + "\n\n"})
    (root / "code.jsonl").write_text("\n".join(json.dumps(r) for r in rows[::2]))
    (root / "docs.jsonl").write_text("\n".join(json.dumps(r) for r in rows[1::2]) + "\n{torn")
    sources = [{"kind": "jsonl", "name": d, "path": f"{d}.jsonl", "domain": d} for d in ("code", "docs")]
    return {"sources": sources, "heldout": 0.1}


def run(keys: dict[str, Any], folder: Path, pause: float = 0.0) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(keys), str(folder), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err[-2000:]
    return out.splitlines()[-1]


def test_native_and_ray_give_equal_hashes(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    keys = material(tmp_path)
    native = finished(run(keys | {"engine": "native"}, tmp_path / "native"))
    ray = finished(run(keys | {"engine": "ray", "workers": 2}, tmp_path / "ray"))
    assert native == ray and len(native) == 64
    for name in (
        "documents-train.parquet",
        "documents-heldout.parquet",
        "seal.json",
        "manifests/main/v0.1.json",
    ):
        assert (tmp_path / "native" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()


def test_a_killed_build_ends_with_the_same_bytes(tmp_path: Path) -> None:
    keys = material(tmp_path)
    expected = finished(run(keys, tmp_path / "whole"))
    for line in range(1, 8, 2):
        process = run(keys, tmp_path / "killed", pause=0.2)
        assert process.stdout is not None
        for _ in range(line):
            if not process.stdout.readline():
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert finished(run(keys, tmp_path / "killed")) == expected
    assert (tmp_path / "killed/counts.json").read_bytes() == (tmp_path / "whole/counts.json").read_bytes()


def test_a_second_engine_in_one_process_is_refused() -> None:
    Engine("native")
    with pytest.raises(UserError, match=r"data\.engine"):
        Engine("ray")


def test_order_of_results_and_errors_of_workers(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(7)]
    assert [row["name"] for row in Engine("native", 2).each(slow_first, paths)] == [str(i) for i in range(7)]
    with pytest.raises(UserError, match="of this one"):
        Engine("native", 2).each(refuse, paths)
    assert Engine("native").each(slow_first, []) == []


def slow_first(path: str) -> dict[str, Any]:
    time.sleep(0.2 if path.endswith("0") else 0.0)
    return {"name": Path(path).name}


def refuse(path: str) -> dict[str, Any]:
    raise UserError("tired of this one")


def test_sources_are_not_read_again(tmp_path: Path) -> None:
    keys, out = Data.model_validate(material(tmp_path) | {"near_duplicates": None}), tmp_path / "out"
    out.mkdir()
    build(Data.model_validate(keys.model_dump() | {"heldout": 0.4}), tmp_path, out)
    said: list[str] = []
    again = build(keys, tmp_path, out, say=said.append)
    (tmp_path / "fresh").mkdir()
    assert again == build(keys, tmp_path, tmp_path / "fresh")
    assert [line for line in said if "read before" in line] == [
        "source code: 125 documents read before",
        "source docs: 125 documents read before",
    ]
