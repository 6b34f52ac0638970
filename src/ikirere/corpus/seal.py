"""The seal between training and held-out text: which documents are on which side, and that no family is on both.

It is made when documents are split, travels with their shards, and is checked again whenever shards are opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

from ikirere.common.files import json_sha256
from ikirere.errors import UserError

SPLITS = ("train", "heldout")
SEAL = "seal.json"
Side = tuple[np.ndarray, np.ndarray]  # ids and families, both bytes [n] (dtype S32)


class SealedSplit(TypedDict):
    """Documents of a split and `ids_hash` of their ids."""

    documents: int
    ids: str


class SealBody(TypedDict):
    """What is sealed. families: distinct ones over all splits."""

    format: int
    splits: dict[str, SealedSplit]
    families: int


class Seal(SealBody):
    """seal.json. sha256: of the body's canonical JSON."""

    sha256: str


def documents_file(split_name: str) -> str:
    """Name of a split's file in the data stage's folder."""
    return f"documents-{split_name}.parquet"


def ids_hash(ids: np.ndarray) -> str:
    """Hex sha256 of a set of ids (bytes), whatever their order."""
    return hashlib.sha256(b"\n".join(np.sort(ids).tolist())).hexdigest()


def make_seal(sides: Mapping[str, Side]) -> Seal:
    """The seal of some splits. Raises UserError where a family is in two of them."""
    body: SealBody = {
        "format": 1,
        "splits": {name: {"documents": len(ids), "ids": ids_hash(ids)} for name, (ids, _) in sides.items()},
        "families": len(np.unique(np.concatenate([families for _, families in sides.values()]))),
    }
    _check_families(sides, "data")
    return {**body, "sha256": json_sha256(body)}


def check_seal(seal: Mapping[str, Any], sides: Mapping[str, Side], where: str) -> None:
    """Raises UserError, naming `where`, where the seal was altered, documents are on other sides than it records, or
    a family of near-duplicates straddles two splits."""
    if seal.get("sha256") != json_sha256({k: v for k, v in seal.items() if k != "sha256"}):
        raise UserError(
            f"{where}: the seal was altered (its own hash does not fit); run the data stage again"
        )
    for name, entry in seal["splits"].items():
        ids = sides[name][0] if name in sides else np.empty(0, dtype="S32")
        if len(ids) != entry["documents"] or ids_hash(ids) != entry["ids"]:
            raise UserError(
                f"{where}: the seal is broken: split {name} has other documents ({len(ids)}) than were sealed "
                f"({entry['documents']}); run the data and shards stages again"
            )
    _check_families(sides, where)


def _check_families(sides: Mapping[str, Side], where: str) -> None:
    names = sorted(sides)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            shared = np.intersect1d(sides[one][1], sides[other][1])
            if len(shared):
                raise UserError(
                    f"{where}: the seal is broken: {len(shared)} families of near-duplicates are in both {one} and "
                    f"{other}, first {shared[0].decode()}; run the data and shards stages again"
                )
