"""Rows of the stages: documents of the data stage, conversations by the recipe's mixture, rows kept over a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from ikirere.common.files import json_sha256, read_rows, write_rows, write_text
from ikirere.corpus.document import read_documents
from ikirere.errors import UserError
from ikirere.posttrain.generate import KINDS, Row, Split, conversations
from ikirere.posttrain.generate.context import SourceDocument

T = TypeVar("T", bound=Mapping[str, Any])

DOCUMENT_BYTES = 64_000_000  # of text read from the data stage; more would bring no other questions


def sample_documents(path: Path, seed: int) -> list[SourceDocument]:
    """`text`, `path` and `domain` of documents of a Parquet file, row groups in an order of the seed, up to about
    DOCUMENT_BYTES. Raises UserError where the file cannot be read."""
    documents: list[SourceDocument] = []
    read = 0
    for row in read_documents(path, ("text", "path", "domain"), seed):
        documents.append(cast("SourceDocument", row))
        read += len(row["text"])
        if read >= DOCUMENT_BYTES:
            break
    return documents


def shares(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """`total` distributed by weight, by largest remainder; each kind of weight above 0 gets at least one.

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
    documents: Sequence[SourceDocument],
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


def kept_rows(folder: Path, name: str, made_from: Any, make: Callable[[], Iterable[T]]) -> list[T]:
    """Rows of `folder/name` where they were made from equal settings; else `make()`, written whole.

    made_from: JSON-able; its hash lies beside the rows, as `<name>.made-from`.
    """
    path, marker = folder / name, folder / f"{name}.made-from"
    wanted = json_sha256(made_from)
    if not (path.is_file() and marker.is_file() and marker.read_text(encoding="utf-8") == wanted):
        marker.unlink(missing_ok=True)
        write_rows(path, make())
        write_text(marker, wanted)
    return cast("list[T]", read_rows(path))
