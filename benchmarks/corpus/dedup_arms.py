"""The arms of `dedup.py`: files of documents in, dropped ids out. Each runs in a process of its own, with the peer's Python:

PYTHON dedup_arms.py ARM PARTS WORK OUT
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import resource
import shutil
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq


def documents(parts: list[Path]) -> Iterator[tuple[str, str]]:
    for path in parts:
        for batch in pq.ParquetFile(path).iter_batches(1000, columns=["id", "text"]):
            yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist())


def five_words(text: str) -> list[str]:
    words = re.sub(r"[^\w\s]", "", text).lower().split()
    return [" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))]


def ikirere(parts: list[Path], work: Path, spill: int = 1_000_000_000) -> Callable[[], list[str]]:
    from ikirere.corpus.dedup.near import find_near_duplicates
    from ikirere.corpus.executor import Engine
    from ikirere.recipe.hygiene import NearDuplicates

    engine = Engine("native", workers=2)
    settings = NearDuplicates(spill_bytes=spill)
    return lambda: find_near_duplicates(parts, settings, engine, work).dropped.column("id").to_pylist()


def datasketch(parts: list[Path], work: Path) -> Callable[[], list[str]]:
    from datasketch import MinHash, MinHashLSH

    def run() -> list[str]:
        index, dropped = MinHashLSH(threshold=0.8, num_perm=128), []
        for name, text in documents(parts):
            signature = MinHash(num_perm=128)
            signature.update_batch([shingle.encode() for shingle in set(five_words(text))])
            if index.query(signature):
                dropped.append(name)
            else:
                index.insert(name, signature)
        return dropped

    return run


def rensa(parts: list[Path], work: Path) -> Callable[[], list[str]]:
    from rensa import RMinHashDeduplicator

    def run() -> list[str]:
        index, dropped = RMinHashDeduplicator(threshold=0.8, num_perm=128, use_lsh=True), []
        for path in parts:
            some = list(documents([path]))
            keep = index.add_pairs([(name, five_words(text)) for name, text in some])
            dropped += [name for (name, _), kept in zip(some, keep) if not kept]
        return dropped

    return run


def datatrove(parts: list[Path], work: Path) -> Callable[[], list[str]]:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import ParquetReader

    def run() -> list[str]:
        config = MinhashConfig()
        folders = [str(work / name) for name in ("signatures", "buckets", "remove")]
        tasks = min(2, len(parts))
        stages = [
            (tasks, [ParquetReader(str(parts[0].parent)), MinhashDedupSignature(folders[0], config=config)]),
            (config.num_buckets, [MinhashDedupBuckets(folders[0], folders[1], config=config)]),
            (1, [MinhashDedupCluster(folders[1], folders[2], config=config)]),
        ]
        for number, (count, stage) in enumerate(stages):
            logs = str(work / f"logs{number}")
            LocalPipelineExecutor(stage, tasks=count, workers=min(2, count), logging_dir=logs).run()
        dropped = []
        for rank in range(tasks):
            removed = work / "remove" / f"{rank:06d}.remove"
            places = (
                {n for (n,) in struct.iter_unpack("<I", removed.read_bytes())} if removed.exists() else set()
            )
            names = (name for name, _ in documents(parts[rank::tasks]))
            dropped += [name for place, name in enumerate(names) if place in places]
        return dropped

    return run


def text_dedup(parts: list[Path], work: Path) -> Callable[[], list[str]]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    from text_dedup.minhash import main as command

    datasets.disable_progress_bars()

    def run() -> list[str]:
        names = ["--path", "parquet", "--data_files", str(parts[0].parent / "*.parquet"), "--split", "train"]
        places = ["--cache_dir", str(work / "cache"), "--output", str(work / "out"), "--column", "text"]
        command([*names, *places, "--num_proc", "2"], standalone_mode=False)
        kept = set(datasets.load_from_disk(str(work / "out"))["id"])
        return [name for name, _ in documents(parts) if name not in kept]

    return run


ARMS: dict[str, Callable[[list[Path], Path], Callable[[], list[str]]]] = {
    "Ikirere": ikirere,
    "Ikirere, spill 50 MB": lambda parts, work: ikirere(parts, work, 50_000_000),
    "datasketch": datasketch,
    "rensa": rensa,
    "datatrove": datatrove,
    "text-dedup": text_dedup,
}


class Memory(threading.Thread):
    """Peak of the resident memory, in bytes, of this process and those below it, over that at the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begin, self.peak, self.done = self.now(), 0, threading.Event()

    def now(self) -> int:
        children: dict[int, list[int]] = {}
        sizes = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                children.setdefault(int(fields[1]), []).append(int(folder.name))
                sizes[int(folder.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        total, waiting = 0, [os.getpid()]
        while waiting:
            process = waiting.pop()
            total += sizes.get(process, 0)
            waiting += children.get(process, [])
        return total

    def run(self) -> None:
        while not self.done.wait(0.05):
            self.peak = max(self.peak, self.now() - self.begin)


def run_arm(name: str, parts: Path, work: Path, out: Path) -> None:
    """Leaves {"dropped", "seconds", "processor", "peak", "version"} in `out`."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    job = ARMS[name](sorted(parts.glob("*.parquet")), work)

    def processor() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    memory = Memory()
    memory.start()
    begin, before = time.perf_counter(), processor()
    dropped = job()
    result = {"seconds": time.perf_counter() - begin, "processor": processor() - before, "dropped": dropped}
    memory.done.set()
    memory.join()
    version = "" if name.startswith("Ikirere") else importlib.metadata.version(name)
    out.write_text(json.dumps(result | {"peak": memory.peak, "version": version}))
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    run_arm(sys.argv[1], *map(Path, sys.argv[2:5]))
