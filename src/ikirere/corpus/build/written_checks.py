"""What must not be in the documents that were written, counted in these documents alone.

The steps' verdicts are not used. Near-duplicates are looked for with permutations other than those that dropped them,
and confirmed by the exact Jaccard similarity; evaluation items are looked for in the texts as training reads them. So
what a step rewrote after the others had judged it, and what LSH missed the first time, is counted too.

Cost: each split is examined whole up to EXAMINED_BYTES of text, else in a sample of about that size, drawn by seed and
ids; a check takes no longer than on that much text, whatever the corpus, but for reading the files once. The rows give
how many documents and bytes were examined. Of a sample with the share p of a split, pairs inside the split are seen
with probability p^2 only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ikirere.corpus.build.split_documents import DomainRow
from ikirere.corpus.dedup.near import find_near_duplicates
from ikirere.corpus.dedup.signatures import SEED
from ikirere.corpus.executor import Engine
from ikirere.corpus.parts import Part, write_view
from ikirere.corpus.seal import SPLITS, documents_file
from ikirere.corpus.steps.decontaminate import Decontaminator
from ikirere.corpus.steps.sample import draw
from ikirere.recipe.hygiene import NearDuplicates

EXAMINED_BYTES = 64_000_000  # of text of a split
OTHER_SEED = SEED + 1  # of the permutations
BATCH_ROWS = 1024
NEAR, LEAKS, UNCHECKED = "near_duplicate_pairs_left", "contaminated_documents", "unchecked_evaluation_sets"


class CheckRow(TypedDict):
    """count: what was found, which ought to be 0. documents, bytes: examined; of_documents, of_bytes: written (of
    evaluation sets: read, and named)."""

    check: str
    count: int
    documents: int
    of_documents: int
    bytes: int
    of_bytes: int


@dataclass
class WrittenChecks:
    """The checks of one build. work: a folder for temporary files."""

    folder: Path
    work: Path
    domains: Sequence[DomainRow]
    seed: int
    say: Callable[[str], None]

    def near_duplicates(self, settings: NearDuplicates, engine: Engine) -> CheckRow:
        """Pairs of training documents, and of a training and a held-out one, at or above the threshold. Of more than
        64 documents that share a band, those that are similar to one that stays (`find_near_duplicates`)."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        train, heldout = (self._examined(split) for split in SPLITS)
        found = find_near_duplicates([train], settings, engine, self.work, [heldout], seed=OTHER_SEED)
        return self._row(NEAR, pq.read_metadata(found.pairs).num_rows, train, heldout)

    def evaluation_items(self, decontaminator: Decontaminator) -> CheckRow:
        """Training documents that hold an evaluation item, by the rules of the step."""
        self.work.mkdir(parents=True, exist_ok=True)
        train = self._examined("train")
        count = 0
        with Part(train) as part:
            for batch in part.batches(BATCH_ROWS, ["text"], range(len(part.groups))):
                count += sum(decontaminator.contaminated(batch.column("text").to_pylist()))
        return self._row(LEAKS, count, train)

    def _examined(self, split: str) -> Path:
        """The split's file, or a view of the documents drawn from it."""
        path = self.folder / documents_file(split)
        whole = sum(row["train_bytes" if split == "train" else "heldout_bytes"] for row in self.domains)
        if whole <= EXAMINED_BYTES:
            return path
        limit = int(EXAMINED_BYTES / whole * 2**64)
        view = self.work / f"{split}.parquet"
        with Part(path) as part:
            documents = part.read(["id", "family"])
            drawn = [draw(self.seed, identity) < limit for identity in documents.column("id").to_pylist()]
            rows = np.flatnonzero(drawn)
            write_view(view, part, rows, documents.column("family").take(pa.array(rows)).combine_chunks())
        return view

    def _row(self, check: str, count: int, *examined: Path) -> CheckRow:
        documents = n_bytes = 0
        for path in examined:
            with Part(path) as part:
                documents += len(part.rows)
                for batch in part.batches(BATCH_ROWS, ["text"], range(len(part.groups))):
                    n_bytes += pc.sum(pc.binary_length(batch.column("text"))).as_py()
        splits = SPLITS[: len(examined)]
        of_documents = of_bytes = 0
        for row in self.domains:
            of_documents += row["train_documents"] + row["heldout_documents"] * ("heldout" in splits)
            of_bytes += row["train_bytes"] + row["heldout_bytes"] * ("heldout" in splits)
        share = n_bytes / of_bytes if of_bytes else 1.0
        self.say(f"{check}: {count} in {documents} of {of_documents} documents ({share:.1%} of the text)")
        return {
            "check": check,
            "count": count,
            "documents": documents,
            "of_documents": of_documents,
            "bytes": n_bytes,
            "of_bytes": of_bytes,
        }


def unchecked_sets(missing: Sequence[str]) -> CheckRow:
    """Evaluation sets that could not be read. missing: of each set why, '' where it was."""
    count = sum(map(bool, missing))
    return {
        "check": UNCHECKED,
        "count": count,
        "documents": len(missing) - count,
        "of_documents": len(missing),
        "bytes": 0,
        "of_bytes": 0,
    }
