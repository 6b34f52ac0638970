"""What runs the data steps: Daft, natively on this machine or on a Ray cluster.

The logic lives in plain functions over Arrow tables. Daft distributes the work: `each` runs one function on one file
per task, `frame` opens files as a lazy table for relational work. Results never depend on which engine ran or in
which order tasks ended: files keep their names, and rows are sorted before they count.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import pyarrow as pa

from ikirere.errors import UserError

if TYPE_CHECKING:
    import daft

_RUNNING: list[str] = []  # the runner of this process, once there is one
T = TypeVar("T")  # figures as plain JSON values


class Engine:
    """Daft with one of its runners. `workers`: processes at work at a time; default: one per core.

    A Python process has one runner for its life, as Daft has it. Raises UserError where a second one is asked for,
    and where Ray is asked for and not installed. On Ray every path must be on a file system that all nodes see.
    """

    def __init__(self, name: Literal["native", "ray"] = "native", workers: int | None = None) -> None:
        self.name = name
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.workers = workers or cores or 1
        # Read when Daft is imported; it reports its use otherwise.
        os.environ["DO_NOT_TRACK"] = "true"
        os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
        import daft

        self._daft = daft
        if not _RUNNING:
            if name == "ray":
                _start_ray(workers)
                daft.set_runner_ray(noop_if_initialized=True)
            else:
                daft.set_runner_native()
            _RUNNING.append(name)
        if _RUNNING[0] != name:
            raise UserError(
                f"data.engine: this process runs Daft on {_RUNNING[0]} already; {name} needs one of its own"
            )

    def each(self, work: Callable[[str], T], paths: Sequence[Path]) -> list[T]:
        """`work(path)` for every path, in processes of their own; results in the order of the paths.

        work: picklable. Raises UserError with its message where one raises UserError.
        """
        if not paths:
            return []
        daft = self._daft
        processes = min(self.workers, len(paths))
        task = daft.cls(_Task, use_process=processes > 1, max_concurrency=processes)(work)
        rows = daft.from_pydict({"path": [str(p) for p in paths]})
        if self.name == "ray":
            rows = rows.into_partitions(min(len(paths), 4 * processes))
        else:
            rows = rows.into_batches(1)
        done = rows.select(daft.col("path"), task(daft.col("path")).alias("done")).to_pydict()
        found = dict(zip(done["path"], map(json.loads, done["done"])))
        results = [found[str(p)] for p in paths]
        for result in results:
            if "error" in result:
                raise UserError(result["error"])
        return [result["value"] for result in results]

    def frame(self, paths: Sequence[Path]) -> daft.DataFrame:
        """Parquet files as one lazy Daft table."""
        return self._daft.read_parquet([str(p) for p in paths])

    def from_arrow(self, table: pa.Table) -> daft.DataFrame:
        return self._daft.from_arrow(table)


class _Task:
    """One function, made once per process."""

    def __init__(self, work: Callable[[str], object]) -> None:
        self.work = work

    def __call__(self, path: str) -> str:
        try:
            return json.dumps({"value": self.work(path)})
        except UserError as error:
            return json.dumps({"error": str(error)})


def _start_ray(workers: int | None) -> None:
    # Its own limit of half a minute is too short for a machine that is busy.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    try:
        import ray
    except ImportError:
        raise UserError(
            "data.engine: ray needs the package `ray`; run `pip install ikirere[ray]` or set data.engine=native"
        ) from None
    if not ray.is_initialized():
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            num_cpus=None if os.environ.get("RAY_ADDRESS") else workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
