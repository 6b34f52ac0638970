"""Figures of tokenizers on documents that they were not trained on: rows of counts, and what follows from them.

A row is what one vocabulary made of one document, counts only; every figure is a sum of counts or a ratio of two, so
that it can be derived again from the rows. Intervals are a bootstrap over documents (Efron 1979): the same documents
are drawn for all vocabularies, so that the interval of a difference is a paired one. It takes documents as independent
and does not cover other kinds of text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypedDict

import numpy as np

from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.vocabularies import OwnVocabulary
from ikirere.tokenizer.vocabulary import Vocabulary

TOGETHER = 64  # documents encoded at once
RESAMPLES = 1000
CONFIDENCE = 0.95

# Figure -> the counts that it is the ratio of.
RATIOS: dict[str, tuple[str, str]] = {
    "bytes_per_token": ("bytes", "tokens"),
    "tokens_per_line": ("tokens", "lines"),
    "tokens_per_word": ("tokens", "words"),
    "single_byte_share": ("single_bytes", "tokens"),
}
# Figure -> the count that it sums. These have no interval: one failure is one failure.
COUNTS: dict[str, str] = {
    "round_trip_failures": "round_trip_failed",
    "parity_failures": "parity_failed",
    "unknown_tokens": "unknown",
}
USE = "vocabulary_use"  # share of the ids that the documents need at least once
METRICS = (*RATIOS, *COUNTS, USE)
ALL = ""  # the domain of figures over all documents


class DocumentCounts(TypedDict):
    """What one vocabulary made of one document.

    bytes: UTF-8. lines: a last line without a line end counts. words: runs without white space. single_bytes: tokens
    that stand for one byte. new_ids: ids that no document before this one had. unknown: tokens for what the vocabulary
    cannot spell. round_trip: 1 where decoding gives the text back exactly, round_trip_failed: 1 where it does not; both
    None where nothing is decoded. id_parity, parity_failed: the same for equal ids from the encoder of record; both None
    for a vocabulary that is not ours.
    """

    bytes: int
    tokens: int
    lines: int
    words: int
    single_bytes: int
    new_ids: int
    unknown: int
    round_trip: int | None
    round_trip_failed: int | None
    id_parity: int | None
    parity_failed: int | None


class HeldOutRow(DocumentCounts):
    """A row of heldout.jsonl; forged: 1 where the text with every special token's spelling appended gave a special id, or
    did not give the spellings back."""

    id: str
    domain: str
    forged: int


Row = Mapping[str, Any]  # a row read from a file: id, domain and the counts


def count_document(text: str, ids: Sequence[int], vocabulary: Vocabulary, seen: set[int]) -> DocumentCounts:
    """Counts of one document; `seen` are the ids that came before, and is added to."""
    decoded = vocabulary.decode(ids)
    same = None if decoded is None else decoded == text
    equal = vocabulary.parity(text, ids)
    new = set(ids) - seen
    seen |= new
    return {
        "bytes": len(text.encode()),
        "tokens": len(ids),
        "lines": text.count("\n") + (not text.endswith("\n")),
        "words": len(text.split()),
        "single_bytes": sum(i in vocabulary.single_bytes for i in ids),
        "new_ids": len(new),
        "unknown": 0 if vocabulary.unknown is None else list(ids).count(vocabulary.unknown),
        "round_trip": None if same is None else int(same),
        "round_trip_failed": None if same is None else int(not same),
        "id_parity": None if equal is None else int(equal),
        "parity_failed": None if equal is None else int(not equal),
    }


def measure_documents(tokenizer: Tokenizer, documents: Iterable[Mapping[str, str]]) -> Iterator[HeldOutRow]:
    """Rows from documents with `id`, `domain` and `text`."""
    own = OwnVocabulary(tokenizer)
    hostile = "".join(tokenizer.special_tokens)
    seen: set[int] = set()
    source = iter(documents)
    while batch := list(islice(source, TOGETHER)):
        texts = [document["text"] for document in batch]
        encoded = tokenizer.encode_batch(texts)
        attacked = tokenizer.encode_batch([text + hostile for text in texts])
        for document, text, ids, attack in zip(batch, texts, encoded, attacked):
            yield {
                "id": document["id"],
                "domain": document["domain"],
                **count_document(text, ids, own, seen),
                "forged": int(
                    not tokenizer.special_ids.isdisjoint(attack)
                    or not tokenizer.decode(attack).endswith(hostile)
                ),
            }


def totals(rows: Iterable[Row]) -> dict[str, int]:
    """Of the rows of `measure_documents`: how many there are, and what has to be 0, counted."""
    found = list(rows)
    counted = {name: sum(row[count] for row in found) for name, count in COUNTS.items()}
    return {"documents": len(found), **counted, "forged_specials": sum(row["forged"] for row in found)}


# ---------------------------------------------------------------- figures


@dataclass(frozen=True)
class Figure:
    """One number of one arm on one domain ("" for all documents), with its interval where it has one."""

    arm: str
    metric: str
    domain: str
    value: float
    low: float | None
    high: float | None
    n: int  # documents

    @property
    def name(self) -> str:
        return f"{self.metric}/{self.domain}" if self.domain else self.metric


class Figures:
    """All figures of several arms on the same documents.

    rows: arm -> its rows, one per document, in the same order for all. sizes: arm -> ids of its vocabulary.
    Deterministic for a seed. A ratio whose denominator is 0 is left out; draws in which it is 0 are not counted.
    """

    def __init__(
        self,
        rows: Mapping[str, Sequence[Row]],
        sizes: Mapping[str, int],
        seed: int = 0,
        resamples: int = RESAMPLES,
        confidence: float = CONFIDENCE,
    ) -> None:
        self.found: dict[tuple[str, str], Figure] = {}  # by arm and name
        self._tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        self._drawn: dict[tuple[str, str], np.ndarray] = {}  # the same key -> value of each draw, float64
        first: Sequence[Row] = next(iter(rows.values()), ())
        domains = sorted({row["domain"] for row in first})
        for domain in (ALL, *domains):
            chosen = np.array([i for i, row in enumerate(first) if domain in (ALL, row["domain"])], dtype=int)
            if len(chosen):
                self._measure(domain, rows, sizes, chosen, np.random.default_rng(seed), resamples)

    def get(self, arm: str, name: str) -> Figure | None:
        """The figure of an arm by its name, such as bytes_per_token/code; None where it was not measured."""
        return self.found.get((arm, name))

    def difference(self, arm: str, other: str, name: str) -> Figure | None:
        """arm - other, with a paired interval where the figure has one; None where either was not measured."""
        a, b = self.get(arm, name), self.get(other, name)
        if a is None or b is None:
            return None
        low = high = None
        if (arm, name) in self._drawn and (other, name) in self._drawn:
            low, high = self._interval(self._drawn[arm, name] - self._drawn[other, name])
        return Figure(arm, a.metric, a.domain, a.value - b.value, low, high, a.n)

    def _measure(
        self,
        domain: str,
        rows: Mapping[str, Sequence[Row]],
        sizes: Mapping[str, int],
        chosen: np.ndarray,
        rng: np.random.Generator,
        resamples: int,
    ) -> None:
        columns = sorted({count for pair in RATIOS.values() for count in pair})
        table = np.array(
            [[rows[arm][i][column] for arm in rows for column in columns] for i in chosen], dtype=np.float64
        )
        n = len(chosen)
        sums = np.empty((resamples, table.shape[1]))
        for draw in range(resamples):
            sums[draw] = np.bincount(rng.integers(0, n, n), minlength=n) @ table
        whole = table.sum(axis=0)
        for k, arm in enumerate(rows):
            index = {column: k * len(columns) + j for j, column in enumerate(columns)}
            for metric, (over, under) in RATIOS.items():
                if whole[index[under]]:
                    with np.errstate(divide="ignore", invalid="ignore"):
                        drawn = sums[:, index[over]] / sums[:, index[under]]
                    value = float(whole[index[over]] / whole[index[under]])
                    band = self._interval(drawn) if n > 1 else (None, None)
                    self._keep(Figure(arm, metric, domain, value, *band, n), drawn if n > 1 else None)
            for metric, count in COUNTS.items():
                values = [rows[arm][i][count] for i in chosen]
                if None not in values:
                    self._keep(Figure(arm, metric, domain, float(sum(values)), None, None, n))
            if domain == ALL:
                used = sum(row["new_ids"] for row in rows[arm]) / sizes[arm]
                self._keep(Figure(arm, USE, domain, used, None, None, n))

    def _interval(self, drawn: np.ndarray) -> tuple[float | None, float | None]:
        finite = drawn[np.isfinite(drawn)]
        if not len(finite):
            return None, None
        low, high = np.quantile(finite, self._tails)
        return float(low), float(high)

    def _keep(self, figure: Figure, drawn: np.ndarray | None = None) -> None:
        self.found[figure.arm, figure.name] = figure
        if drawn is not None:
            self._drawn[figure.arm, figure.name] = drawn
