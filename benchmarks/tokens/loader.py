"""Batches per second from token shards, beside peers, from the same tokens and with the same shape of batch.

The task: four domains of random tokens with log-normal document lengths (means 300, 600, 1,200 and 2,500), mixed
40:30:20:10 into rows of `--length` tokens, int64 tokens and labels out, read from a warm page cache by one process.
Peers get the documents end to end in the form that they read themselves.

Measured, per arm:

* tokens per second by the clock and per processor second (user + system, worker processes too, from the making of
  the loader on); the best of `--repeats`, arms taking turns: what else runs on a machine only takes time away.
* share of places with tokens, and how far the rows of a domain are from its weight after 40 batches.
* resume: a state saved after step 8 is loaded by a new loader, whose batches must be those of a run that was never
  stopped. Then by two ranks of half the rows each, whose rows together must be those batches.

Example:
    python benchmarks/tokens/loader.py --folder /tmp/shards --peer-python PEERS/bin/python \\
        --write benchmarks/tokens/RESULTS.md

PEERS is an environment with torch, litdata and torchdata; arms whose peer is missing are left out and the table says
so. `--write` replaces the section of this script in the file, or appends it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from loader_arms import ARMS, MEANS, WARM, WEIGHTS, make_shards, opened

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results import written

HERE = Path(__file__).resolve().parent
STOP, CHECKED = 8, 40  # step after which a state is saved, and steps of the checks


def called(jobs: list[dict[str, Any]], python: str) -> list[dict[str, Any]]:
    """Results of the jobs in one process, one after another; with `missing` where there is none."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [python, str(HERE / "loader_arms.py"), json.dumps(jobs)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    if done.returncode:
        return [{"missing": (done.stderr.strip().splitlines() or ["ended without a word"])[-1]}] * len(jobs)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


# ---------------------------------------------------------------- the table


@dataclass
class Row:
    clock: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    full: float = 0.0
    drift: float = 0.0
    resume: str = ""
    elastic: str = ""
    version: str = ""
    missing: str = ""
    note: str = ""


def measure(
    name: str, rows: dict[str, Row], jobs: dict[str, dict[str, Any]], python: str, steps: int
) -> None:
    """Takes the time of an arm for every width, in one process."""
    steps = (
        max(2 * WARM, steps // 5) if ARMS[name][1] else steps
    )  # worker processes are slow and need no more
    more = {"arm": name, "steps": steps, "take": steps, "rows_noted": False}
    for row, found in zip(rows.values(), called([job | more for job in jobs.values()], python)):
        if "missing" in found:
            row.missing = found["missing"]
            continue
        row.clock.append(found["clock"] / 1e6)
        row.cpu.append(found["cpu"] / 1e6)
        row.version, row.full = found["version"], found["full"]


def check(name: str, row: Row, job: dict[str, Any], python: str, scratch: Path) -> None:
    """Mixture and resuming."""
    state, rest = str(scratch / "state.pickle"), CHECKED - STOP
    job = job | {"arm": name, "steps": CHECKED, "take": CHECKED, "rows_noted": True}
    again = job | {"load": state, "take": rest}
    halves = [again | {"rows": job["rows"] // 2, "world": 2, "rank": rank} for rank in range(2)]
    whole, saved, same, *ranks = called(
        [job, job | {"save_after": STOP, "save": state, "take": STOP}, again, *halves], python
    )
    if "missing" in whole:
        row.missing = whole["missing"]
        return
    dealt = Counter(domain for step in whole["rows"] for _, domain in step)
    total = sum(dealt.values())
    row.drift = max(abs(dealt[i] - w * total) for i, w in enumerate(WEIGHTS.values()))
    if "missing" in saved:
        row.resume = row.elastic = saved["missing"].split(": ", 1)[-1]
        return
    expected = whole["rows"][STOP:]
    row.resume = same.get("missing") or ("exact" if same["rows"] == expected else "other rows")
    if refusal := next((rank["missing"] for rank in ranks if "missing" in rank), ""):
        row.elastic, row.note = "refused", f"On 2 ranks: {refusal}"
        return
    together = [sorted(a + b) for a, b in zip(*(rank["rows"] for rank in ranks))]
    row.elastic = "exact" if together == [sorted(step) for step in expected] else "other rows"


def section(rows: dict[str, dict[str, Row]], options: argparse.Namespace) -> str:
    head = "| arm | " + " | ".join(f"{d}, M tokens/s (per CPU-s)" for d in rows)
    lines = [
        "## Loader",
        "",
        head
        + " | places with tokens | documents kept | rows off the mixture | resume | on 2 ranks instead of 1 |",
        "|---" * (6 + len(rows)) + "|",
    ]
    notes = []
    for name in ARMS:
        of = [table[name] for table in rows.values()]
        if missing := next((row.missing for row in of if row.missing), ""):
            notes.append(f"{name}: not measured ({missing}).")
            continue
        rates = [f"{max(row.clock):.1f} ({max(row.cpu):.1f})" for row in of]
        kept = ARMS[name][2]
        full, drift = f"{of[0].full:.2%}", f"{of[0].drift:.0f} of {CHECKED * options.rows}"
        resume, elastic = of[0].resume, of[0].elastic
        if of[0].note:
            notes.append(f"{name}: {of[0].note}")
        lines.append(f"| {name} | {' | '.join(rates)} | {full} | {kept} | {drift} | {resume} | {elastic} |")
    versions = sorted({row.version for table in rows.values() for row in table.values() if row.version})
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    lines += [
        "",
        f"Batches of {options.rows} rows of {options.length:,} tokens, {options.tokens / 1e6:.0f}M tokens per width "
        f"in four domains, {options.steps} steps (a fifth with workers), seed {options.seed}, the best of {options.repeats} (others use the machine); one process, "
        f"warm page cache. Processor: {processor()}, {os.cpu_count()} cores, load average at the end {load}. Python "
        f"{platform.python_version()}, numpy {np.__version__}, {', '.join(versions)}.",
        "",
        "On a shared machine compare by CPU-seconds; they count the loader's start and worker processes. \"On 2 "
        "ranks\": the state of one rank loaded by two of half the rows.",
        *(f"\n{note}" for note in notes),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def processor() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="for the shards (kept; made where they are missing)")
    parser.add_argument("--tokens", type=int, default=64_000_000, help="of each width")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtypes", nargs="+", default=["uint16", "uint32"])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if options.folder is None:
        parser.error("--folder is needed")
    tables = {dtype: {name: Row() for name in ARMS} for dtype in options.dtypes}
    jobs: dict[str, dict[str, Any]] = {}
    for dtype in options.dtypes:
        folder = options.folder / f"{dtype}-{options.tokens}-{options.seed}"
        if not (folder / "made").exists():
            make_shards(folder, dtype, options.tokens, options.seed)
            (folder / "made").touch()
        for domain in MEANS:  # into the page cache
            opened(folder, domain, dtype).max()
        jobs[dtype] = {"folder": str(folder), "dtype": dtype, "rank": 0, "world": 1}
        jobs[dtype] |= {"length": options.length, "rows": options.rows, "seed": options.seed}
    pythons = {n: sys.executable if n.startswith("Ikirere") else options.peer_python for n in ARMS}
    for name in ARMS:
        rows = {dtype: table[name] for dtype, table in tables.items()}
        if name in options.arms:
            first = options.dtypes[0]
            check(name, rows[first], jobs[first], pythons[name], options.folder)
        else:
            rows[options.dtypes[0]].missing = "left out"
    for _ in range(options.repeats):
        for name in ARMS:
            rows = {dtype: table[name] for dtype, table in tables.items()}
            if not any(row.missing for row in rows.values()):
                measure(name, rows, jobs, pythons[name], options.steps)
                print(name, rows, file=sys.stderr)
    text = section(tables, options)
    print(text)
    if options.write:
        written(options.write, "loader.py", text)


if __name__ == "__main__":
    main()
