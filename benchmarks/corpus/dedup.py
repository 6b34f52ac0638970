"""Near-duplicates beside peers: speed, memory, and what is found of pairs whose similarity is known.

Each arm reads the same Parquet files and ends with the ids that it would drop; each runs in a process of its
own, with the settings that its documentation shows, and with two processes where it offers that.

Sets of documents:

* mirror: documents of the corpus below `--corpus` (a folder of Parquet files), in a random order, none over 1
  MB, until `--megabytes` are reached.
* planted: `--pairs` pairs of random prose whose second text has words replaced, so that the Jaccard
  similarity of their sets of 5 consecutive words is spread over [0.5, 1). The similarity is computed here,
  from sets of tuples. An arm finds a pair if it drops one of the two. Ideal: all at 0.8 and above, none
  below.
* short: `--short` documents of about 25 words, a tenth of them copies with a word replaced, and a quarter of
  them by themselves: the difference in peak memory is what more documents cost. `--many` such documents are
  given to the product's own arms.

Measured: seconds by the clock from the first read to the last decision, without imports; processor-seconds of
all processes; peak resident memory, summed over the processes of the arm and looked at 20 times a second,
over what the arm's process had after its imports.

Example:
    python benchmarks/corpus/dedup.py --corpus "$IKIRERE_DATA/corpus" --folder /tmp/dedup \\
        --peer datasketch=PEERS/bin/python rensa=PEERS/bin/python datatrove=PEERS/bin/python \\
        text-dedup=PEERS/bin/python --write benchmarks/corpus/RESULTS.md

A peer's Python needs the peer and pyarrow; datatrove also orjson, xxhash<4, tokenizers and spacy. Peers that
are not named are left out and the table says so. `--write` replaces the section of this script
in the file, or appends it. Results are kept in `--folder`, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from dedup_arms import ARMS, documents

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results import written

HERE = Path(__file__).resolve().parent
PART_BYTES = 8_000_000
SHORT_PART_BYTES = 500_000  # so that even few short documents are several files
BINS = [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]
SETTINGS = {
    "Ikirere": "25 bands of 5, exact Jaccard >= 0.8",
    "Ikirere, spill 50 MB": "the same, spill_bytes 50 MB",
    "datasketch": "MinHashLSH(threshold=0.8, num_perm=128)",
    "rensa": "RMinHashDeduplicator(threshold=0.8, num_perm=128, use_lsh=True)",
    "datatrove": "MinhashConfig(): 14 buckets of 8, spaCy words",
    "text-dedup": "minhash, defaults: threshold 0.7, 250 permutations",
}

# ---------------------------------------------------------------- documents


def write_parts(rows: Iterator[tuple[str, str]], folder: Path, part_bytes: int = PART_BYTES) -> None:
    """(id, text) to Parquet files with the columns that the product's pipeline has."""
    folder.mkdir(parents=True)
    held: list[dict[str, Any]] = []
    size = count = parts = 0

    def flush() -> None:
        nonlocal held, size, parts
        if held:
            pq.write_table(pa.Table.from_pylist(held), folder / f"{parts:05d}.parquet", compression="zstd")
        held, size, parts = [], 0, parts + 1

    for name, text in rows:
        held.append({"id": name, "text": text, "source": "s", "path": name, "domain": "d", "order": count})
        size, count = size + len(text.encode()), count + 1
        if size >= part_bytes:
            flush()
    flush()


def mirror(corpus: Path, limit: int, seed: int) -> Iterator[tuple[str, str]]:
    texts = []
    for path in sorted(corpus.rglob("*.parquet")):
        texts += [
            text for text in pq.read_table(path, columns=["text"]).column(0).to_pylist() if text.strip()
        ]
    random.Random(seed).shuffle(texts)
    size = 0
    for number, text in enumerate(texts):
        length = len(text.encode())
        if size >= limit:
            break
        if length <= 1_000_000:
            size += length
            yield f"{number:032x}", text


def vocabulary(seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]


def planted(pairs: int, seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str, float]]]:
    """Documents in a random order, and (id, id, similarity) of the pairs."""
    rng, words = random.Random(seed), vocabulary(seed)

    def shingles(text: list[str]) -> set[tuple[str, ...]]:
        return {tuple(text[i : i + 5]) for i in range(len(text) - 4)}

    rows, known = [], []
    for number in range(pairs):
        one = [words[int(len(words) * rng.random() ** 2)] for _ in range(rng.randint(60, 400))]
        other, target = list(one), rng.uniform(0.5, 1)
        for place in rng.sample(range(len(one)), round(len(one) * (1 - target) / (1 + target) / 5)):
            other[place] = words[rng.randrange(len(words))]
        a, b = shingles(one), shingles(other)
        known.append((f"{2 * number:032x}", f"{2 * number + 1:032x}", len(a & b) / len(a | b)))
        rows += [(known[-1][0], " ".join(one)), (known[-1][1], " ".join(other))]
    rng.shuffle(rows)
    return rows, known


def short(count: int, seed: int) -> Iterator[tuple[str, str]]:
    rng, words = random.Random(seed), vocabulary(seed)
    text: list[str] = []
    for number in range(count):
        if text and rng.random() < 0.1:
            text[rng.randrange(len(text))] = "changed"
        else:
            text = rng.choices(words, k=rng.randint(15, 35))
        yield f"{number:032x}", " ".join(text)


# ---------------------------------------------------------------- the table


def prepared(options: argparse.Namespace) -> tuple[dict[str, Path], list[tuple[str, str, float]]]:
    """The folders of all sets, made where they are missing, and the planted pairs."""
    key = f"{options.seed}-{options.megabytes}-{options.pairs}-{options.short}-{options.many}"
    root = options.folder / hashlib.sha256(key.encode()).hexdigest()[:8]
    rows, known = planted(options.pairs, options.seed)
    if not (root / "made").exists():
        shutil.rmtree(root, ignore_errors=True)
        write_parts(iter(rows), root / "planted")
        write_parts(short(options.short, options.seed), root / "short", SHORT_PART_BYTES)
        write_parts(short(options.short // 4, options.seed), root / "quarter", SHORT_PART_BYTES)
        write_parts(short(options.many, options.seed), root / "many")
        write_parts(mirror(options.corpus, options.megabytes * 1_000_000, options.seed), root / "mirror")
        (root / "made").touch()
    return {name: root / name for name in ("mirror", "planted", "short", "quarter", "many")}, known


def measure(name: str, python: str, parts: Path, folder: Path, again: bool) -> dict[str, Any]:
    out = parts.parent / f"{name} {parts.name}.json"
    if again:
        out.unlink(missing_ok=True)
    if out.exists():
        known: dict[str, Any] = json.loads(out.read_text())
        return known
    command = [python, HERE / "dedup_arms.py", name, parts, folder / "work", out]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "true"}
    ended = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    if not out.exists():
        raise SystemExit(f"{name}: {ended.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def section(options: argparse.Namespace) -> str:
    sets, known = prepared(options)
    megabytes = {
        name: sum(len(text.encode()) for _, text in documents(sorted(path.iterdir()))) / 1e6
        for name, path in sets.items()
    }
    counts = {name: sum(pq.read_metadata(p).num_rows for p in path.iterdir()) for name, path in sets.items()}
    pythons = {name: sys.executable for name in ARMS if name.startswith("Ikirere")}
    pythons |= dict(peer.split("=", 1) for peer in options.peer)
    speed = [
        f"| arm | settings | mirror: MB/s | MB per processor-second | dropped of {counts['mirror']:,} "
        f"| peak memory, MB | {counts['short']:,} short: MB/s | MB per processor-second | peak memory, MB "
        "| MB more per million documents |",
        "|---" * 10 + "|",
    ]
    edges = list(pairwise(BINS))
    sizes = [sum(low <= s < high for *_, s in known) for low, high in edges]
    found = [
        "| arm | " + " | ".join(f"{low:.2f} to {high:.2f}" for low, high in edges) + " |",
        "|---" * (len(edges) + 1) + "|",
    ]
    found.append("| (pairs) | " + " | ".join(map(str, sizes)) + " |")
    versions, many = [], []
    for name, settings in SETTINGS.items():
        if name not in pythons:
            speed.append(f"| {name} | {settings} | not measured |" + " |" * 7)
            continue
        results = {
            kind: measure(name, pythons[name], path, options.folder, options.again)
            for kind, path in sets.items()
            if kind != "many" or (options.many and name.startswith("Ikirere"))
        }
        print(
            name,
            {k: {**r, "dropped": len(r["dropped"])} for k, r in results.items()},
            file=sys.stderr,
            flush=True,
        )
        big, small, quarter = results["mirror"], results["short"], results["quarter"]
        slope = (small["peak"] - quarter["peak"]) / (counts["short"] - counts["quarter"])
        cells = [
            f"{megabytes['mirror'] / big['seconds']:.1f}",
            f"{megabytes['mirror'] / big['processor']:.1f}",
            f"{len(big['dropped']):,}",
            f"{big['peak'] / 1e6:.0f}",
            f"{megabytes['short'] / small['seconds']:.1f}",
            f"{megabytes['short'] / small['processor']:.1f}",
            f"{small['peak'] / 1e6:.0f}",
            f"{slope:.0f}",
        ]
        speed.append(f"| {name} | {settings} | " + " | ".join(cells) + " |")
        gone = set(results["planted"]["dropped"])
        shares = []
        for (low, high), size in zip(edges, sizes):
            hits = sum(a in gone or b in gone for a, b, s in known if low <= s < high)
            shares.append(f"{hits / size:.4f}" if size else "")
        found.append(f"| {name} | " + " | ".join(shares) + " |")
        if "many" in results:
            result = results["many"]
            many.append(
                f"{name}: {counts['many']:,} short documents ({megabytes['many']:.0f} MB) in "
                f"{result['processor']:.0f} processor-seconds, peak memory {result['peak'] / 1e6:.0f} MB."
            )
        if results["mirror"]["version"]:
            versions.append(f"{name} {results['mirror']['version']}")
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    daft = importlib.metadata.version("daft")
    return "\n".join(
        [
            "## Near-duplicates",
            "",
            *speed,
            "",
            "Share of planted pairs of which one document is dropped, by true Jaccard similarity (an arm",
            "that drops at 0.8 and above has 0 in the first four columns and 1 in the others):",
            "",
            *found,
            "",
            *many,
            "",
            f"Mirror: {counts['mirror']:,} documents, {megabytes['mirror']:.1f} MB; short:",
            f"{counts['short']:,} documents, {megabytes['short']:.1f} MB. Peak memory is measured at these",
            "numbers, beyond what the arm's process has after its imports; the last column is the difference",
            f"between {counts['short']:,} and {counts['quarter']:,} documents, extrapolated. Two processes where",
            f"an arm offers them. One run each, seed {options.seed}, on a machine with other work on it (load",
            f"{os.getloadavg()[2]:.1f}): processor-seconds compare better than MB/s.",
            f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()},",
            f"Daft {daft}; {'; '.join(versions)}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for documents and spill")
    parser.add_argument(
        "--corpus", type=Path, required=True, help="folder of Parquet files with a column text"
    )
    parser.add_argument("--megabytes", type=int, default=32, help="of the corpus")
    parser.add_argument("--pairs", type=int, default=8000)
    parser.add_argument("--short", type=int, default=200_000)
    parser.add_argument("--many", type=int, default=0, help="short documents for the product's arms alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--peer", nargs="*", default=[], metavar="NAME=PYTHON", help=f"of {', '.join(list(ARMS)[2:])}"
    )
    parser.add_argument("--again", action="store_true", help="measure what `--folder` has results of, too")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    text = section(options)
    print(text)
    if options.write:
        written(options.write, "dedup.py", text)


if __name__ == "__main__":
    main()
