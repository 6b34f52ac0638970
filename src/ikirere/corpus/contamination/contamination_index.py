"""Evaluation items inside texts: an index of the items' n-grams and grids, and what of it each text holds.

How an item counts. Its question and its reference answer are cut into n-grams each for itself, for documents
write other words between them; where the question has fewer than n words both are taken as one. n-grams that
more than TEMPLATE_ITEMS items of a set share are the set's template and count for none of them. Coverage is
the larger of two shares: matched distinct n-grams over all of the item's, and the same for the question
alone. A single n-gram only decides where it is the whole text. An item shorter than n words is matched as a
whole when it has SHORT_WORDS words or more (its question alone, if that is long enough); what is left is
unmatchable and is listed.

Of passages (WikiText, LAMBADA) a document is also a leak when the document's own n-grams come from the set:
half of an article is still the article. Grid tasks are compared pair by pair in canonical form (`grids`): a
shared test pair decides alone, else the share of the task's pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ikirere.common.files import atomic_folder
from ikirere.corpus.contamination.evaluation_sets import Item
from ikirere.corpus.contamination.grid_pairs import canonical_hash, parse_pairs, signature
from ikirere.corpus.contamination.ngrams import I64, U64, HashIndex, Words, span_hash, words_of

SHORT_WORDS = 8  # of the shortest text that is matched as a whole
TEMPLATE_ITEMS = 10  # items of a set that may share an n-gram before it counts as the set's template
EXAMPLES = 5  # matched n-grams that a match shows
BATCH_CHARACTERS = 1 << 17  # of texts hashed at a time: what stays in a core's cache

ITEM_SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("item", pa.string()),
        ("ngrams", pa.int32()),  # distinct n-grams, or pairs of grids, that count
        ("question", pa.int32()),  # of those, the question's; 0 where it is not counted for itself
        ("short", pa.int32()),  # words of the text that is matched as a whole; 0 for none
        ("whole", pa.uint64()),  # and its hash
        ("passage", pa.bool_()),
        ("grids", pa.bool_()),
        ("unmatchable", pa.string()),  # why it cannot be found: short, template, empty; '' where it can
    ]
)


class ItemRow(TypedDict):
    """A row of ITEM_SCHEMA. prefix: hash of the first SHORT_WORDS words of a short text; not written."""

    set: str
    item: str
    ngrams: int
    question: int
    short: int
    whole: int
    passage: bool
    grids: bool
    unmatchable: str
    prefix: NotRequired[int]


@dataclass(frozen=True, slots=True)
class Match:
    """What of one item is in one text. ngrams, of: matched distinct n-grams (pairs, for grids) and all of the
    item, or of its question where that share is larger; coverage is their quotient. document_coverage: share
    of the text's own distinct n-grams that come from the set of this passage, else 0. decisive: a shared test
    pair of grids. examples: up to five matched n-grams, spread over the text."""

    document: int
    item: int
    ngrams: int
    of: int
    coverage: float
    document_coverage: float = 0.0
    decisive: bool = False
    examples: tuple[str, ...] = ()


@dataclass
class _Builder:
    """Rows of an index while its sets are read, one after another."""

    n: int
    items: list[ItemRow] = field(default_factory=list)
    grams: list[tuple[U64, npt.NDArray[np.uint32]]] = field(default_factory=list)
    prefixes: list[tuple[int, int]] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    signatures: set[int] = field(default_factory=set)

    def add(self, name: str, items: Iterable[Item]) -> None:
        first = len(self.items)
        hashes: list[Any] = []
        owners: list[Any] = []
        asked: list[Any] = []
        for batch in batches(items):
            for part, array in zip((hashes, owners, asked), self._batch(name, batch)):
                part.append(array)
        if len(self.items) == first:
            return
        self._count(first, np.concatenate(hashes), np.concatenate(owners), np.concatenate(asked))
        self._whole(first)

    def _batch(self, name: str, batch: list[Item]) -> tuple[U64, I64, npt.NDArray[np.bool_]]:
        """n-grams of some items (hash, item, whether of the question), distinct per item."""
        base = len(self.items)
        words = words_of([text for item in batch for text in (item.question, item.answer)])
        counts = np.bincount(words.documents, minlength=2 * len(batch)).reshape(-1, 2)
        joint = counts[:, 0] < self.n
        within = words.documents - np.where(joint[words.documents // 2], words.documents % 2, 0)
        hashes, firsts = words.ngrams(self.n, within)
        owner = within[firsts] // 2
        asked = (within[firsts] % 2 == 0) & ~joint[owner]
        order = np.lexsort((~asked, hashes, owner))
        hashes, owner, asked = hashes[order], owner[order], asked[order]
        distinct = np.ones(len(order), bool)
        distinct[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
        starts = np.searchsorted(words.documents, np.arange(0, 2 * len(batch), 2))
        for number, (item, (question, answer), start) in enumerate(
            zip(batch, counts.tolist(), starts.tolist())
        ):
            row = ItemRow(
                set=name,
                item=item.id,
                ngrams=0,
                question=0,
                short=0,
                whole=0,
                passage=item.passage,
                grids=item.grids is not None,
                unmatchable="",
            )
            if item.grids is not None:
                row["ngrams"] = len(item.grids)
                row["unmatchable"] = "" if item.grids else "empty"
                self._grids(base + number, item)
            elif question + answer < self.n or SHORT_WORDS <= question < self.n:
                length = question if question >= SHORT_WORDS else question + answer
                if SHORT_WORDS <= length < self.n:
                    span = words.hashes[start : start + length]
                    row |= {"short": length, "whole": span_hash(span)}
                    row["prefix"] = span_hash(span[:SHORT_WORDS])
                else:
                    row["unmatchable"] = "short" if question + answer else "empty"
            self.items.append(row)
        return hashes[distinct], owner[distinct] + base, asked[distinct]

    def _grids(self, number: int, item: Item) -> None:
        pairs = item.grids or ()
        for position, pair in enumerate(pairs):
            test = position >= len(pairs) - item.tests
            self.pairs.append((int.from_bytes(canonical_hash(pair)[:8], "little"), number << 1 | test))
            self.signatures.add(signature(pair))

    def _count(self, first: int, hashes: U64, owners: I64, asked: npt.NDArray[np.bool_]) -> None:
        """Leave out the set's template, count what each item has left."""
        _, inverse, shared = np.unique(hashes, return_inverse=True, return_counts=True)
        own = shared[inverse] <= TEMPLATE_ITEMS
        rows = self.items[first:]
        before = np.bincount(owners - first, minlength=len(rows))
        before_asked = np.bincount(owners[asked] - first, minlength=len(rows))
        left = np.bincount(owners[own] - first, minlength=len(rows))
        left_asked = np.bincount(owners[own & asked] - first, minlength=len(rows))
        # One n-gram is enough only where it is all there is of the text.
        left[(left == 1) & (before > 1)] = 0
        left_asked[(left_asked == 1) & (before_asked > 1)] = 0
        own &= left[owners - first] > 0
        for row, grams, kept, question in zip(rows, before.tolist(), left.tolist(), left_asked.tolist()):
            if not row["grids"]:
                row |= {"ngrams": kept, "question": min(question, kept)}
                if grams and not kept and not row["short"]:
                    row["unmatchable"] = "template"
        self.grams.append((hashes[own], (owners[own] << 1 | asked[own]).astype(np.uint32)))

    def _whole(self, first: int) -> None:
        """Short texts by their first words, but for those that many items of the set share."""
        same: dict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(self.items[first:], first):
            if row["short"]:
                same[row["whole"]].append(number)
        for numbers in same.values():
            for number in numbers:
                row = self.items[number]
                if len(numbers) > TEMPLATE_ITEMS:
                    row |= {"short": 0, "whole": 0, "unmatchable": "" if row["ngrams"] else "template"}
                else:
                    self.prefixes.append((row["prefix"], number))

    def write(self, folder: Path) -> None:
        none = (np.empty(0, np.uint64), np.empty(0, np.uint32))
        hashes, postings = (np.concatenate(arrays) for arrays in zip(none, *self.grams))
        with atomic_folder(folder) as part:
            HashIndex.write(part, "grams", hashes, postings)
            for name, rows in (("short", self.prefixes), ("grids", self.pairs)):
                keys, numbers = [key for key, _ in rows], [number for _, number in rows]
                HashIndex.write(part, name, np.array(keys, np.uint64), np.array(numbers, np.uint32))
            np.save(part / "signatures.npy", np.array(sorted(self.signatures), np.uint64))
            pq.write_table(pa.Table.from_pylist(self.items, schema=ITEM_SCHEMA), part / "items.parquet")


def build_index(sets: Iterable[tuple[str, Iterable[Item]]], n: int, folder: Path) -> None:
    """Write the index of some evaluation sets, `n` words per n-gram; the folder has its name once it is
    whole."""
    builder = _Builder(n)
    for name, items in sets:
        builder.add(name, items)
    builder.write(folder)


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item.text) + 1
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class LeakIndex:
    """An index as `build_index` wrote it, memory-mapped. Documents are looked at one by one: what is found in
    one does not depend on which others are given with it."""

    def __init__(self, folder: Path, n: int) -> None:
        self.n = n
        self.items = pq.read_table(folder / "items.parquet")
        self.grams, self.short, self.grids = (HashIndex(folder, name) for name in ("grams", "short", "grids"))
        self.signatures = set(np.load(folder / "signatures.npy").tolist())
        columns = ("question", "ngrams", "short", "whole", "passage")
        self.question, self.total, self.length, self.whole, self.passage = (
            self.items.column(name).to_numpy() for name in columns
        )
        self.set = self.items.column("set").combine_chunks().dictionary_encode().indices.to_numpy()
        self.has_passages = bool(self.passage.any())
        # Tasks of a single pair are puzzles; only their sets are written as strings of cells.
        self.boards = bool((self.total[self.items.column("grids").to_numpy()] == 1).any())

    def matches(self, texts: Sequence[str]) -> list[Match]:
        """All items of which a text holds anything, by text, then by item."""
        found: list[Match] = []
        start = size = 0
        for end, text in enumerate(texts, 1):
            size += len(text) + 1
            if size >= BATCH_CHARACTERS or end == len(texts):
                found += self._batch(texts[start:end], start)
                start, size = end, 0
        for number, text in enumerate(texts):
            found += self._grid_matches(number, text)
        return sorted(found, key=lambda m: (m.document, m.item))

    def _batch(self, texts: Sequence[str], base: int) -> list[Match]:
        words = words_of(texts)
        hashes, firsts = words.ngrams(self.n)
        short = self._short_matches(words)
        positions, found = self.grams.find(hashes)
        if not len(positions) and not short:
            return []
        # Distinct n-grams of each document, where they stand first.
        documents = words.documents[firsts[positions]]
        _, once = np.unique(documents * (len(self.grams.hashes) + 1) + found, return_index=True)
        once.sort()
        documents, found, positions = documents[once], found[once], positions[once]
        owner, postings = self.grams.expand(found)
        item, asked = (postings >> 1).astype(np.int64), (postings & 1).astype(bool)
        own_share = self._document_shares(words.documents[firsts], hashes, documents, owner, item)
        # Count per document and item, in the order of both.
        pair, group = np.unique(documents[owner] * len(self.total) + item, return_inverse=True)
        counts = np.bincount(group, minlength=len(pair))
        counts_asked = np.bincount(group[asked], minlength=len(pair))
        by_group = np.split(np.argsort(group, kind="stable"), np.cumsum(counts)[:-1]) if len(pair) else []
        result = []
        for key, count, count_asked, rows in zip(
            pair.tolist(), counts.tolist(), counts_asked.tolist(), by_group
        ):
            document, number = divmod(key, len(self.total))
            whole_item = count, int(self.total[number])
            question = count_asked, int(self.question[number]) or 1
            matched, of = max(whole_item, question, key=lambda share: share[0] / share[1])
            stands = firsts[positions[owner[rows]]]
            pick = np.unique(np.linspace(0, len(stands) - 1, min(EXAMPLES, len(stands))).astype(int))
            examples = tuple(words.show(int(stands[p]), self.n) for p in pick)
            own = own_share.get((document, int(self.set[number])), 0.0) if self.passage[number] else 0.0
            if (example := short.pop((document, number), None)) is not None:
                matched, of, examples = 1, 1, (example, *examples[1:])
            result.append(Match(base + document, number, matched, of, matched / of, own, False, examples))
        for (document, number), example in short.items():
            result.append(Match(base + document, number, 1, 1, 1.0, 0.0, False, (example,)))
        return result

    def _document_shares(
        self, of_ngram: I64, hashes: U64, documents: I64, owner: I64, item: I64
    ) -> dict[tuple[int, int], float]:
        """Share of a document's distinct n-grams that are in passages of a set, by document and set."""
        if not self.has_passages:
            return {}
        inside = self.passage[item]
        rows, sets = owner[inside], self.set[item[inside]]
        if not len(rows):
            return {}
        # An n-gram counts once per set, however many of the set's passages have it.
        width = int(self.set.max()) + 1
        distinct = np.unique(rows * width + sets)
        pairs, counts = np.unique(documents[distinct // width] * width + distinct % width, return_counts=True)
        shares = {}
        for pair, count in zip(pairs.tolist(), counts.tolist()):
            document, number = divmod(pair, width)
            first, last = np.searchsorted(of_ngram, [document, document + 1])
            shares[document, number] = count / len(np.unique(hashes[first:last]))
        return shares

    def _short_matches(self, words: Words) -> dict[tuple[int, int], str]:
        """Short items that stand in a document as a whole, with their text."""
        if self.n <= SHORT_WORDS or not len(self.short.hashes):
            return {}
        hashes, firsts = words.ngrams(SHORT_WORDS)
        positions, found = self.short.find(hashes)
        owner, numbers = self.short.expand(found)
        result: dict[tuple[int, int], str] = {}
        for position, number in zip(firsts[positions[owner]].tolist(), numbers.tolist()):
            end = position + int(self.length[number])
            document = int(words.documents[position])
            if (
                (document, number) in result
                or end > len(words.hashes)
                or words.documents[end - 1] != document
            ):
                continue
            if span_hash(words.hashes[position:end]) == int(self.whole[number]):
                result[document, number] = words.show(position, end - position)
        return result

    def _grid_matches(self, document: int, text: str) -> Iterator[Match]:
        if not self.signatures:
            return
        pairs = [pair for pair in parse_pairs(text, self.boards) if signature(pair) in self.signatures]
        if not pairs:
            return
        own = {int.from_bytes(canonical_hash(pair)[:8], "little"): pair for pair in pairs}
        keys = np.array(sorted(own), np.uint64)
        positions, found = self.grids.find(keys)
        owner, postings = self.grids.expand(found)
        by_item: dict[int, list[tuple[int, bool]]] = defaultdict(list)
        for position, posting in zip(positions[owner].tolist(), postings.tolist()):
            by_item[posting >> 1].append((int(keys[position]), bool(posting & 1)))
        for number, shared in by_item.items():
            of = int(self.total[number])
            examples = []
            for key, test in shared[:EXAMPLES]:
                (a, b), (c, d) = ((len(grid), len(grid[0])) for grid in own[key])
                examples.append(
                    f"{'test' if test else 'training'} pair {a}x{b} -> {c}x{d}, canonical {key:016x}"
                )
            decisive = any(test for _, test in shared)
            yield Match(document, number, len(shared), of, len(shared) / of, 0.0, decisive, tuple(examples))
