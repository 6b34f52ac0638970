"""Near-duplicates are the same on this machine and on Ray: a process has one runner, so each gets its own."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SEARCH = """
import hashlib, sys
from pathlib import Path
import pyarrow.parquet as pq
from ikirere.corpus.dedup import near
from ikirere.corpus.executor import Engine
from ikirere.corpus.dedup.near import find_near_duplicates
from ikirere.recipe.hygiene import NearDuplicates

near.SMALL_BYTES = 0  # in processes, however little it is
name, parts, against, work = sys.argv[1], *map(Path, sys.argv[2:])
found = find_near_duplicates(
    sorted(parts.iterdir()), NearDuplicates(), Engine(name, workers=2), work, sorted(against.iterdir())
)
tables = [pq.read_table(found.pairs), pq.read_table(found.misses), found.dropped, found.families]
print(len(found.dropped), hashlib.sha256(repr([t.to_pylist() for t in tables]).encode()).hexdigest())
"""


def files(folder: Path) -> None:
    """Three parts with copies that differ in a few words, and a file to compare with."""
    rng = random.Random(0)
    rows = []
    for order in range(240):
        if order % 2 == 0:
            text = [f"w{rng.randrange(3000)}" for _ in range(rng.randint(20, 150))]
        words = list(text)
        words[rng.randrange(len(words))] = "else"
        rows.append(
            {"id": f"{order:032x}", "text": " ".join(words), "source": f"s{order % 5}", "order": order}
        )
    for name, some in (("parts", rows[:200]), ("against", rows[200:])):
        (folder / name).mkdir()
        for index in range(3 if name == "parts" else 1):
            pq.write_table(
                pa.Table.from_pylist(some[index::3] if name == "parts" else some[::2]),
                folder / name / f"{index}.parquet",
            )


def test_native_and_ray_find_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    files(tmp_path)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SEARCH, name, tmp_path / "parts", tmp_path / "against", tmp_path / name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("native", "ray")
    ]
    said = [process.communicate(timeout=180) for process in running]
    for process, (_, errors) in zip(running, said):
        assert process.returncode == 0, errors
    native, ray = (out.strip().splitlines()[-1] for out, _ in said)
    assert native == ray
    assert int(native.split()[0]) > 40
