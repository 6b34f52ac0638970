"""Sources to documents: read, cleaned, compared, split and sealed, with a ledger of everything that was left out.

The order: read; normalise and licence; exact duplicates and repeated addresses; near-duplicates; language, personal
data, policy, quality, benchmarks; split. What is dropped early costs nothing later, and a copy that a licence forbids
never stands in for one that it allows.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ikirere.corpus.build.build_summary import Records
from ikirere.corpus.build.ingest import Read, digest, read_json, read_sources, write_json, write_table
from ikirere.corpus.build.split_documents import divide
from ikirere.corpus.build.step_runner import StepFigures, gather, gather_pass, part_name, run_pass
from ikirere.corpus.dedup.exact import VERDICTS, ApplyVerdicts, find_repeated
from ikirere.corpus.executor import Engine
from ikirere.corpus.readers.files import expand
from ikirere.corpus.steps import make_step
from ikirere.corpus.steps.pii import redact
from ikirere.corpus.steps.step import EXCERPT, RowStep, StepContext
from ikirere.errors import UserError
from ikirere.recipe.data import Data

LEDGER = "ledger"
FIRST, LATER, LAST = ("normalise", "licence"), ("language", "pii", "policy"), ("quality", "decontaminate")


@dataclass
class Build:
    """One build under way: where it works, and what it found so far."""

    data: Data
    recipe_folder: Path
    folder: Path
    seed: int
    advance: Callable[[int], None]
    say: Callable[[str], None]
    figures: list[StepFigures] = field(default_factory=list)
    read: Read = field(default_factory=Read)
    key: str = ""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = Engine(self.data.engine, self.data.workers)
        self.work = self.folder / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / LEDGER, ignore_errors=True)

    def context(self, step: str) -> StepContext:
        folder = self.work / "models" / step
        folder.mkdir(parents=True, exist_ok=True)
        return StepContext(self.data, self.recipe_folder, folder, self.seed, self.say)

    # ------------------------------------------------------------ the steps

    def reading(self) -> list[Path]:
        self.read = read_sources(self.data, self.recipe_folder, self.work / "read", self.advance, self.say)
        rows = gather(self.read.ledgers, self.folder / LEDGER / "read.parquet")
        figures = StepFigures("read", bytes_in=self.read.n_bytes, bytes_out=self.read.n_bytes)
        figures.documents_in = figures.documents_out = self.read.documents
        if rows:
            for reason in pq.read_table(self.folder / LEDGER / "read.parquet", columns=["reason"])[
                "reason"
            ].to_pylist():
                figures.reasons[reason][0] += 1
        self.figures.append(figures)
        self.key = digest([_stamp(p) for p in self.read.parts])
        return self.read.parts

    def rows(self, name: str, steps: Sequence[str], parts: list[Path]) -> list[Path]:
        """A pass of the registry's steps of these names; those that the recipe leaves out are left out."""
        made = [made for step in steps if (made := make_step(step, self.context(step))) is not None]
        if not made:
            return parts
        for step in made:
            began = time.perf_counter()
            step.prepare(parts)
            # What a step learns of no document in particular, such as which evaluation sets it could read.
            for log, table in getattr(step, "prepared_logs", dict)().items():
                (self.folder / LEDGER).mkdir(exist_ok=True)
                write_table(table, self.folder / LEDGER / f"{step.name}-{log}.parquet")
            if (seconds := time.perf_counter() - began) > 5:
                self.say(f"{step.name}: made ready in {seconds:.0f} s")
        return self.apply(name, made, parts)

    def apply(self, name: str, steps: Sequence[RowStep], parts: list[Path]) -> list[Path]:
        settings = [getattr(self.data, s.name, None) for s in steps]
        self.key = digest(
            self.key,
            self.seed,
            [(s.name, s.fingerprint()) for s in steps],
            [s.model_dump(mode="json") if s is not None else None for s in settings],
            [self.data.licences, self.data.max_document_bytes, self.data.evaluation_sets],
        )
        out = self.work / name
        began = time.perf_counter()
        made, figures = run_pass(self.engine, steps, parts, out, self.key)
        names = [part_name(p) for p in parts]
        gather_pass(out, self.folder / LEDGER, names, self.mask())
        self.figures += figures
        seconds = time.perf_counter() - began
        for step in figures:
            self.say(
                f"{step.step}: {step.documents_in} -> {step.documents_out} documents"
                + "".join(f", {reason} {count}" for reason, (count, _) in sorted(step.reasons.items()))
                + (f" ({seconds:.0f} s together)" if step is figures[-1] and seconds >= 10 else "")
            )
        return made

    def mask(self) -> Callable[[str], str] | None:
        """What excerpts of dropped texts go through: steps before `pii` saw texts that were not yet redacted."""
        if self.data.pii is None:
            return None
        kinds = self.data.pii.kinds

        def masked(excerpt: str) -> str:
            # A value that the excerpt's end cuts in two would not be known for what it is.
            whole = excerpt.rpartition(" ")[0] if len(excerpt) >= EXCERPT else excerpt
            return redact(whole, kinds)[0]

        return masked

    def exact(self, parts: list[Path]) -> list[Path]:
        # The verdicts are of the same key as the parts; a pass that is finished is not judged again.
        out, key = self.work / "exact", self.key
        done = read_json(out / "judged.json")
        if done != key:
            find_repeated(self.engine, parts, out)
            write_json(out / "judged.json", key)
        return self.apply("unique", [ApplyVerdicts("exact", str(out / "verdicts.parquet"))], parts)

    def near(self, parts: list[Path]) -> list[Path]:
        settings = self.data.near_duplicates
        if settings is None:
            return parts
        out = self.work / "near"
        against = [f for name in settings.against for f in self._against(name)]
        key = digest(self.key, settings.model_dump(mode="json"), [_stamp(p) for p in against])
        if read_json(out / "judged.json") != key:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            from ikirere.corpus.dedup.near import find_near_duplicates

            found = find_near_duplicates(parts, settings, self.engine, out / "spill", against, self.say)
            write_table(_verdicts(parts, found.dropped, found.families), out / "verdicts.parquet")
            shutil.copy2(found.pairs, out / "pairs.parquet")
            write_json(out / "figures.json", dict(found.figures))
            shutil.rmtree(out / "spill", ignore_errors=True)
            write_json(out / "judged.json", key)
        (self.folder / LEDGER).mkdir(exist_ok=True)
        shutil.copy2(out / "pairs.parquet", self.folder / LEDGER / "near-pairs.parquet")
        return self.apply("apart", [ApplyVerdicts("near", str(out / "verdicts.parquet"))], parts)

    def _against(self, name: str) -> list[Path]:
        place = expand(name, "data.near_duplicates.against", self.recipe_folder)
        files = [place] if place.is_file() else sorted(place.glob("**/*.parquet"))
        if not files:
            raise UserError(f"data.near_duplicates.against: no Parquet file at {place}")
        return files


def build(
    data: Data,
    recipe_folder: Path,
    folder: Path,
    seed: int = 0,
    mixtures: Mapping[str, Mapping[str, float]] | None = None,
    advance: Callable[[int], None] = lambda amount: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write documents-train.parquet, documents-heldout.parquet, ledger/, manifests/, seal.json and counts.json.

    mixtures: name -> weights by domain; each becomes a manifest over the domains' sets. Deterministic for equal
    sources, keys and seed, whatever the engine and the number of workers. A build that was killed goes on where it
    was. advance: called with the UTF-8 bytes of each document read.
    Returns the counts, as they are in counts.json. Raises UserError for an empty source, a domain of which nothing is
    left, a mixture of unknown domains, and as the steps do.
    """
    work = Build(data, recipe_folder, folder, seed, advance, say)
    parts = raw = work.reading()
    parts = work.rows("first", FIRST, parts)
    parts = work.exact(parts)
    parts = work.near(parts)
    parts = work.rows("later", LATER, parts)
    parts = work.rows("last", LAST, parts)
    divided = divide(parts, data.heldout, folder, say)
    _nothing_lost(data, raw, divided.domains, work.figures)
    records = Records(folder, data, recipe_folder, divided, work.figures, mixtures or {})
    counts = records.write()
    # The texts as they were read stay, so that another filter does not read the sources again.
    for name in ("last", "later", "apart", "unique", "first", "exact", "near", "models"):
        shutil.rmtree(work.work / name, ignore_errors=True)
    return counts


def _stamp(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _verdicts(parts: Sequence[Path], dropped: pa.Table, families: pa.Table) -> pa.Table:
    """What near-duplicates found, by `order`."""
    family = dict(zip(families.column("id").to_pylist(), families.column("family").to_pylist()))
    gone = {row["id"]: row for row in dropped.to_pylist()}
    rows = []
    for part in parts:
        keys = pq.read_table(part, columns=["id", "order"])
        for identity, order in zip(keys.column("id").to_pylist(), keys.column("order").to_pylist()):
            if identity not in family and identity not in gone:
                continue
            row = gone.get(identity)
            detail = {k: row[k] for k in ("jaccard", "kept_set", "because")} if row else {}
            rows.append(
                {
                    "order": order,
                    "reason": "near-duplicate" if row else "",
                    "kept": row["kept"] if row else "",
                    "detail": json.dumps(detail) if row else "",
                    "family": family.get(identity, ""),
                }
            )
    return pa.Table.from_pylist(rows, schema=VERDICTS)


def _nothing_lost(
    data: Data, raw: Sequence[Path], left: Sequence[Mapping[str, Any]], figures: Sequence[StepFigures]
) -> None:
    read: set[str] = set()
    for part in raw:
        read |= set(pq.read_table(part, columns=["domain"]).column("domain").unique().to_pylist())
    reasons = {r: n for f in figures for r, (n, _) in f.reasons.items() if f.documents_out < f.documents_in}
    most = ", ".join(f"{r} {n}" for r, n in sorted(reasons.items(), key=lambda item: -item[1])[:4])
    for domain in sorted(read - {row["domain"] for row in left}):
        raise UserError(
            f"data.sources: every document of the domain {domain} was dropped (over all domains: {most}); "
            f"`data.licences` is {data.licences!r}, `data.max_document_bytes` {data.max_document_bytes}: widen them, "
            "or leave a filter out"
        )
    for row in left:
        if data.heldout < 1 and not row["train_documents"]:
            raise UserError(
                f"data.heldout: {data.heldout} leaves no training document in the domain {row['domain']}; "
                "lower it or give the domain more documents"
            )
