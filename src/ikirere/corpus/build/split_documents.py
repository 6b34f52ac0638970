"""The last step: documents to the two sides of the split, families whole, and the seal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ikirere.corpus.build.group_split import split
from ikirere.corpus.build.ingest import write_json
from ikirere.corpus.document import DOCUMENT_SCHEMA
from ikirere.corpus.seal import make_seal

SPLITS = ("train", "heldout")
SEAL = "seal.json"


def documents_file(split_name: str) -> str:
    """Name of a split's file in the data stage's folder."""
    return f"documents-{split_name}.parquet"


@dataclass
class Divided:
    """Counts by domain, the seal, notes for the user."""

    domains: list[dict[str, Any]]
    seal: dict[str, Any]
    notes: list[str]


def divide(parts: Sequence[Path], share: float, folder: Path, say: Callable[[str], None]) -> Divided:
    """Write documents-train.parquet, documents-heldout.parquet and seal.json.

    Groups that near-duplicates tie together count as one group. What is kept in memory is some 300 bytes per document.
    """
    columns = ["domain", "group", "id", "family"]
    entries: list[tuple[str, str, str, str, int]] = []
    for part in parts:
        table = pq.read_table(part, columns=[*columns, "text"])
        sizes = pc.binary_length(table.column("text")).to_pylist()
        domain, group, identity, family = (table.column(c).to_pylist() for c in columns)
        entries += zip(domain, group, identity, (f or i for f, i in zip(family, identity)), sizes)
    merged = _merged_groups(entries)
    decided = split(((d, merged[g], f, size) for d, g, _, f, size in entries), share)
    sides = [decided.heldout(d, merged[g], f) for d, g, _, f, _ in entries]
    torn = {e[3] for e, held in zip(entries, sides) if held} & {
        e[3] for e, held in zip(entries, sides) if not held
    }
    # A family can still be torn where one domain is split by document and another by group: training has it then.
    sides = [held and entry[3] not in torn for entry, held in zip(entries, sides)]
    notes = list(decided.notes)
    if torn:
        notes.append(
            f"{len(torn)} families of near-duplicates over several domains were kept in training whole"
        )
    for note in notes:
        say(note)
    _write(parts, sides, folder)
    seal = make_seal(
        {
            name: _side([e for e, held in zip(entries, sides) if held == (name == "heldout")])
            for name in SPLITS
        }
    )
    write_json(folder / SEAL, seal)
    return Divided(_domains(entries, sides), seal, notes)


def _side(entries: Sequence[tuple[str, str, str, str, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([e[2] for e in entries], dtype="S32"), np.array([e[3] for e in entries], dtype="S32")


def _merged_groups(entries: Sequence[tuple[str, str, str, str, int]]) -> dict[str, str]:
    """Each group's name for the split: the least of all groups that families tie to it."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: dict[str, str] = {}
    for _, group, _, family, _ in entries:
        a, b = root(first.setdefault(family, group)), root(group)
        if a != b:
            parent[max(a, b)] = min(a, b)
    return {group: root(group) for group in list(parent)}


def _write(parts: Sequence[Path], sides: Sequence[bool], folder: Path) -> None:
    paths = {name: folder / documents_file(name) for name in SPLITS}
    temporary = {name: path.with_name(path.name + ".part") for name, path in paths.items()}
    writers = {
        name: pq.ParquetWriter(t, DOCUMENT_SCHEMA, compression="zstd") for name, t in temporary.items()
    }
    try:
        at = 0
        for part in parts:
            table = pq.read_table(part).select(DOCUMENT_SCHEMA.names).cast(DOCUMENT_SCHEMA)
            held = pa.array(sides[at : at + len(table)], type=pa.bool_())
            at += len(table)
            families = pc.if_else(pc.equal(table["family"], ""), table["id"], table["family"])
            table = table.set_column(table.schema.get_field_index("family"), "family", families)
            for name, mask in (("train", pc.invert(held)), ("heldout", held)):
                if len(chosen := table.filter(mask)):
                    writers[name].write_table(chosen)
        for name, writer in writers.items():
            writer.close()
            temporary[name].replace(paths[name])
    finally:
        for name, writer in writers.items():
            writer.close()
            temporary[name].unlink(missing_ok=True)


def _domains(
    entries: Sequence[tuple[str, str, str, str, int]], sides: Sequence[bool]
) -> list[dict[str, Any]]:
    """Counts of each domain: documents, bytes and groups, whole and by split."""
    rows: dict[str, dict[str, Any]] = {}
    groups: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (domain, group, _, _, n_bytes), held in zip(entries, sides):
        name = "heldout" if held else "train"
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
