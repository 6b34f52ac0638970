"""What a tokenizer is trained on: a sample of the training documents by domain, the same for the same seed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ikirere.corpus.document import read_documents
from ikirere.errors import UserError


@dataclass(frozen=True)
class Sample:
    """A choice of documents. `taken` and `wanted` are bytes by domain."""

    parquet: Path
    bytes_of: Mapping[str, int]  # document id -> how many of its first bytes
    taken: Mapping[str, int]
    wanted: Mapping[str, int]

    def __iter__(self) -> Iterator[str]:
        """The texts, in the file's order; the last of a domain is cut where its share ends."""
        for row in read_documents(self.parquet, ("id", "text")):
            if size := self.bytes_of.get(row["id"], 0):
                data = row["text"].encode()
                yield row["text"] if len(data) <= size else data[:size].decode(errors="ignore")


def choose_sample(parquet: Path, train_bytes: int, mixture: Mapping[str, float], seed: int) -> Sample:
    """Documents up to `train_bytes`, shared among domains by `mixture` (empty: as the data is).

    Within a domain documents are taken in the order of a hash of seed and id. A domain with less than its share gives
    all that it has. Raises UserError naming a domain of the mixture that no document has.
    """
    documents = _sizes(parquet, seed)
    has = {domain: sum(size for _, _, size in rows) for domain, rows in documents.items()}
    if missing := sorted(set(mixture) - set(has)):
        raise UserError(
            f"tokenizer.mixture: no training document has the domain {', '.join(missing)}; "
            f"domains are {', '.join(sorted(has)) or 'none'}"
        )
    weights: Mapping[str, float] = mixture or has
    total = sum(weights.values())
    if not total:
        raise UserError("tokenizer.mixture: all weights are 0; give at least one domain a weight")
    wanted = {domain: int(min(train_bytes, sum(has.values())) * w / total) for domain, w in weights.items()}
    bytes_of: dict[str, int] = {}
    taken: dict[str, int] = {}
    for domain, share in wanted.items():
        left = share
        for _, name, size in sorted(documents[domain]):
            if left <= 0:
                break
            bytes_of[name] = min(size, left)
            left -= bytes_of[name]
        taken[domain] = share - left
    return Sample(parquet, bytes_of, taken, wanted)


def _sizes(parquet: Path, seed: int) -> dict[str, list[tuple[bytes, str, int]]]:
    """(order, id, bytes) of each document, by domain."""
    found: dict[str, list[tuple[bytes, str, int]]] = defaultdict(list)
    for row in read_documents(parquet, ("id", "domain", "text")):
        order = hashlib.sha256(f"{seed}:{row['id']}".encode()).digest()[:8]
        found[row["domain"]].append((order, row["id"], len(row["text"].encode())))
    return found
