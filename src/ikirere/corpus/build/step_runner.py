"""Row steps over all parts: each part is read once, goes through the steps of a pass, and is left as a part again."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ikirere.common.files import atomic, write_json
from ikirere.corpus.build.ingest import intact_json
from ikirere.corpus.executor import Engine
from ikirere.corpus.parts import Part, part_name, write_part, write_table
from ikirere.corpus.steps.step import CHANGED, LEDGER_SCHEMA, RowStep

Mask = Callable[[str], str]


class StepRow(TypedDict):
    """Documents and UTF-8 bytes into and out of a step."""

    step: str
    documents_in: int
    bytes_in: int
    documents_out: int
    bytes_out: int
    dropped: int
    changed: int


class StepOnPart(TypedDict):
    """What one step did to one part. reasons: rows of the ledger and their bytes, by reason."""

    step: str
    documents_in: int
    bytes_in: int
    documents_out: int
    bytes_out: int
    changed: int
    reasons: Mapping[str, list[int]]


class PassOnPart(TypedDict):
    """All steps of a pass on one part."""

    steps: list[StepOnPart]


@dataclass
class StepFigures:
    """Documents and UTF-8 bytes into and out of a step, and rows of its ledger by action and reason."""

    step: str
    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    changed: int = 0
    reasons: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def add(self, one: StepOnPart) -> None:
        self.documents_in += one["documents_in"]
        self.bytes_in += one["bytes_in"]
        self.documents_out += one["documents_out"]
        self.bytes_out += one["bytes_out"]
        self.changed += one["changed"]
        for reason, (documents, n_bytes) in one["reasons"].items():
            self.reasons[reason][0] += documents
            self.reasons[reason][1] += n_bytes

    def row(self) -> StepRow:
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

    def __call__(self, path: str) -> PassOnPart:
        out, stem = Path(self.out), part_name(Path(path))
        figures_file = out / "figures" / f"{stem}.json"
        # Written last, so that a part with figures is complete; a continued run keeps it.
        if (known := intact_json(figures_file)) is not None:
            done: PassOnPart = known
            return done
        with Part(Path(path)) as part:
            table = before = part.read()
            rows: list[StepOnPart] = []
            for step in self.steps:
                table, row = self._one(step, table, stem)
                rows.append(row)
            write_part(table, _in(out / "parts") / f"{stem}.parquet", part, before)
        _in(out / "figures")
        result: PassOnPart = {"steps": rows}
        write_json(figures_file, result)
        return result

    def _one(self, step: RowStep, table: pa.Table, stem: str) -> tuple[pa.Table, StepOnPart]:
        out, outcome = Path(self.out), step(table)
        ledger = outcome.ledger
        write_table(ledger, _in(out / "ledger" / step.name) / f"{stem}.parquet")
        for name, log in outcome.logs.items():
            write_table(log, _in(out / "logs" / f"{step.name}-{name}") / f"{stem}.parquet")
        reasons: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for reason, n_bytes in zip(ledger.column("reason").to_pylist(), ledger.column("bytes").to_pylist()):
            reasons[reason][0] += 1
            reasons[reason][1] += n_bytes
        return outcome.kept, {
            "step": step.name,
            "documents_in": len(table),
            "bytes_in": text_bytes(table),
            "documents_out": len(outcome.kept),
            "bytes_out": text_bytes(outcome.kept),
            "changed": int(pc.sum(pc.equal(ledger.column("action"), CHANGED)).as_py() or 0),
            "reasons": reasons,
        }


def _in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_pass(
    engine: Engine, steps: Sequence[RowStep], parts: Sequence[Path], out: Path, key: str
) -> tuple[list[Path], list[StepFigures]]:
    """All parts through the steps, in order; parts written below `out`. What an equal `key` finished stays."""
    if intact_json(out / "key.json") != key:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        write_json(out / "key.json", key)
    figures = {step.name: StepFigures(step.name) for step in steps}
    for done in engine.each(PassWork(list(steps), str(out)), parts):
        for row in done["steps"]:
            figures[row["step"]].add(row)
    made = [out / "parts" / f"{part_name(p)}.parquet" for p in parts]
    return made, list(figures.values())


def gather(
    files: Sequence[Path], target: Path, schema: pa.Schema = LEDGER_SCHEMA, mask: Mask | None = None
) -> int:
    """Many ledger files into one, in the order of their names; the number of rows. mask: applied to excerpts."""
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with atomic(target, "wb") as handle, pq.ParquetWriter(handle, schema, compression="zstd") as writer:
        for file in files:
            table = pq.read_table(file)
            rows += len(table)
            if mask is not None and "excerpt" in schema.names:
                shown = pa.array([mask(text) for text in table.column("excerpt").to_pylist()], pa.string())
                table = table.set_column(table.schema.get_field_index("excerpt"), "excerpt", shown)
            if len(table):
                writer.write_table(table.select(schema.names).cast(schema))
    return rows


def gather_pass(out: Path, folder: Path, source_names: Sequence[str], mask: Mask | None = None) -> list[str]:
    """Ledgers and logs of a pass as `folder/<step>.parquet` and `folder/<step>-<log>.parquet`; their names."""
    made = []
    for kind in ("ledger", "logs"):
        for step in sorted((out / kind).glob("*")):
            files = [f for f in sorted(step.glob("*.parquet")) if f.stem in source_names]
            if files:
                schema = LEDGER_SCHEMA if kind == "ledger" else pq.read_schema(files[0])
                gather(files, folder / f"{step.name}.parquet", schema, mask)
                made.append(f"{folder.name}/{step.name}.parquet")
    return made
