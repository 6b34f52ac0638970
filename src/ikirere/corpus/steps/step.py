"""What a step on documents is: a pure function over Arrow tables that reports what it dropped or changed, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

import pyarrow as pa

from ikirere.corpus.document import DOCUMENT_SCHEMA
from ikirere.recipe.data import Data

# One row per document that a step dropped or changed. id is '' for files that never became a document; kept is the
# id of the copy that stayed; detail is JSON; excerpt the text's beginning.
LEDGER_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in (
            "step",
            "action",
            "reason",
            "id",
            "path",
            "source",
            "domain",
            "licence",
            "kept",
            "detail",
            "excerpt",
        )
    ]
    + [("bytes", pa.int64())]
)


class LedgerRow(TypedDict):
    """A row of LEDGER_SCHEMA. bytes: UTF-8 length of the text."""

    step: str
    action: str
    reason: str
    id: str
    path: str
    source: str
    domain: str
    licence: str
    kept: str
    detail: str
    excerpt: str
    bytes: int


DROPPED, CHANGED = "dropped", "changed"
EXCERPT = 200  # characters of a dropped text that its ledger row shows


@dataclass
class Outcome:
    """What a step makes of a table of documents (DOCUMENT_SCHEMA; further columns pass through).

    kept: the documents that stay, in their order, texts changed or not. ledger: rows of LEDGER_SCHEMA.
    logs: further tables by name (redactions, scores), each written to a file of its own.
    """

    kept: pa.Table
    ledger: pa.Table
    logs: dict[str, pa.Table] = field(default_factory=dict)


@dataclass
class StepContext:
    """What a step may use while it is prepared. It writes below `folder` and nowhere else."""

    data: Data
    recipe_folder: Path
    folder: Path
    seed: int
    say: Callable[[str], None] = lambda line: None


class RowStep(Protocol):
    """A step that looks at one document at a time. Picklable; a model it needs is a file it opens when it is first
    used in a process."""

    @property
    def name(self) -> str:
        """The name in the registry, and of the ledger."""

    def prepare(self, parts: Sequence[Path]) -> None:
        """Make ready, given the parts (`corpus/parts`, of DOCUMENT_SCHEMA) as they enter the step's pass: earlier
        steps of the pass may still drop or change documents. Called once, in the main process; may train and write
        files into its context's folder. The same input gives the same files."""

    def fingerprint(self) -> str:
        """Hash of all that the outcome depends on besides the recipe's keys and the documents (word lists, evaluation
        sets)."""

    def __call__(self, table: pa.Table) -> Outcome:
        """Deterministic. Never raises for a document's content."""


class LedgerBuilder:
    """Collects the ledger rows of one step for one table."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.rows: list[LedgerRow] = []

    def add(
        self,
        document: Mapping[str, Any],
        action: str,
        reason: str,
        kept: str = "",
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """document: a row of DOCUMENT_SCHEMA. detail: small, JSON-able, keys in the order given."""
        text = document.get("text") or ""
        self.rows.append(
            LedgerRow(
                step=self.step,
                action=action,
                reason=reason,
                id=document.get("id") or "",
                path=document.get("path") or "",
                source=document.get("source") or "",
                domain=document.get("domain") or "",
                licence=document.get("licence") or "",
                kept=kept,
                detail=json.dumps(detail, ensure_ascii=False) if detail else "",
                excerpt=text[:EXCERPT] if action == DROPPED else "",
                bytes=len(text.encode()),
            )
        )

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows, schema=LEDGER_SCHEMA)


def filtered(table: pa.Table, keep: Sequence[bool]) -> pa.Table:
    """Rows of the table for which `keep` is true, in order."""
    return table.filter(pa.array(keep, type=pa.bool_()))


def with_text(table: pa.Table, texts: Sequence[str]) -> pa.Table:
    """The table with other texts; ids stay, for they name the document as it was read."""
    index = table.schema.get_field_index("text")
    return table.set_column(index, DOCUMENT_SCHEMA.field("text"), pa.array(texts, type=pa.string()))


def in_domains(table: pa.Table, domains: tuple[str, ...] | None, but: tuple[str, ...] = ()) -> list[bool]:
    """For each row whether a step looks at it: the domains named, or all except `but`."""
    return [d in domains if domains is not None else d not in but for d in table.column("domain").to_pylist()]
