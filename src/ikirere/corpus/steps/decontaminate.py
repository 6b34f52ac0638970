"""Evaluation items in training text are found, and one side of each leak leaves."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ikirere.common.files import json_sha256, read_json, write_json
from ikirere.corpus.contamination.contamination_index import LeakIndex, Match, build_index
from ikirere.corpus.contamination.evaluation_sets import (
    SETS,
    Item,
    SetMissing,
    fingerprint,
    read_evaluation_set,
    resolve,
)
from ikirere.corpus.parts import write_table
from ikirere.corpus.steps.step import DROPPED, LedgerBuilder, Outcome, StepContext, filtered
from ikirere.errors import UserError
from ikirere.recipe.hygiene import Decontaminate

METHOD = 1  # of matching; a change of it makes earlier results stale

# One row per document and item of which it holds anything, whether or not that was enough.
MATCHES = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("source", pa.string()),
        ("set", pa.string()),
        ("item", pa.string()),
        ("coverage", pa.float64()),  # ngrams over of
        (
            "document_coverage",
            pa.float64(),
        ),  # of passages: share of the document's n-grams in the set; else 0
        ("ngrams", pa.int64()),
        ("of", pa.int64()),
        ("contaminated", pa.bool_()),
        ("examples", pa.list_(pa.string())),  # up to five matched n-grams
    ]
)
# With `drop: evaluation`: the items to leave out of scores, a row for each document that holds them.
EVALUATION_ITEMS = pa.schema(
    [
        ("set", pa.string()),
        ("item", pa.string()),
        ("id", pa.string()),
        ("path", pa.string()),
        ("coverage", pa.float64()),
    ]
)
UNMATCHABLE = pa.schema([("set", pa.string()), ("item", pa.string()), ("unmatchable", pa.string())])
SETS_READ = pa.schema(
    [("set", pa.string()), ("items", pa.int64()), ("unmatchable", pa.int64()), ("missing", pa.string())]
)
SUMMARY = "sets.json"


class MatchRow(TypedDict):
    """A row of MATCHES."""

    id: str
    path: str
    source: str
    set: str
    item: str
    coverage: float
    document_coverage: float
    ngrams: int
    of: int
    contaminated: bool
    examples: list[str]


class ItemRow(TypedDict):
    """A row of EVALUATION_ITEMS."""

    set: str
    item: str
    id: str
    path: str
    coverage: float


class SetRow(TypedDict):
    """Items of a set, and how many of them cannot be found."""

    set: str
    items: int
    unmatchable: int


class Summary(TypedDict):
    """What `prepare` leaves in SUMMARY. missing: why, by set. key: of the sets and n; '' where they are to be read
    again. ngrams, bytes: of the index."""

    sets: list[SetRow]
    missing: dict[str, str]
    ngrams: int
    bytes: int
    key: str
    seconds: float


class Decontaminator:
    """Documents that hold at least `min_coverage` of an evaluation item leave, reason `contaminated`; with
    `drop: evaluation` they stay and the items are listed instead. `contamination_index` defines what counts.

    Logs: `matches`, also of documents that stay, and `evaluation-items`. `prepare` writes into its folder the
    index, `unmatchable.parquet` (items that are too short, or have nothing of their own, to be found) and
    `sets.json` (items of each set, and the sets that could not be read).

    Not found: paraphrases, translations, items of which every thirteenth word was changed, answers without
    their question where they are the shorter part, and what `grid_pairs` does not see.
    """

    name: ClassVar[str] = "decontaminate"

    def __init__(self, context: StepContext) -> None:
        self.settings = context.data.decontaminate or Decontaminate()
        self.sets = tuple(dict.fromkeys(resolve(spec) for spec in context.data.evaluation_sets))
        self.recipe_folder, self.folder = context.recipe_folder, context.folder
        self.say: Callable[[str], None] | None = context.say
        self._index: LeakIndex | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Other processes open the index for themselves and report nothing.
        return self.__dict__ | {"say": None, "_index": None}

    def fingerprint(self) -> str:
        return json.dumps([METHOD, unicodedata.unidata_version, self._fingerprints()])

    def _fingerprints(self) -> list[list[str]]:
        return [[name, fingerprint(name, self.recipe_folder)] for name in self.sets]

    # ------------------------------------------------------------ the index

    def prepare(self, parts: Sequence[Path]) -> None:
        """Read the evaluation sets and write their index, unless one of equal sets is there. Raises UserError
        for a set that is not in its form, and with `on_missing: stop` for one that cannot be read."""
        if not self.sets:
            return
        prints = self._fingerprints()
        key = json_sha256([self.fingerprint(), self.settings.ngram])
        summary = self._known()
        stop = self.settings.on_missing == "stop"
        if summary is None or summary["key"] != key or (summary["missing"] and stop):
            began = time.perf_counter()
            (self.folder / SUMMARY).unlink(missing_ok=True)
            missing: dict[str, str] = {}
            build_index(self._read(missing), self.settings.ngram, self.folder / "index")
            # A set that the hub refused this time may be there the next.
            lasting = all(mark == "missing" for name, mark in prints if name in missing)
            summary = self._summary(missing, key if lasting else "", time.perf_counter() - began)
            write_json(self.folder / SUMMARY, summary)
        if self.say is not None:
            for line in _lines(summary):
                self.say(f"decontaminate: {line}")

    def prepared_logs(self) -> dict[str, pa.Table]:
        """Logs that belong to no document: `unmatchable`, and `sets` with the items of each set (and of those
        how many are unmatchable) or why it is missing. Empty before `prepare`."""
        summary = self._known()
        if not self.sets or summary is None:
            return {}
        missing = summary["missing"]
        rows = [{**row, "missing": missing.get(row["set"], "")} for row in summary["sets"]]
        return {
            "unmatchable": pq.read_table(self.folder / "unmatchable.parquet"),
            "sets": pa.Table.from_pylist(rows, schema=SETS_READ),
        }

    def _known(self) -> Summary | None:
        try:
            known: Summary = read_json(self.folder / SUMMARY)
            return known
        except UserError:  # not there yet, or cut short by a kill
            return None

    def _read(self, missing: dict[str, str]) -> Iterator[tuple[str, list[Item]]]:
        for name in self.sets:
            try:
                items = list(read_evaluation_set(name, self.recipe_folder))
            except SetMissing as error:
                if self.settings.on_missing == "stop":
                    raise
                missing[name] = str(error)
            else:
                yield name, items

    def _summary(self, missing: dict[str, str], key: str, seconds: float) -> Summary:
        index = self._open()
        items = index.items
        lost = items.filter(pc.not_equal(items.column("unmatchable"), "")).select(UNMATCHABLE.names)
        write_table(lost.cast(UNMATCHABLE), self.folder / "unmatchable.parquet")
        counts = {name: [0, 0] for name in self.sets}
        for name, why in zip(items.column("set").to_pylist(), items.column("unmatchable").to_pylist()):
            counts[name][0] += 1
            counts[name][1] += why != ""
        return {
            "sets": [{"set": name, "items": n, "unmatchable": u} for name, (n, u) in counts.items()],
            "missing": missing,
            "ngrams": len(index.grams.hashes),
            "bytes": sum(file.stat().st_size for file in (self.folder / "index").iterdir()),
            "key": key,
            "seconds": round(seconds, 1),
        }

    def _open(self) -> LeakIndex:
        if self._index is None:
            self._index = LeakIndex(self.folder / "index", self.settings.ngram)
        return self._index

    # ------------------------------------------------------------ the documents

    def __call__(self, table: pa.Table) -> Outcome:
        ledger = LedgerBuilder(self.name)
        if not self.sets:
            return Outcome(table, ledger.table(), self._logs([], []))
        texts = [text or "" for text in table.column("text").to_pylist()]
        keep = [True] * len(texts)
        logged: list[MatchRow] = []
        items: list[ItemRow] = []
        found = self._open().matches(texts)
        for document, matches in groupby(found, key=lambda match: match.document):
            row = table.slice(document, 1).to_pylist()[0]
            worst: Match | None = None
            for match in matches:
                leak = self._is_leak(match)
                logged.append(self._entry(row, match, leak))
                if leak and self.settings.drop == "evaluation":
                    name, item = self._name(match)
                    items.append(
                        {
                            "set": name,
                            "item": item,
                            "id": row["id"],
                            "path": row["path"],
                            "coverage": _share(match),
                        }
                    )
                elif leak and (worst is None or _share(match) > _share(worst)):
                    worst = match
            if worst is not None:
                keep[document] = False
                ledger.add(row, DROPPED, "contaminated", detail=self._detail(worst))
        return Outcome(filtered(table, keep), ledger.table(), self._logs(logged, items))

    def contaminated(self, texts: Sequence[str]) -> list[bool]:
        """For each text whether it holds enough of an evaluation item. After `prepare`."""
        found = [False] * len(texts)
        for match in self._open().matches(texts):
            found[match.document] |= self._is_leak(match)
        return found

    def _is_leak(self, match: Match) -> bool:
        return match.decisive or _share(match) >= self.settings.min_coverage

    def _name(self, match: Match) -> tuple[str, str]:
        """Set and item."""
        items = self._open().items
        return items.column("set")[match.item].as_py(), items.column("item")[match.item].as_py()

    def _entry(self, row: dict[str, Any], match: Match, leak: bool) -> MatchRow:
        name, item = self._name(match)
        return {
            "id": row["id"],
            "path": row["path"],
            "source": row["source"],
            "set": name,
            "item": item,
            "coverage": match.coverage,
            "document_coverage": match.document_coverage,
            "ngrams": match.ngrams,
            "of": match.of,
            "contaminated": leak,
            "examples": list(match.examples),
        }

    def _detail(self, match: Match) -> dict[str, Any]:
        name, item = self._name(match)
        detail: dict[str, Any] = {"set": name, "item": item, "coverage": round(match.coverage, 4)}
        detail["ngrams"] = match.ngrams
        if match.document_coverage:
            detail["document_coverage"] = round(match.document_coverage, 4)
        return detail | {"example": match.examples[0]}

    def _logs(self, matches: list[MatchRow], items: list[ItemRow]) -> dict[str, pa.Table]:
        logs = {"matches": pa.Table.from_pylist(matches, schema=MATCHES)}
        if self.settings.drop == "evaluation":
            logs["evaluation-items"] = pa.Table.from_pylist(items, schema=EVALUATION_ITEMS)
        return logs


def _share(match: Match) -> float:
    return max(match.coverage, match.document_coverage)


def _lines(summary: Summary) -> Iterator[str]:
    """Lines for the user about the sets."""
    missing = summary["missing"]
    for name, why in missing.items():
        yield f"NOT compared with {name}: {why}"
    rows = [row for row in summary["sets"] if row["set"] not in missing]
    for row in rows:
        if row["set"] in SETS and SETS[row["set"]].stands_in:
            yield f"{SETS[row['set']].stands_in} stands in for {row['set']}"
    items, lost = sum(row["items"] for row in rows), sum(row["unmatchable"] for row in rows)
    yield (
        f"{len(rows)} evaluation sets, {items} items, {summary['ngrams']} n-grams, "
        f"{summary['bytes'] / 1e6:.1f} MB in {summary['seconds']} s"
        + (f"; {lost} items cannot be found (the reasons are in unmatchable.parquet)" if lost else "")
    )
