"""Row steps over all parts: each part is read once, goes through the steps of a pass, and is written once."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ikirere.corpus.build.ingest import read_json, write_json, write_table
from ikirere.corpus.executor import Engine
from ikirere.corpus.steps.step import CHANGED, LEDGER_SCHEMA, RowStep

Mask = Callable[[str], str]


@dataclass
class StepFigures:
    """Documents and UTF-8 bytes into and out of a step, and rows of its ledger by action and reason."""

    step: str
    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    changed: int = 0
    seconds: float = 0.0
    reasons: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def row(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "documents_in": self.documents_in,
            "bytes_in": self.bytes_in,
            "documents_out": self.documents_out,
            "bytes_out": self.bytes_out,
            "dropped": self.documents_in - self.documents_out,
            "changed": self.changed,
        }


def text_bytes(table: pa.Table) -> int:
    """UTF-8 bytes of the texts."""
    return int(pc.sum(pc.binary_length(table.column("text"))).as_py() or 0)


@dataclass
class PassWork:
    """One part through the steps; a picklable function for `Engine.each`."""

    steps: Sequence[RowStep]
    out: str

    def __call__(self, path: str) -> dict[str, Any]:
        out, stem = Path(self.out), part_name(Path(path))
        figures_file = out / "figures" / f"{stem}.json"
        # Written last, so that a part with figures is whole; a continued run does not make it again.
        if (known := read_json(figures_file)) is not None:
            return dict(known)
        table = pq.read_table(path)
        rows = []
        for step in self.steps:
            began = time.perf_counter()
            outcome = step(table)
            ledger = outcome.ledger
            write_table(ledger, _in(out / "ledger" / step.name) / f"{stem}.parquet")
            for name, log in outcome.logs.items():
                write_table(log, _in(out / "logs" / f"{step.name}-{name}") / f"{stem}.parquet")
            reasons: dict[str, list[int]] = defaultdict(lambda: [0, 0])
            for reason, n_bytes in zip(
                ledger.column("reason").to_pylist(), ledger.column("bytes").to_pylist()
            ):
                reasons[reason][0] += 1
                reasons[reason][1] += n_bytes
            rows.append(
                {
                    "step": step.name,
                    "documents_in": len(table),
                    "bytes_in": text_bytes(table),
                    "documents_out": len(outcome.kept),
                    "bytes_out": text_bytes(outcome.kept),
                    "changed": int(pc.sum(pc.equal(ledger.column("action"), CHANGED)).as_py() or 0),
                    "reasons": reasons,
                    "seconds": time.perf_counter() - began,
                }
            )
            table = outcome.kept
        write_table(table, _in(out / "parts") / f"{stem}.parquet")
        _in(out / "figures")
        write_json(figures_file, {"steps": rows})
        return {"steps": rows}


def _in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def part_name(path: Path) -> str:
    """Of a part that reading wrote: source and number; of later ones: their own."""
    return f"{path.parent.name}-{path.stem}" if path.stem.startswith("part-") else path.stem


def run_pass(
    engine: Engine, steps: Sequence[RowStep], parts: Sequence[Path], out: Path, key: str
) -> tuple[list[Path], list[StepFigures]]:
    """All parts through the steps, in order; parts written below `out`. What an equal `key` finished stays."""
    if read_json(out / "key.json") != key:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        write_json(out / "key.json", key)
    figures = {step.name: StepFigures(step.name) for step in steps}
    for done in engine.each(PassWork(list(steps), str(out)), parts):
        for row in done["steps"]:
            into = figures[row["step"]]
            for name in ("documents_in", "bytes_in", "documents_out", "bytes_out", "changed", "seconds"):
                setattr(into, name, getattr(into, name) + row[name])
            for reason, (documents, n_bytes) in row["reasons"].items():
                into.reasons[reason][0] += documents
                into.reasons[reason][1] += n_bytes
    made = [out / "parts" / f"{part_name(p)}.parquet" for p in parts]
    return made, list(figures.values())


def gather(
    files: Sequence[Path], target: Path, schema: pa.Schema = LEDGER_SCHEMA, mask: Mask | None = None
) -> int:
    """Many ledger files into one, in the order of their names; the number of rows. mask: applied to excerpts."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    rows = 0
    try:
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for file in files:
                table = pq.read_table(file)
                rows += len(table)
                if mask is not None and "excerpt" in schema.names:
                    shown = pa.array(
                        [mask(text) for text in table.column("excerpt").to_pylist()], pa.string()
                    )
                    table = table.set_column(table.schema.get_field_index("excerpt"), "excerpt", shown)
                if len(table):
                    writer.write_table(table.select(schema.names).cast(schema))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return rows


def gather_pass(out: Path, folder: Path, source_names: Sequence[str], mask: Mask | None = None) -> list[str]:
    """Ledgers and logs of a pass as `folder/<step>.parquet` and `folder/<step>-<log>.parquet`; their names."""
    made = []
    for kind in ("ledger", "logs"):
        for place in sorted((out / kind).glob("*")):
            files = [f for f in sorted(place.glob("*.parquet")) if f.stem in source_names]
            if files:
                schema = LEDGER_SCHEMA if kind == "ledger" else pq.read_schema(files[0])
                gather(files, folder / f"{place.name}.parquet", schema, mask)
                made.append(f"{folder.name}/{place.name}.parquet")
    return made
