"""What the stages feed to training: conversations by the recipe's mixture, documents of the data stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ikirere.corpus.document import read_documents
from ikirere.errors import UserError
from ikirere.posttrain.generate import KINDS, Row, Split, conversations

DOCUMENT_BYTES = 64_000_000  # of text read from the data stage; more would bring no other questions


def sample_documents(path: Path, seed: int) -> list[dict[str, Any]]:
    """`text`, `path` and `domain` of documents of a Parquet file, row groups in an order of the seed, up to about
    DOCUMENT_BYTES. Raises UserError where the file cannot be read."""
    documents: list[dict[str, Any]] = []
    read = 0
    for row in read_documents(path, ("text", "path", "domain"), seed):
        documents.append(row)
        read += len(row["text"])
        if read >= DOCUMENT_BYTES:
            break
    return documents


def shares(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """`total` dealt out by weight, by largest remainder; each kind of weight above 0 gets at least one.

    Raises UserError for a weight of an unknown kind and where all are 0.
    """
    unknown = sorted(set(weights) - set(KINDS))
    if unknown:
        raise UserError(f"sft.mixture.{unknown[0]}: no such kind; kinds are {', '.join(KINDS)}")
    used = {kind: weight for kind, weight in weights.items() if weight > 0}
    if not used:
        raise UserError(f"sft.mixture: no kind has a weight above 0; kinds are {', '.join(KINDS)}")
    whole = sum(used.values())
    exact = {kind: total * weight / whole for kind, weight in used.items()}
    counts = {kind: int(value) for kind, value in exact.items()}
    rest = sorted(used, key=lambda kind: (counts[kind] - exact[kind], kind))
    for kind in rest[: total - sum(counts.values())]:
        counts[kind] += 1
    return {kind: max(1, count) for kind, count in counts.items()}


def mixed(
    counts: Mapping[str, int],
    seed: int,
    split: Split,
    documents: Sequence[Mapping[str, Any]],
    say: Callable[[str], None],
    on_kind: Callable[[int], None] | None = None,
) -> list[Row]:
    """So many conversations of each kind; one line where a kind has fewer."""
    rows: list[Row] = []
    for kind, count in counts.items():
        made = conversations(kind, count, seed, split, documents)
        if len(made) < count:
            say(f"kind {kind}: {len(made)} different {split} questions, {count} were wanted")
        rows += made
        if on_kind is not None:
            on_kind(len(made))
    return rows


def fingerprint(*values: Any) -> str:
    """SHA-256 of JSON-able values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def files_fingerprint(names: Sequence[str], recipe_folder: Path) -> str:
    """SHA-256 over the contents of files named in the recipe; a missing one counts by its name."""
    digest = hashlib.sha256()
    for name in names:
        path = Path(name).expanduser()
        path = path if path.is_absolute() else recipe_folder / path
        digest.update(name.encode() + b"\0")
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
