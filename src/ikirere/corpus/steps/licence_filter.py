"""The licence of each document, and the recipe's policy on it.

A document's licence is what its source declares (row, metadata, licence file) and what its own head declares: an
`SPDX-License-Identifier` line, or the notice of a well-known licence in the first lines. Where the two name different
licences, both hold (AND); where the head forbids what the metadata allows, they are in conflict.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from ikirere.corpus.licence import UNKNOWN, allowed, from_text, spdx
from ikirere.corpus.steps.step import CHANGED, DROPPED, LedgerBuilder, Outcome, StepContext, filtered

HEAD = 3000  # characters in which a file's own notice is looked for
IDENTIFIER = re.compile(r"SPDX-License-Identifier:[ \t]*([^\n*#]+?)[ \t]*(?:\*/|-->|\n|$)")
NOTICE = re.compile(
    r"licen[sc]ed under|permission is hereby granted|redistribution and use in source|"
    r"gnu (?:affero |lesser )?general public license|mozilla public license|unencumbered software",
    re.I,
)


def licence_in_head(text: str) -> str:
    """SPDX expression that the head of a file declares; `unknown` where it declares none."""
    head = text[:HEAD]
    if found := IDENTIFIER.search(head):
        return spdx(found[1])
    return from_text(head) if NOTICE.search(head) else UNKNOWN


class LicenceFilter:
    """Reasons: `licence-unknown` (nothing or NOASSERTION), `licence-not-allowed`, `licence-conflict`. With
    `licences: any` nothing is dropped; what heads add is noted all the same."""

    name: ClassVar[str] = "licence"

    def __init__(self, context: StepContext) -> None:
        self.policy = context.data.licences
        normalise = context.data.normalise
        # Prose may speak about licences; only the heads of source files are notices of their own.
        self.code = normalise.code_domains if normalise else ("code",)

    def prepare(self, parts: Sequence[Path]) -> None:
        """Nothing to learn."""

    def fingerprint(self) -> str:
        return ""

    def __call__(self, table: pa.Table) -> Outcome:
        ledger = LedgerBuilder(self.name)
        licences, keep = table.column("licence").to_pylist(), []
        domains, texts = table.column("domain").to_pylist(), table.column("text").to_pylist()
        for i, (licence, domain, text) in enumerate(zip(licences, domains, texts)):
            head = licence_in_head(text) if domain in self.code else UNKNOWN
            licence = licence or UNKNOWN
            final, reason = self.decide(licence, head)
            licences[i] = final
            keep.append(reason == "")
            if reason or final != licence:
                row = table.slice(i, 1).to_pylist()[0]
                detail = {"declared": licence, "head": head, "licence": final}
                ledger.add(row, DROPPED if reason else CHANGED, reason or "licence-from-head", detail=detail)
        index = table.schema.get_field_index("licence")
        table = table.set_column(index, "licence", pa.array(licences, type=pa.string()))
        return Outcome(filtered(table, keep), ledger.table())

    def decide(self, declared: str, head: str) -> tuple[str, str]:
        """The licence that counts, and why the document goes ('' where it stays)."""
        silent = declared in (UNKNOWN, "NOASSERTION")
        if head in (UNKNOWN, declared):
            final = declared
        elif silent:
            final = head
        else:
            final = declared if _holds(declared, head) else f"({declared}) AND ({head})"
        if self.policy == "any" or allowed(final, self.policy):
            return final, ""
        if final in (UNKNOWN, "NOASSERTION"):
            return final, "licence-unknown"
        if not silent and head != UNKNOWN and allowed(declared, self.policy):
            return final, "licence-conflict"
        return final, "licence-not-allowed"


def _holds(declared: str, head: str) -> bool:
    """Whether the head names one side of the declared expression."""
    sides = re.split(r"\bAND\b|\bOR\b|[()]", declared)
    return head in [side.strip() for side in sides]
