"""Sources to documents: filtered, without copies, split, with a ledger of all that was left out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from ikirere.data.dedup import ExactDedup
from ikirere.data.document import DOCUMENT_SCHEMA, Document, TableWriter, read_rows
from ikirere.data.licence import is_permissive
from ikirere.data.sources import open_source
from ikirere.data.sources.text import BAD_ROW, BINARY, UNDECODABLE, UNREADABLE
from ikirere.data.split import split
from ikirere.errors import UserError
from ikirere.recipe.sections import Data

SPLITS = ("train", "heldout")
TOO_LONG, LICENCE, DUPLICATE = "too-long", "licence", "duplicate"
DAMAGED = (BINARY, UNDECODABLE, UNREADABLE, BAD_ROW)  # reasons that the user is told of while it runs

# One row per document or file that is not in the result. id is '' for files that never became a document;
# kept is the id of the copy that stayed.
DROPPED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "path", "reason", "kept", "source", "domain", "licence")]
    + [("bytes", pa.int64())]
)


def documents_file(split_name: str) -> str:
    """Name of a split's file in the data stage's folder."""
    return f"documents-{split_name}.parquet"


class _Tally:
    """Documents and bytes by some key."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])

    def add(self, *key: str, n_bytes: int) -> None:
        entry = self.sums[key]
        entry[0] += 1
        entry[1] += n_bytes

    def rows(self, *names: str) -> list[dict[str, Any]]:
        return [
            dict(zip(names, key)) | {"documents": documents, "bytes": n_bytes}
            for key, (documents, n_bytes) in sorted(self.sums.items())
        ]


class _Filter:
    """Decides on each document and keeps the ledger."""

    def __init__(self, config: Data, dropped: TableWriter) -> None:
        self.config, self.dropped = config, dropped
        self.dedup = ExactDedup()
        self.reasons, self.licences = _Tally(), _Tally()
        self.damaged: dict[str, list[str]] = defaultdict(
            list
        )  # source -> files that should have been readable

    def skipped(self, path: str, reason: str, source: str) -> None:
        """A file that gave no document."""
        self.dropped.add({"id": "", "path": path, "reason": reason, "kept": "", "source": source, "bytes": 0})
        self.reasons.add(reason, n_bytes=0)
        if reason in DAMAGED:
            self.damaged[source].append(f"{path} ({reason})")

    def keeps(self, document: Document) -> bool:
        kept: str | None = None
        if document.n_bytes > self.config.max_document_bytes:
            reason = TOO_LONG
        elif self.config.licences == "permissive" and not is_permissive(document.licence):
            reason = LICENCE
        elif kept := self.dedup.kept_copy(document.id, document.text):
            reason = DUPLICATE
        else:
            self.licences.add(document.licence, document.domain, "kept", n_bytes=document.n_bytes)
            return True
        row = document.row() | {"reason": reason, "kept": kept or "", "bytes": document.n_bytes}
        del row["text"]
        self.dropped.add(row)
        self.reasons.add(reason, n_bytes=document.n_bytes)
        self.licences.add(document.licence, document.domain, reason, n_bytes=document.n_bytes)
        return False


def build(
    config: Data,
    recipe_folder: Path,
    folder: Path,
    advance: Callable[[int], None] = lambda amount: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write documents-train.parquet, documents-heldout.parquet, dropped.parquet and counts.json into `folder`.

    In this order: longest allowed text, licence policy, exact duplicates (the first copy in the order of the
    sources is kept), split by group. Deterministic for equal sources. Texts pass through one by one; what is kept
    in memory is some 300 bytes per document.
    advance: called with the UTF-8 bytes of each document read.
    Returns the counts: `domains`, `licences`, `dropped` as lists of rows, `notes` as lines.
    Raises UserError for an empty source, and for a domain of which nothing is left.
    """
    staging = folder / "documents.parquet"
    entries: list[tuple[str, str, str, int]] = []
    with TableWriter(folder / "dropped.parquet", DROPPED_SCHEMA) as dropped:
        judge = _Filter(config, dropped)
        with TableWriter(staging, DOCUMENT_SCHEMA) as writer:
            for source in config.sources:
                read: set[str] = set()

                def skipped(path: str, reason: str, source_name: str = source.name) -> None:
                    judge.skipped(path, reason, source_name)

                for document in open_source(source, recipe_folder, skipped, say):
                    advance(document.n_bytes)
                    read.add(document.domain)
                    if judge.keeps(document):
                        writer.add(document.row())
                        entries.append((document.domain, document.group, document.id, document.n_bytes))
                if bad := judge.damaged[source.name]:
                    say(
                        f"source {source.name}: {len(bad)} files or rows left out, first {bad[0]}; see dropped.parquet"
                    )
                _nothing_left(config, source.name, read, {e[0] for e in entries})
    decided = split(entries, config.heldout)
    heldout = {e[2] for e in entries if decided.heldout(*e[:3])}
    _write_splits(folder, staging, heldout)
    domains = _domains(entries, heldout)
    counts = {
        "domains": domains,
        "licences": judge.licences.rows("licence", "domain", "outcome"),
        "dropped": judge.reasons.rows("reason"),
        "notes": decided.notes,
    }
    for row in domains:
        if config.heldout < 1 and not row["train_documents"]:
            raise UserError(
                f"data.heldout: {config.heldout} leaves no training document in the domain {row['domain']}; "
                "lower it or give the domain more documents"
            )
    for note in decided.notes:
        say(note)
    part = folder / "counts.json.part"
    part.write_text(json.dumps(counts, indent=1), encoding="utf-8")
    part.replace(folder / "counts.json")
    return counts


def _nothing_left(config: Data, source: str, read: set[str], kept: set[str]) -> None:
    for domain in sorted(read - kept):
        raise UserError(
            f"data.sources ({source}): every document of the domain {domain} was dropped (data.licences "
            f"{config.licences!r}, data.max_document_bytes {config.max_document_bytes}, duplicates); "
            "set `data.licences: any`, raise the limit or name another source"
        )


def _write_splits(folder: Path, staging: Path, heldout: set[str]) -> None:
    train_path, heldout_path = (folder / documents_file(name) for name in SPLITS)
    with (
        TableWriter(train_path, DOCUMENT_SCHEMA) as train,
        TableWriter(heldout_path, DOCUMENT_SCHEMA) as held,
    ):
        for row in read_rows(staging):
            (held if row["id"] in heldout else train).add(row)
    staging.unlink()


def _domains(entries: list[tuple[str, str, str, int]], heldout: set[str]) -> list[dict[str, Any]]:
    """Counts of each domain: documents, bytes and groups, whole and by split."""
    rows: dict[str, dict[str, Any]] = {}
    groups: dict[tuple[str, str], set[str]] = defaultdict(set)
    for domain, group, identity, n_bytes in entries:
        name = "heldout" if identity in heldout else "train"
        row = rows.setdefault(
            domain,
            {"domain": domain}
            | {f"{s}{k}": 0 for s in ("", "train_", "heldout_") for k in ("documents", "bytes")},
        )
        for prefix in ("", f"{name}_"):
            row[f"{prefix}documents"] += 1
            row[f"{prefix}bytes"] += n_bytes
        groups[domain, name].add(group)
    for domain, row in rows.items():
        row |= {f"{name}_groups": len(groups[domain, name]) for name in SPLITS}
    return [rows[domain] for domain in sorted(rows)]
