"""Sources to documents: read, cleaned, compared, split and sealed, with a ledger of everything that was left out.

The order: read; normalise and licence; exact duplicates and repeated addresses; near-duplicates; language, personal
data, policy; quality, benchmarks; split. What is dropped early costs nothing later, and a copy that a licence forbids
never stands in for one that it allows.

Documents pass in parts (`corpus/parts`). What only drops documents leaves views of the tables that are there; a table
is written where documents change: by reading, by `normalise` and `licence`, by `pii`, and at the end.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ikirere.common.files import file_sha256, json_sha256, read_json, write_json
from ikirere.corpus.build.build_summary import BuildSummary, Counts
from ikirere.corpus.build.ingest import Read, intact_json, read_sources
from ikirere.corpus.build.inputs import against_files, external_inputs
from ikirere.corpus.build.manifests import FOLDER, Weights, rewrite_manifests, write_manifests
from ikirere.corpus.build.split_documents import DomainRow, split_documents
from ikirere.corpus.build.step_runner import StepFigures, gather, gather_pass, run_pass
from ikirere.corpus.build.written_checks import CheckRow, WrittenChecks, unchecked_sets
from ikirere.corpus.dedup.exact import VERDICTS, ApplyVerdicts, find_repeated
from ikirere.corpus.executor import Engine
from ikirere.corpus.parts import Part, part_name, read_part, write_table, write_view
from ikirere.corpus.seal import SEAL, SPLITS, documents_file
from ikirere.corpus.steps import make_step
from ikirere.corpus.steps.decontaminate import Decontaminator
from ikirere.corpus.steps.pii import redact
from ikirere.corpus.steps.step import EXCERPT, RowStep, StepContext
from ikirere.errors import UserError
from ikirere.recipe.data import Data

LEDGER = "ledger"
COUNTS = "counts.json"
FINISHED = "finished.json"  # in `work`: the build's key, and the sha256 of each file that it left
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

    def __post_init__(self) -> None:
        self.engine = Engine(self.data.engine, self.data.workers)
        self.work = self.folder / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / LEDGER, ignore_errors=True)
        (self.folder / LEDGER).mkdir()

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
        self.key = json_sha256([file_sha256(p) for p in self.read.parts])
        return self.read.parts

    def rows(
        self, name: str, steps: Sequence[str], parts: list[Path], before: Sequence[RowStep] = ()
    ) -> list[Path]:
        """A pass of `before` and of the registry's steps of these names; those that the recipe leaves out are left
        out."""
        made = [made for step in steps if (made := make_step(step, self.context(step))) is not None]
        for step in made:
            began = time.perf_counter()
            step.prepare(parts)
            # What a step learns of no document in particular, such as which evaluation sets it could read.
            for log, table in getattr(step, "prepared_logs", dict)().items():
                write_table(table, self.folder / LEDGER / f"{step.name}-{log}.parquet")
            if (seconds := time.perf_counter() - began) > 5:
                self.say(f"{step.name}: made ready in {seconds:.0f} s")
        return self.apply(name, [*before, *made], parts)

    def apply(self, name: str, steps: Sequence[RowStep], parts: list[Path]) -> list[Path]:
        if not steps:
            return parts
        settings = [getattr(self.data, s.name, None) for s in steps]
        self.key = json_sha256(
            [
                self.key,
                self.seed,
                [(s.name, s.fingerprint()) for s in steps],
                [s.model_dump(mode="json") if s is not None else None for s in settings],
                [self.data.licences, self.data.max_document_bytes, self.data.evaluation_sets],
            ]
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

    def duplicates(self, parts: list[Path]) -> list[RowStep]:
        """The verdicts on exact and near-duplicates, as steps for the next pass over these parts."""
        out = self.work / "exact"
        # The verdicts are of the same key as the parts; a judgement that is finished stays.
        if intact_json(out / "judged.json") != self.key:
            verdicts = find_repeated(self.engine, parts, out)
            gone = pq.read_table(verdicts, columns=["order"]).column("order").to_numpy()
            (out / "left").mkdir(exist_ok=True)
            for path in parts:
                _write_left(path, gone, out / "left" / f"{part_name(path)}.parquet")
            write_json(out / "judged.json", self.key)
        exact = ApplyVerdicts("exact", str(out / "verdicts.parquet"))
        if self.data.near_duplicates is None:
            return [exact]
        left = [out / "left" / f"{part_name(path)}.parquet" for path in parts]
        return [exact, self.near(left)]

    def near(self, parts: list[Path]) -> RowStep:
        settings = self.data.near_duplicates
        assert settings is not None
        out = self.work / "near"
        against = [f for name in settings.against for f in against_files(name, self.recipe_folder)]
        hashes = [file_sha256(p) for p in against]
        key = json_sha256([self.key, settings.model_dump(mode="json"), hashes])
        if intact_json(out / "judged.json") != key:
            from ikirere.corpus.dedup.near import find_near_duplicates

            out.mkdir(exist_ok=True)
            found = find_near_duplicates(parts, settings, self.engine, out / "spill", against, self.say)
            write_table(_verdicts(parts, found.dropped, found.families), out / "verdicts.parquet")
            shutil.copy2(found.pairs, out / "pairs.parquet")
            shutil.rmtree(out / "spill", ignore_errors=True)
            write_json(out / "judged.json", key)
        shutil.copy2(out / "pairs.parquet", self.folder / LEDGER / "near-pairs.parquet")
        return ApplyVerdicts("near", str(out / "verdicts.parquet"))

    def checks(self, domains: Sequence[DomainRow]) -> list[CheckRow]:
        """Checks of what was written, each only where its step ran."""
        written = WrittenChecks(self.folder, self.work / "checks", domains, self.seed, self.say)
        found = []
        if self.data.near_duplicates is not None:
            found.append(written.near_duplicates(self.data.near_duplicates, self.engine))
        step = make_step("decontaminate", self.context("decontaminate"))
        if isinstance(step, Decontaminator):
            found.append(written.evaluation_items(step))
            sets = pq.read_table(self.folder / LEDGER / "decontaminate-sets.parquet", columns=["missing"])
            found.append(unchecked_sets(sets.column("missing").to_pylist()))
        return found


def build(
    data: Data,
    recipe_folder: Path,
    folder: Path,
    seed: int = 0,
    mixtures: Weights | None = None,
    advance: Callable[[int], None] = lambda amount: None,
    say: Callable[[str], None] = lambda line: None,
) -> Counts:
    """Write documents-train.parquet, documents-heldout.parquet, ledger/, manifests/, seal.json and counts.json.

    mixtures: name -> weights by domain; each becomes a manifest over the domains' sets. Deterministic for equal
    sources, keys and seed, whatever the engine and the number of workers. A build that was killed continues; of one
    that is finished and whole only the manifests are written again. advance: called with the UTF-8 bytes of each
    document read.
    Returns the counts, as they are in counts.json. Raises UserError for an empty source, a domain of which nothing is
    left, a mixture of unknown domains, and as the steps do.
    """
    key = json_sha256([data.result_settings(), seed, external_inputs(data, recipe_folder)])
    mixtures = mixtures or {}
    if _is_finished(folder, key):
        counts: Counts = read_json(folder / COUNTS)
        counts["mixtures"] = rewrite_manifests(folder, data.version, mixtures)
        advance(sum(step["bytes_out"] for step in counts["steps"] if step["step"] == "read"))
        say(f"documents: {sum(row['documents'] for row in counts['domains'])} built before")
        return _finish(folder, key, counts)
    work = Build(data, recipe_folder, folder, seed, advance, say)
    (work.work / FINISHED).unlink(missing_ok=True)
    raw = work.reading()
    parts = work.rows("first", FIRST, raw)
    parts = work.rows("later", LATER, parts, work.duplicates(parts))
    parts = work.rows("last", LAST, parts)
    split = split_documents(parts, data.heldout, folder, say)
    _nothing_lost(data, raw, split.domains, work.figures)
    made = write_manifests(folder, data, recipe_folder, split.domains, mixtures)
    checks = work.checks(split.domains)
    counts = BuildSummary(folder, split, work.figures).counts(made, checks)
    counts = _finish(folder, key, counts)
    # The texts as they were read stay, so that another filter does not read the sources again.
    for name in ("last", "later", "first", "exact", "near", "models", "checks"):
        shutil.rmtree(work.work / name, ignore_errors=True)
    return counts


def _finish(folder: Path, key: str, counts: Counts) -> Counts:
    write_json(folder / COUNTS, counts)
    names = [*map(documents_file, SPLITS), SEAL, COUNTS]
    paths = [folder / name for name in names]
    for name, ending in ((LEDGER, "*.parquet"), (FOLDER, "*/*.json")):
        paths += sorted((folder / name).glob(ending))
    files = {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}
    write_json(folder / "work" / FINISHED, {"key": key, "files": files})
    written: Counts = read_json(folder / COUNTS)
    return written


def _is_finished(folder: Path, key: str) -> bool:
    """Whether a build of this key ended here and every file of it is as it was left."""
    known = intact_json(folder / "work" / FINISHED)
    if known is None or known["key"] != key:
        return False
    paths = {folder / name: sha256 for name, sha256 in known["files"].items()}
    return all(path.is_file() and file_sha256(path) == sha256 for path, sha256 in paths.items())


def _write_left(path: Path, gone: np.ndarray, target: Path) -> None:
    """A view of a part's documents but those whose `order` (int64) is in `gone`."""
    with Part(path) as part:
        documents = part.read(["order", "family"])
        left = np.flatnonzero(~np.isin(documents.column("order").to_numpy(), gone))
        families = documents.column("family").take(pa.array(left)).combine_chunks()
        write_view(target, part, part.rows[left], families)


def _verdicts(parts: Sequence[Path], dropped: pa.Table, families: pa.Table) -> pa.Table:
    """What near-duplicates found, by `order`."""
    family = dict(zip(families.column("id").to_pylist(), families.column("family").to_pylist()))
    gone = {row["id"]: row for row in dropped.to_pylist()}
    rows = []
    for part in parts:
        keys = read_part(part, ["id", "order"])
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
    data: Data, raw: Sequence[Path], left: Sequence[DomainRow], figures: Sequence[StepFigures]
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
