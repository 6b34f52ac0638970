"""What a build leaves for people and later stages: counts, samples, manifests, and one hash of it all."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ikirere.corpus.build.ingest import write_json
from ikirere.corpus.build.split_documents import SPLITS, Divided, documents_file
from ikirere.corpus.build.step_runner import StepFigures
from ikirere.corpus.publish.manifest import file_entry, mixture_manifest, set_manifest, write_manifest
from ikirere.corpus.readers import fingerprint
from ikirere.corpus.seal import ids_hash
from ikirere.corpus.steps.step import LEDGER_SCHEMA
from ikirere.recipe.data import Data

SAMPLES = 3  # dropped documents per reason that counts.json shows
IN_LEDGER = (
    "read",
    "normalise",
    "licence",
    "exact",
    "near",
    "language",
    "pii",
    "policy",
    "quality",
    "decontaminate",
)


@dataclass
class Records:
    """Everything that is derived from the final documents and the ledgers."""

    folder: Path
    data: Data
    recipe_folder: Path
    divided: Divided
    figures: Sequence[StepFigures]
    mixtures: Mapping[str, Mapping[str, float]]

    def write(self) -> dict[str, Any]:
        """Write manifests and counts.json; the counts."""
        domains = self.divided.domains
        counts: dict[str, Any] = {
            "domains": domains,
            "steps": [step.row() for step in self.figures],
            "dropped": self._reasons(),
            "licences": self._licences(),
            "samples": self._samples(),
            "mixtures": self._manifests(),
            "checks": self._checks(),
            "notes": self.divided.notes,
            "seal": self.divided.seal["sha256"],
            "sha256": self._hash(),
        }
        write_json(self.folder / "counts.json", counts)
        return counts

    def ledger(self, columns: list[str]) -> list[dict[str, Any]]:
        """Rows of all ledgers, step by step."""
        rows: list[dict[str, Any]] = []
        for step in IN_LEDGER:
            path = self.folder / "ledger" / f"{step}.parquet"
            if path.is_file():
                rows += pq.read_table(path, columns=columns).to_pylist()
        return rows

    def _checks(self) -> list[dict[str, Any]]:
        """What must not be: counted in what training reads, each only where its step ran."""
        train = set(
            pq.read_table(self.folder / documents_file("train"), columns=["id"]).column("id").to_pylist()
        )
        heldout = set(
            pq.read_table(self.folder / documents_file("heldout"), columns=["id"]).column("id").to_pylist()
        )
        found = []
        pairs = self.folder / "ledger" / "near-pairs.parquet"
        if pairs.is_file():
            table = pq.read_table(pairs, columns=["a", "b"])
            both = zip(table.column("a").to_pylist(), table.column("b").to_pylist())
            kept = train | heldout
            found.append(
                {"check": "near_duplicate_pairs_left", "count": sum(a in kept and b in kept for a, b in both)}
            )
        matches = self.folder / "ledger" / "decontaminate-matches.parquet"
        if matches.is_file():
            table = pq.read_table(matches, columns=["id", "contaminated"]).to_pylist()
            left = {row["id"] for row in table if row["contaminated"]} & train
            found.append({"check": "contaminated_documents", "count": len(left)})
        sets = self.folder / "ledger" / "decontaminate-sets.parquet"
        if sets.is_file():
            missing = pq.read_table(sets, columns=["missing"]).column("missing").to_pylist()
            found.append({"check": "unchecked_evaluation_sets", "count": sum(map(bool, missing))})
        return found

    def _reasons(self) -> list[dict[str, Any]]:
        sums: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
        for row in self.ledger(["step", "action", "reason", "bytes"]):
            entry = sums[row["step"], row["action"], row["reason"]]
            entry[0] += 1
            entry[1] += row["bytes"] or 0
        return [
            {"step": step, "action": action, "reason": reason, "documents": documents, "bytes": n_bytes}
            for (step, action, reason), (documents, n_bytes) in sorted(
                sums.items(), key=lambda item: (IN_LEDGER.index(item[0][0]), *item[0][1:])
            )
        ]

    def _licences(self) -> list[dict[str, Any]]:
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
        for row in self.ledger(["action", "reason", "licence", "domain", "id", "bytes"]):
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

    def _samples(self) -> list[dict[str, Any]]:
        """The first dropped documents of each reason in the order of their ids' hashes."""
        best: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        columns = ["step", "action", "reason", "id", "path", "source", "domain", "detail", "excerpt"]
        for row in self.ledger(columns):
            if row["action"] == "dropped":
                here = best[row["step"], row["reason"]]
                here.append((hashlib.sha256(f"{row['id']}{row['path']}".encode()).hexdigest(), row))
                here.sort(key=lambda pair: pair[0])
                del here[SAMPLES:]
        return [
            row for key in sorted(best, key=lambda k: (IN_LEDGER.index(k[0]), k[1])) for _, row in best[key]
        ]

    def _manifests(self) -> list[dict[str, Any]]:
        files = [file_entry(self.folder, documents_file(s)) for s in SPLITS]
        parents = [
            {"source": s.name, "kind": s.kind, "fingerprint": fingerprint(s, self.recipe_folder)}
            for s in self.data.sources
        ]
        ids: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
        for split in SPLITS:
            table = pq.read_table(self.folder / documents_file(split), columns=["id", "domain"])
            for domain in table.column("domain").unique().to_pylist():
                mine = table.filter(pc.equal(table.column("domain"), domain)).column("id").to_pylist()
                ids[domain, split].append(np.array(mine, dtype="S32"))
        sets = {}
        for row in self.divided.domains:
            name = row["domain"]
            splits = {
                s: {
                    "documents": row[f"{s}_documents"],
                    "bytes": row[f"{s}_bytes"],
                    "ids": ids_hash(np.concatenate(ids[name, s]))
                    if ids.get((name, s))
                    else ids_hash(np.empty(0, "S32")),
                }
                for s in SPLITS
            }
            sets[name] = set_manifest(name, self.data.version, files, splits, parents, {"domain": name})
            write_manifest(self.folder, sets[name])
        made = []
        for name, weights in self.mixtures.items():
            mixed = mixture_manifest(name, self.data.version, weights, sets)
            write_manifest(self.folder, mixed)
            made.append(
                {
                    "mixture": f"{name}:{self.data.version}",
                    "sha256": mixed["sha256"],
                    "parents": mixed["parents"],
                }
            )
        return made

    def _hash(self) -> str:
        """Of all documents with their sides and families, and of all ledger rows; not of how or when."""
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
        for row in self.ledger(LEDGER_SCHEMA.names):
            lines.append(hashlib.sha256(repr(sorted(row.items())).encode()).digest())
        for line in sorted(lines):
            digest.update(line)
        return digest.hexdigest()
