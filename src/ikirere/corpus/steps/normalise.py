"""Encoding repair and Unicode form of prose. Code is never altered, whatever it looks like."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from ikirere.corpus.steps.step import (
    CHANGED,
    DROPPED,
    LedgerBuilder,
    Outcome,
    StepContext,
    filtered,
    with_text,
)
from ikirere.recipe.hygiene import Normalise


class Normaliser:
    """Drops texts longer than `data.max_document_bytes` (`too-long`); in prose, undoes UTF-8 that was decoded as
    something else (ftfy's rules, line by line where they see damage), drops the byte-order marks and NULs that were
    left in, and composes characters (NFC). The id stays that of the text as it was read.
    """

    name: ClassVar[str] = "normalise"

    def __init__(self, context: StepContext) -> None:
        self.longest = context.data.max_document_bytes
        self.settings = context.data.normalise or Normalise(repair=False, unicode="none")

    def prepare(self, parts: Sequence[Path]) -> None:
        """Nothing to learn."""

    def fingerprint(self) -> str:
        import ftfy

        return f"ftfy {ftfy.__version__} unicode {unicodedata.unidata_version}"

    def __call__(self, table: pa.Table) -> Outcome:
        ledger = LedgerBuilder(self.name)
        texts, keep = table.column("text").to_pylist(), []
        rows = table.drop_columns(["text"]).to_pylist()
        for i, (text, row) in enumerate(zip(texts, rows)):
            size = len(text.encode())
            keep.append(size <= self.longest)
            if not keep[-1]:
                ledger.add(
                    row | {"text": text}, DROPPED, "too-long", detail={"bytes": size, "limit": self.longest}
                )
            elif row["domain"] not in self.settings.code_domains:
                texts[i], changes = self.prose(text)
                for reason, count in changes.items():
                    ledger.add(row | {"text": text}, CHANGED, reason, detail={"count": count})
        return Outcome(filtered(with_text(table, texts), keep), ledger.table())

    def prose(self, text: str) -> tuple[str, dict[str, int]]:
        """The text mended, and how many lines (`encoding`) or characters (`stray`, `composed`) changed."""
        changes: dict[str, int] = {}
        stray = text.count("\0") + text.count("\ufeff")
        if stray:
            text = text.replace("\0", "").replace("\ufeff", "")
            changes["stray-characters"] = stray
        if text.isascii():
            return text, changes
        if self.settings.repair:
            text, lines = _repair(text)
            if lines:
                changes["encoding"] = lines
        if self.settings.unicode == "nfc" and not unicodedata.is_normalized("NFC", text):
            changes["composed"] = 1
            text = unicodedata.normalize("NFC", text)
        return text, changes


def _repair(text: str) -> tuple[str, int]:
    import ftfy
    from ftfy.badness import is_bad

    if not is_bad(text):
        return text, 0
    lines = text.split("\n")
    mended = 0
    for i, line in enumerate(lines):
        if not line.isascii() and is_bad(line) and (better := ftfy.fix_encoding(line)) != line:
            lines[i] = better
            mended += 1
    return "\n".join(lines), mended
