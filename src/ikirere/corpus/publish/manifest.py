"""Manifests: what a set of documents is (files, hashes, counts, parents), and mixtures of sets by weight.

A set is named `name:version`, such as `code:v0.1`. A mixture names sets and weights and holds no text of its own.
Each manifest carries the hash of itself, and a mixture those of its sets, so that one changed byte is found and named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from ikirere.common.files import file_sha256, json_sha256, write_json
from ikirere.errors import UserError

FORMAT = 1
FOLDER = "manifests"


class FileEntry(TypedDict):
    """A file below the manifests' root: path relative to it, bytes, sha256."""

    path: str
    size: int
    sha256: str


class SplitEntry(TypedDict):
    """A split of a set; ids: hash of its documents' ids."""

    documents: int
    bytes: int
    ids: str


class SetManifest(TypedDict):
    """A set of documents. rows: column -> value of those rows of the files that belong to it (empty: all)."""

    format: int
    kind: Literal["set"]
    name: str
    version: str
    files: list[FileEntry]
    rows: dict[str, str]
    splits: dict[str, SplitEntry]
    parents: list[dict[str, Any]]
    sha256: str


class WeightedSet(TypedDict):
    """A set as a mixture names it: `name:version`, the hash of its manifest, its share, bytes of its training split."""

    set: str
    sha256: str
    weight: float
    bytes: int


class MixtureManifest(TypedDict):
    """A mixture of sets."""

    format: int
    kind: Literal["mixture"]
    name: str
    version: str
    parents: list[WeightedSet]
    sha256: str


Manifest = SetManifest | MixtureManifest


def file_entry(root: Path, name: str) -> FileEntry:
    """A file as a manifest lists it."""
    return {"path": name, "size": (root / name).stat().st_size, "sha256": file_sha256(root / name)}


def own_hash(manifest: Mapping[str, Any]) -> str:
    """The hash that a manifest carries: of all its other entries."""
    return json_sha256({k: v for k, v in manifest.items() if k != "sha256"})


def set_manifest(
    name: str,
    version: str,
    files: Sequence[Mapping[str, Any]],
    splits: Mapping[str, Mapping[str, Any]],
    parents: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str] | None = None,
) -> SetManifest:
    """A set. splits: documents, bytes and the hash of the ids of each. parents: where it comes from (sources, or the
    manifest it was cut from). columns: values that a row of the files has to have to belong to the set."""
    body = {
        "format": FORMAT,
        "kind": "set",
        "name": name,
        "version": version,
        "files": list(files),
        "rows": dict(columns or {}),
        "splits": {k: dict(v) for k, v in splits.items()},
        "parents": [dict(p) for p in parents],
    }
    return cast(SetManifest, body | {"sha256": own_hash(body)})


def mixture_manifest(
    name: str, version: str, weights: Mapping[str, float], sets: Mapping[str, SetManifest]
) -> MixtureManifest:
    """A mixture of sets by weight (normalised). Raises UserError for a weight that names no set, and for weights that
    are all 0."""
    used = {k: w for k, w in weights.items() if w > 0}
    if unknown := sorted(set(used) - set(sets)):
        raise UserError(
            f"mixture {name}: the weight {unknown[0]!r} names no set; sets are {', '.join(sorted(sets)) or 'none'}"
        )
    if not used:
        raise UserError(f"mixture {name}: no set has a weight above 0")
    whole = sum(used.values())
    body = {
        "format": FORMAT,
        "kind": "mixture",
        "name": name,
        "version": version,
        "parents": [
            {
                "set": f"{k}:{sets[k]['version']}",
                "sha256": sets[k]["sha256"],
                "weight": used[k] / whole,
                "bytes": sets[k]["splits"]["train"]["bytes"] if "train" in sets[k]["splits"] else 0,
            }
            for k in sorted(used)
        ],
    }
    return cast(MixtureManifest, body | {"sha256": own_hash(body)})


def path_of(root: Path, name: str, version: str) -> Path:
    """Where the manifest of `name:version` is."""
    return root / FOLDER / name / f"{version}.json"


def write_manifest(root: Path, manifest: Manifest) -> str:
    """Write a manifest below `root`; its path relative to it."""
    path = path_of(root, manifest["name"], manifest["version"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, manifest)
    return path.relative_to(root).as_posix()


def read_manifests(root: Path) -> dict[str, Manifest]:
    """All manifests below `root` by `name:version`. Raises UserError naming one that is altered or damaged."""
    found = {}
    for path in sorted((root / FOLDER).glob("*/*.json")):
        try:
            manifest = json.loads(path.read_bytes())
            good = manifest["sha256"] == own_hash(manifest) and manifest["kind"] in ("set", "mixture")
        except (OSError, ValueError, KeyError, TypeError):
            good = False
        if not good:
            raise UserError(f"{path}: altered or damaged (its own hash does not fit); pull or build it again")
        if manifest["format"] != FORMAT:
            raise UserError(f"{path}: format {manifest['format']}, this version reads {FORMAT}")
        found[f"{manifest['name']}:{manifest['version']}"] = manifest
    if not found:
        raise UserError(f"{root}: no manifests there; give the data folder of a run, or a snapshot")
    return found


def verify(root: Path) -> list[str]:
    """Hash everything below `root` again; a line for each file that differs from its manifest, none where all is
    well."""
    wrong = []
    try:
        manifests = read_manifests(root)
    except UserError as error:
        return [str(error)]
    checked: dict[tuple[str, str], str | None] = {}
    for name, manifest in manifests.items():
        if manifest["kind"] == "set":
            for entry in manifest["files"]:
                key = (entry["path"], entry["sha256"])
                if key not in checked:
                    checked[key] = _file_fault(root, entry)
                if fault := checked[key]:
                    wrong.append(f"{name}: {fault}")
        else:
            for parent in manifest["parents"]:
                known = manifests.get(parent["set"])
                if known is None:
                    wrong.append(f"{name}: its set {parent['set']} is missing")
                elif known["sha256"] != parent["sha256"]:
                    wrong.append(f"{name}: its set {parent['set']} is another one than was mixed")
    return wrong


def _file_fault(root: Path, entry: FileEntry) -> str | None:
    path = root / entry["path"]
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != entry["size"]:
        return f"{path} has {path.stat().st_size} bytes, {entry['size']} were written"
    if file_entry(root, entry["path"])["sha256"] != entry["sha256"]:
        return f"{path} was altered (sha256 differs)"
    return None
