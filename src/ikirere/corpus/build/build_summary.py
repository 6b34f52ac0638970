"""Counts and samples of a build, and one hash of all that it made."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ikirere.corpus.build.manifests import MixtureRow
from ikirere.corpus.build.split_documents import DocumentSplit, DomainRow
from ikirere.corpus.build.step_runner import StepFigures, StepRow
from ikirere.corpus.build.written_checks import CheckRow
from ikirere.corpus.seal import SPLITS, documents_file
from ikirere.corpus.steps import STEPS
from ikirere.corpus.steps.step import LEDGER_SCHEMA, LedgerRow

SAMPLES = 3  # dropped documents per reason that counts.json shows
FIRST = ("read", "normalise", "licence", "exact", "near")
IN_LEDGER = (*FIRST, *(step for step in STEPS if step not in FIRST))


class ReasonRow(TypedDict):
    """Rows of the ledgers and the bytes of their documents, by step, action and reason."""

    step: str
    action: str
    reason: str
    documents: int
    bytes: int


class LicenceRow(TypedDict):
    """outcome: `kept`, or the reason for which the documents were dropped."""

    licence: str
    domain: str
    outcome: str
    documents: int
    bytes: int


class SampleRow(TypedDict):
    """A dropped document: some columns of its ledger row."""

    step: str
    action: str
    reason: str
    id: str
    path: str
    source: str
    domain: str
    detail: str
    excerpt: str


class Counts(TypedDict):
    """counts.json. seal: its hash. sha256: of all documents with their sides and families and all ledger rows."""

    domains: list[DomainRow]
    steps: list[StepRow]
    dropped: list[ReasonRow]
    licences: list[LicenceRow]
    samples: list[SampleRow]
    mixtures: list[MixtureRow]
    checks: list[CheckRow]
    notes: list[str]
    seal: str
    sha256: str


@dataclass
class BuildSummary:
    """Everything that is derived from the final documents and the ledgers in `folder`."""

    folder: Path
    split: DocumentSplit
    figures: Sequence[StepFigures]

    def counts(self, mixtures: list[MixtureRow], checks: list[CheckRow]) -> Counts:
        return {
            "domains": self.split.domains,
            "steps": [step.row() for step in self.figures],
            "dropped": self._reasons(),
            "licences": self._licences(),
            "samples": self._samples(),
            "mixtures": mixtures,
            "checks": checks,
            "notes": self.split.notes,
            "seal": self.split.seal["sha256"],
            "sha256": self._hash(),
        }

    def ledger(self) -> Iterator[LedgerRow]:
        """Rows of all ledgers, step by step."""
        for step in IN_LEDGER:
            path = self.folder / "ledger" / f"{step}.parquet"
            if path.is_file():
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(batch_size=1024, columns=LEDGER_SCHEMA.names):
                        yield from cast(list[LedgerRow], batch.to_pylist())

    def _reasons(self) -> list[ReasonRow]:
        sums: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
        for row in self.ledger():
            entry = sums[row["step"], row["action"], row["reason"]]
            entry[0] += 1
            entry[1] += row["bytes"] or 0
        return [
            {"step": step, "action": action, "reason": reason, "documents": documents, "bytes": n_bytes}
            for (step, action, reason), (documents, n_bytes) in sorted(
                sums.items(), key=lambda item: (IN_LEDGER.index(item[0][0]), *item[0][1:])
            )
        ]

    def _licences(self) -> list[LicenceRow]:
        sums: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
        for split in SPLITS:
            with pq.ParquetFile(self.folder / documents_file(split)) as file:
                for batch in file.iter_batches(batch_size=1024, columns=["licence", "domain", "text"]):
                    sizes = pc.binary_length(batch.column("text")).to_pylist()
                    for licence, domain, size in zip(
                        batch.column("licence").to_pylist(), batch.column("domain").to_pylist(), sizes
                    ):
                        sums[licence, domain, "kept"][0] += 1
                        sums[licence, domain, "kept"][1] += size
        for row in self.ledger():
            if row["action"] == "dropped" and row["id"]:
                entry = sums[row["licence"], row["domain"], row["reason"]]
                entry[0] += 1
                entry[1] += row["bytes"]
        return [
            {
                "licence": licence,
                "domain": domain,
                "outcome": outcome,
                "documents": documents,
                "bytes": n_bytes,
            }
            for (licence, domain, outcome), (documents, n_bytes) in sorted(sums.items())
        ]

    def _samples(self) -> list[SampleRow]:
        """The first dropped documents of each reason in the order of their ids' hashes."""
        best: dict[tuple[str, str], list[tuple[str, SampleRow]]] = defaultdict(list)
        for row in self.ledger():
            if row["action"] == "dropped":
                here = best[row["step"], row["reason"]]
                sample: SampleRow = {
                    "step": row["step"],
                    "action": row["action"],
                    "reason": row["reason"],
                    "id": row["id"],
                    "path": row["path"],
                    "source": row["source"],
                    "domain": row["domain"],
                    "detail": row["detail"],
                    "excerpt": row["excerpt"],
                }
                here.append((hashlib.sha256(f"{row['id']}{row['path']}".encode()).hexdigest(), sample))
                here.sort(key=lambda pair: pair[0])
                del here[SAMPLES:]
        return [
            row for key in sorted(best, key=lambda k: (IN_LEDGER.index(k[0]), k[1])) for _, row in best[key]
        ]

    def _hash(self) -> str:
        """Hash of all documents with their sides and families, and of all ledger rows; not of how they were made."""
        digest = hashlib.sha256()
        lines = []
        for split in SPLITS:
            with pq.ParquetFile(self.folder / documents_file(split)) as file:
                for batch in file.iter_batches(batch_size=1024):
                    for row in batch.to_pylist():
                        text = hashlib.sha256(row.pop("text").encode()).hexdigest()
                        lines.append(
                            hashlib.sha256(repr((split, text, sorted(row.items()))).encode()).digest()
                        )
        for entry in self.ledger():
            lines.append(hashlib.sha256(repr(sorted(entry.items())).encode()).digest())
        for line in sorted(lines):
            digest.update(line)
        return digest.hexdigest()
