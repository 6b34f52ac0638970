"""The last step: documents to the two sides of the split, families whole, and the seal."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ikirere.common.files import atomic, write_json
from ikirere.corpus.build.group_split import split
from ikirere.corpus.document import DOCUMENT_SCHEMA
from ikirere.corpus.parts import read_part
from ikirere.corpus.seal import SEAL, SPLITS, Seal, documents_file, make_seal

Entry = tuple[str, str, str, str, int]  # domain, group, id, family, bytes of a document


class DomainRow(TypedDict):
    """Documents, UTF-8 bytes and groups of a domain, whole and by split."""

    domain: str
    documents: int
    bytes: int
    train_documents: int
    train_bytes: int
    heldout_documents: int
    heldout_bytes: int
    train_groups: int
    heldout_groups: int


@dataclass
class DocumentSplit:
    """Counts by domain, the seal, notes for the user."""

    domains: list[DomainRow]
    seal: Seal
    notes: list[str]


def split_documents(
    parts: Sequence[Path], share: float, folder: Path, say: Callable[[str], None]
) -> DocumentSplit:
    """Write documents-train.parquet, documents-heldout.parquet and seal.json.

    Groups that near-duplicates tie together count as one group. What is kept in memory is some 300 bytes per document.
    """
    columns = ["domain", "group", "id", "family"]
    entries: list[Entry] = []
    for part in parts:
        table = read_part(part, [*columns, "text"])
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
    return DocumentSplit(_domains(entries, sides), seal, notes)


def _side(entries: Sequence[Entry]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([e[2] for e in entries], dtype="S32"), np.array([e[3] for e in entries], dtype="S32")


def _merged_groups(entries: Sequence[Entry]) -> dict[str, str]:
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
    with ExitStack() as files:
        writers = {}
        for name in SPLITS:
            handle = files.enter_context(atomic(folder / documents_file(name), "wb"))
            writers[name] = files.enter_context(pq.ParquetWriter(handle, DOCUMENT_SCHEMA, compression="zstd"))
        at = 0
        for part in parts:
            table = read_part(part).select(DOCUMENT_SCHEMA.names).cast(DOCUMENT_SCHEMA)
            held = pa.array(sides[at : at + len(table)], type=pa.bool_())
            at += len(table)
            families = pc.if_else(pc.equal(table["family"], ""), table["id"], table["family"])
            table = table.set_column(table.schema.get_field_index("family"), "family", families)
            for name, mask in (("train", pc.invert(held)), ("heldout", held)):
                if len(chosen := table.filter(mask)):
                    writers[name].write_table(chosen)


def _domains(entries: Sequence[Entry], sides: Sequence[bool]) -> list[DomainRow]:
    documents: Counter[tuple[str, bool]] = Counter()
    sizes: Counter[tuple[str, bool]] = Counter()
    groups: dict[tuple[str, bool], set[str]] = defaultdict(set)
    for (domain, group, _, _, n_bytes), held in zip(entries, sides):
        documents[domain, held] += 1
        sizes[domain, held] += n_bytes
        groups[domain, held].add(group)
    return [
        {
            "domain": domain,
            "documents": documents[domain, False] + documents[domain, True],
            "bytes": sizes[domain, False] + sizes[domain, True],
            "train_documents": documents[domain, False],
            "train_bytes": sizes[domain, False],
            "heldout_documents": documents[domain, True],
            "heldout_bytes": sizes[domain, True],
            "train_groups": len(groups[domain, False]),
            "heldout_groups": len(groups[domain, True]),
        }
        for domain in sorted({domain for domain, _ in documents})
    ]
