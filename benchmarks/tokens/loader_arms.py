"""The loaders that `loader.py` measures, and what one process does with them."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pickle
import random
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MEANS = {"a": 300, "b": 600, "c": 1200, "d": 2500}
WEIGHTS = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
WARM = 20


def make_shards(folder: Path, dtype: str, tokens: int, seed: int) -> None:
    """`<domain>.bin` and `<domain>.npy` (offsets). A token modulo 4 tells its domain."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (domain, mean) in enumerate(MEANS.items()):
        rng = np.random.default_rng([seed, number])
        count = tokens // len(MEANS)
        lengths = np.maximum(2, rng.lognormal(np.log(mean) - 0.6, 1.1, 2 * count // mean).astype(np.int64))
        lengths = lengths[: np.searchsorted(np.cumsum(lengths), count)]
        np.save(folder / f"{domain}.npy", np.concatenate([[0], np.cumsum(lengths)]))
        ids = rng.integers(1, 12_000, int(lengths.sum())) * 4 + number
        ids.astype(dtype).tofile(folder / f"{domain}.bin")


def opened(folder: Path, domain: str, dtype: str) -> np.ndarray:
    return np.memmap(folder / f"{domain}.bin", dtype=dtype, mode="r").view(np.ndarray)


# ---------------------------------------------------------------- arms


@dataclass
class Setting:
    folder: Path
    dtype: str
    length: int
    rows: int  # of this rank
    steps: int
    seed: int
    rank: int = 0
    world: int = 1
    workers: int = 0


class Arm:
    """Iterates (tokens, labels)."""

    version = ""
    modules: tuple[str, ...] = ()  # imported before the clock starts

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @classmethod
    def prepare(cls, setting: Setting) -> None:
        """Makes files that only this arm reads, before the clock starts."""

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        raise NotImplementedError

    def full(self) -> float:
        """Share of places that hold tokens."""
        return 1.0

    def state(self) -> Any:
        raise NotImplementedError("keeps no state")

    def load(self, state: Any) -> None:
        raise NotImplementedError("keeps no state")


class Ikirere(Arm):
    packing = "concatenate"
    modules = ("ikirere.tokens.loader",)

    def __init__(self, setting: Setting) -> None:
        from ikirere.tokens.loader import LoaderPhase, PackedLoader
        from ikirere.tokens.shards import Shard

        super().__init__(setting)
        shards = {}
        for domain in MEANS:
            offsets = np.load(setting.folder / f"{domain}.npy")
            shards[domain] = Shard(opened(setting.folder, domain, setting.dtype), offsets, np.diff(offsets))
        phase = LoaderPhase(setting.steps, setting.length, setting.rows * setting.world, WEIGHTS)
        self.loader = PackedLoader(
            shards, [phase], setting.seed, setting.rank, setting.world, packing=self.packing
        )

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for batch in self.loader:
            yield batch.tokens, batch.labels

    def full(self) -> float:
        return self.loader.full

    def state(self) -> Any:
        return self.loader.state_dict()

    def load(self, state: Any) -> None:
        self.loader.load_state_dict(state)


class IkirereBestFit(Ikirere):
    packing = "best-fit"


class GetBatch(Arm):
    """nanoGPT's way: random places of the file, with replacement."""

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        import torch

        s = self.setting
        draw = random.Random(s.seed * 1000 + s.rank)
        data = [opened(s.folder, domain, s.dtype) for domain in MEANS]
        for _ in range(s.steps):
            rows = []
            for d in draw.choices(data, list(WEIGHTS.values()), k=s.rows):
                start = draw.randrange(len(d) - s.length)
                rows.append(torch.from_numpy(d[start : start + s.length + 1].astype(np.int64)))
            yield torch.stack([row[:-1] for row in rows]), torch.stack([row[1:] for row in rows])


class Blocks:
    """A map-style dataset: the rows of one domain, or of all."""

    def __init__(self, setting: Setting, domains: list[str]) -> None:
        self.setting = setting
        self.data = [opened(setting.folder, domain, setting.dtype) for domain in domains]
        self.counts = [(len(d) - 1) // setting.length for d in self.data]
        self.first = np.concatenate([[0], np.cumsum(self.counts)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import torch

        domain = int(np.searchsorted(self.first, index, side="right")) - 1
        start = int(index - self.first[domain]) * self.setting.length
        row = self.data[domain][start : start + self.setting.length + 1].astype(np.int64)
        return torch.from_numpy(row[:-1]), torch.from_numpy(row[1:])


class TorchLoader(Arm):
    """torch's DataLoader over a memory map, rows drawn with the domains' weights."""

    def made(self, kind: Any) -> Any:
        import torch

        s = self.setting
        blocks = Blocks(s, list(MEANS))
        weights = np.repeat([w / n for w, n in zip(WEIGHTS.values(), blocks.counts)], blocks.counts)
        generator = torch.Generator().manual_seed(s.seed * 1000 + s.rank)
        sampler = torch.utils.data.WeightedRandomSampler(
            weights.tolist(), s.steps * s.rows, generator=generator
        )
        return kind(blocks, batch_size=s.rows, sampler=sampler, num_workers=s.workers, drop_last=True)

    def __init__(self, setting: Setting) -> None:
        import torch

        super().__init__(setting)
        self.version = f"torch {torch.__version__}"
        self.loader = self.made(torch.utils.data.DataLoader)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield from self.loader


class TorchdataLoader(TorchLoader):
    modules = ("torchdata.stateful_dataloader", "torchdata.nodes")

    def __init__(self, setting: Setting) -> None:
        import torchdata
        from torchdata.stateful_dataloader import StatefulDataLoader

        Arm.__init__(self, setting)
        self.version = f"torchdata {torchdata.__version__}"
        self.loader = self.made(StatefulDataLoader)

    def state(self) -> Any:
        return self.loader.state_dict()

    def load(self, state: Any) -> None:
        self.loader.load_state_dict(state)


class TorchdataNodes(TorchdataLoader):
    """torchdata's graph of nodes, with its weighted sampler of several sources."""

    def __init__(self, setting: Setting) -> None:
        import torch
        import torchdata
        from torch.utils.data import DistributedSampler, default_collate
        from torchdata import nodes

        Arm.__init__(self, setting)
        self.version = f"torchdata {torchdata.__version__}"
        s, sources = setting, {}
        for domain in MEANS:
            blocks = Blocks(s, [domain])
            sampler: Any = DistributedSampler(blocks, s.world, s.rank, seed=s.seed)  # type: ignore[arg-type]
            sources[domain] = nodes.Mapper(nodes.SamplerWrapper(sampler), blocks.__getitem__)
        cycle = nodes.StopCriteria.CYCLE_FOREVER
        mixed = nodes.MultiNodeWeightedSampler(sources, WEIGHTS, cycle, s.rank, s.world, s.seed)
        rows: Any = nodes.Mapper(nodes.Batcher(mixed, s.rows), default_collate)
        self.loader = nodes.Loader(nodes.Prefetcher(rows, 2) if s.workers else rows)
        torch.manual_seed(s.seed)


class Litdata(Arm):
    modules = ("litdata",)

    def __init__(self, setting: Setting) -> None:
        import litdata

        super().__init__(setting)
        self.version = f"litdata {litdata.__version__}"
        s = setting
        sets = []
        for domain in MEANS:
            folder = self.folder(s, domain)
            items = litdata.TokensLoader(block_size=s.length + 1)
            sets.append(
                litdata.StreamingDataset(
                    str(folder), item_loader=items, shuffle=True, drop_last=True, seed=s.seed
                )
            )
        mixed = litdata.CombinedStreamingDataset(
            sets, seed=s.seed, weights=list(WEIGHTS.values()), iterate_over_all=False
        )
        self.loader = litdata.StreamingDataLoader(
            mixed, batch_size=s.rows, num_workers=s.workers, drop_last=True
        )

    @staticmethod
    def folder(setting: Setting, domain: str) -> Path:
        return setting.folder / "litdata" / f"{domain}-{setting.length}"

    @classmethod
    def prepare(cls, setting: Setting) -> None:
        for domain in MEANS:
            if not (cls.folder(setting, domain) / "index.json").exists():
                cls.convert(setting, domain)

    @classmethod
    def convert(cls, s: Setting, domain: str) -> None:
        import litdata

        offsets = np.load(s.folder / f"{domain}.npy")
        groups = np.array_split(offsets, max(1, len(offsets) // 2000))
        spans = [(int(g[0]), int(h[0])) for g, h in zip(groups, [*groups[1:], offsets[-1:]])]
        litdata.optimize(
            fn=LitdataPart(str(s.folder), domain, s.dtype),
            inputs=spans,
            output_dir=str(cls.folder(s, domain)),
            chunk_size=(s.length + 1) * 2048,
            item_loader=litdata.TokensLoader(block_size=s.length + 1),
            num_workers=1,
            verbose=False,
        )

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for _, rows in zip(range(self.setting.steps), self.loader):
            rows = rows.long()
            yield rows[:, :-1], rows[:, 1:]

    def state(self) -> Any:
        return self.loader.state_dict()

    def load(self, state: Any) -> None:
        self.loader.load_state_dict(state)


@dataclass
class LitdataPart:
    """Some of a domain's tokens, as litdata's writer wants them."""

    folder: str
    domain: str
    dtype: str

    def __call__(self, span: tuple[int, int]) -> Iterator[np.ndarray]:
        yield np.array(opened(Path(self.folder), self.domain, self.dtype)[slice(*span)])


ARMS: dict[str, tuple[type[Arm], int, str]] = {  # class, workers, what it keeps of documents
    "Ikirere, concatenate": (Ikirere, 0, "ids, positions, labels, cu_seqlens"),
    "Ikirere, best-fit": (IkirereBestFit, 0, "ids, positions, labels, cu_seqlens; whole documents"),
    "litdata": (Litdata, 0, "none"),
    "litdata, 2 workers": (Litdata, 2, "none"),
    "torchdata StatefulDataLoader": (TorchdataLoader, 0, "none"),
    "torchdata nodes": (TorchdataNodes, 0, "none"),
    "torch DataLoader, memory map": (TorchLoader, 0, "none"),
    "torch DataLoader, memory map, 2 workers": (TorchLoader, 2, "none"),
    "nanoGPT's get_batch": (GetBatch, 0, "none"),
}

# ---------------------------------------------------------------- one process of an arm


def cpu_seconds() -> float:
    """Of this process and of children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def row_marks(tokens: Any) -> list[tuple[str, int]]:
    """Of each row a hash and its domain."""
    rows = tokens.contiguous().numpy()
    return [(hashlib.sha256(row.tobytes()).hexdigest()[:16], int(row[0]) % 4) for row in rows]


def worker(job: dict[str, Any]) -> dict[str, Any]:
    """Runs one arm: takes the time, or notes its rows, saving or loading a state on the way."""
    import torch

    torch.set_num_threads(1)
    kind, workers, _ = ARMS[job["arm"]]
    for module in kind.modules:
        importlib.import_module(module)
    setting = Setting(Path(job["folder"]), *(job[k] for k in ("dtype", "length", "rows", "steps", "seed")))
    setting.rank, setting.world, setting.workers = job["rank"], job["world"], workers
    kind.prepare(setting)
    before = cpu_seconds()
    arm = kind(setting)
    if "load" in job:
        arm.load(pickle.loads(Path(job["load"]).read_bytes()))
    rows, places, warm, start = [], 0, 0, time.perf_counter()
    for step, (tokens, labels) in enumerate(arm):
        if tokens.dtype != torch.int64 or labels.shape != tokens.shape:
            raise AssertionError("not the batch that was agreed on")
        places += tokens.numel()
        if job["rows_noted"]:
            rows.append(row_marks(tokens))
        if step == WARM - 1:
            start, warm = time.perf_counter(), places
        if step + 1 == job.get("save_after"):
            Path(job["save"]).write_bytes(pickle.dumps(arm.state()))
        if step + 1 == job["take"]:
            break
    seconds = time.perf_counter() - start
    result = {"rows": rows, "version": arm.version, "full": arm.full()}
    if not job["rows_noted"]:
        del arm
        result |= {"clock": (places - warm) / seconds, "cpu": places / (cpu_seconds() - before)}
    return result


def answered(job: dict[str, Any]) -> dict[str, Any]:
    """The worker's result, or the reason why there is none."""
    rank, world = str(job["rank"]), str(job["world"])
    os.environ.update(RANK=rank, GLOBAL_RANK=rank, WORLD_SIZE=world)
    try:
        return worker(job)
    except Exception as error:
        return {"missing": f"{type(error).__name__}: {error}".splitlines()[0]}


if __name__ == "__main__":
    print(json.dumps([answered(job) for job in json.loads(sys.argv[1])]))
