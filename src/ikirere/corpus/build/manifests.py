"""Manifests of a build: a set for each domain, and a mixture of sets for each phase that names one."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ikirere.corpus.build.split_documents import DomainRow
from ikirere.corpus.publish.manifest import (
    FOLDER,
    Manifest,
    SetManifest,
    WeightedSet,
    file_entry,
    mixture_manifest,
    read_manifests,
    set_manifest,
    write_manifest,
)
from ikirere.corpus.readers import fingerprint
from ikirere.corpus.seal import SPLITS, documents_file, ids_hash
from ikirere.recipe.data import Data

Weights = Mapping[str, Mapping[str, float]]  # by mixture and domain


class MixtureRow(TypedDict):
    """A mixture's name with its version, the hash of its manifest, and the sets it is made of."""

    mixture: str
    sha256: str
    parents: list[WeightedSet]


def write_manifests(
    folder: Path, data: Data, recipe_folder: Path, domains: Sequence[DomainRow], mixtures: Weights
) -> list[MixtureRow]:
    """All manifests of the documents in `folder`, below `folder/manifests`. Raises UserError for a mixture that names
    no set."""
    files = [file_entry(folder, documents_file(s)) for s in SPLITS]
    parents = [
        {"source": s.name, "kind": s.kind, "fingerprint": fingerprint(s, recipe_folder)} for s in data.sources
    ]
    ids: dict[tuple[str, str], list[bytes]] = defaultdict(list)
    for split in SPLITS:
        table = pq.read_table(folder / documents_file(split), columns=["id", "domain"])
        for domain in table.column("domain").unique().to_pylist():
            mine = table.filter(pc.equal(table.column("domain"), domain))
            ids[domain, split] = mine.column("id").to_pylist()
    sets = {}
    for row in domains:
        name = row["domain"]
        counts = {
            "train": (row["train_documents"], row["train_bytes"]),
            "heldout": (row["heldout_documents"], row["heldout_bytes"]),
        }
        splits = {
            s: {"documents": documents, "bytes": n_bytes, "ids": ids_hash(np.array(ids[name, s], "S32"))}
            for s, (documents, n_bytes) in counts.items()
        }
        sets[name] = set_manifest(name, data.version, files, splits, parents, {"domain": name})
    return _write(folder, data.version, sets, mixtures)


def rewrite_manifests(folder: Path, version: str, mixtures: Weights) -> list[MixtureRow]:
    """The same sets under this version, and these mixtures, instead of the manifests that are there."""
    sets = {}
    for known in read_manifests(folder).values():
        if known["kind"] == "set":
            name, files, splits = known["name"], known["files"], known["splits"]
            sets[name] = set_manifest(name, version, files, splits, known["parents"], known["rows"])
    return _write(folder, version, sets, mixtures)


def _write(
    folder: Path, version: str, sets: Mapping[str, SetManifest], mixtures: Weights
) -> list[MixtureRow]:
    mixed = {name: mixture_manifest(name, version, weights, sets) for name, weights in mixtures.items()}
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    everything: list[Manifest] = [*sets.values(), *mixed.values()]
    for manifest in everything:
        write_manifest(folder, manifest)
    return [
        {"mixture": f"{name}:{version}", "sha256": manifest["sha256"], "parents": manifest["parents"]}
        for name, manifest in mixed.items()
    ]
