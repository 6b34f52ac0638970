"""Evaluation sets, read for what of them must not be in training text.

`read_evaluation_set("gsm8k:test")` yields the items of a set by name, `path:/some/file.jsonl#field` those of
any file. Sets are looked for below `$IKIRERE_DATA/benchmarks` first, then on the hub. Scoring has readers of
its own: here an item is only the text, or the grids, whose presence in a document is a leak.
"""

from ikirere.corpus.contamination.evaluation_sets.items import Item, SetMissing
from ikirere.corpus.contamination.evaluation_sets.read import (
    content_fingerprint,
    fingerprint,
    hub_away,
    read_evaluation_set,
    resolve,
)
from ikirere.corpus.contamination.evaluation_sets.registry import SETS, EvaluationSet

__all__ = [
    "SETS",
    "EvaluationSet",
    "Item",
    "SetMissing",
    "content_fingerprint",
    "fingerprint",
    "hub_away",
    "read_evaluation_set",
    "resolve",
]
