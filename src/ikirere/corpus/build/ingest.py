"""Sources into Parquet parts: streaming, and continued where a kill left off."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ikirere.common.files import PART, json_sha256, read_json, write_json
from ikirere.corpus.document import DOCUMENT_SCHEMA, Document, TableWriter
from ikirere.corpus.parts import write_table
from ikirere.corpus.readers import SourcePosition, open_source, reader
from ikirere.corpus.readers.text import DAMAGED
from ikirere.corpus.steps.step import DROPPED, LEDGER_SCHEMA, LedgerRow
from ikirere.errors import UserError
from ikirere.recipe.data import Data, Source

PART_BYTES = 8_000_000  # text of a part: what one worker holds at once
SOURCE_BITS = 40  # `order` is source << SOURCE_BITS | row
LAST = "last"  # names the ledger of what was skipped after the last part


@dataclass
class Read:
    """What reading gave: parts and ledger files in the order of the sources, documents and bytes."""

    parts: list[Path] = field(default_factory=list)
    ledgers: list[Path] = field(default_factory=list)
    documents: int = 0
    n_bytes: int = 0


def read_sources(
    data: Data, recipe_folder: Path, folder: Path, advance: Callable[[int], None], say: Callable[[str], None]
) -> Read:
    """Read every source into `folder`. A source that is finished is not read again while its keys and the files that it
    reads are the same; one that was cut short continues after its last whole part, if what it reads of the machine is
    the same too.

    Raises UserError as the sources do, and for a source without documents.
    """
    result = Read()
    for number, source in enumerate(data.sources):
        target = folder / f"{number:02d}"
        made = reader(source, recipe_folder)
        settings = [source.model_dump(mode="json"), PART_BYTES]
        key = json_sha256([*settings, "" if made.of_machine else made.fingerprint()])
        machine = made.fingerprint() if made.of_machine else ""
        known, done = intact_json(target / "key.json"), intact_json(target / "done.json")
        if known is None or known["key"] != key or (done is None and known["machine"] != machine):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            write_json(target / "key.json", {"key": key, "machine": machine})
            done = None
        if done is None:
            done = _SourceReader(source, number, recipe_folder, target, say).run(advance)
            write_json(target / "done.json", done)
        else:
            advance(done["bytes"])
            say(f"source {source.name}: {done['documents']} documents read before")
        result.parts += sorted(target.glob("part-*.parquet"))
        result.ledgers += sorted(target.glob("skipped-*.parquet"))
        result.documents += done["documents"]
        result.n_bytes += done["bytes"]
    return result


def intact_json(path: Path) -> Any:
    """The value in a file of work that a kill may have cut short; None where there is no such file, or none that can be
    read."""
    try:
        return read_json(path)
    except UserError:
        return None


class _SourceReader:
    """One source into parts. Beside each part lie the ledger of what was skipped before its end and the position in the
    source after it, both written before it: a part stands for everything up to its end."""

    def __init__(
        self, source: Source, number: int, recipe_folder: Path, folder: Path, say: Callable[[str], None]
    ) -> None:
        self.source, self.number, self.folder, self.say = source, number, folder, say
        self.whole = sorted(folder.glob("part-*.parquet"))
        for leftover in folder.glob(f"*{PART}"):
            leftover.unlink()
        for ledger in folder.glob("skipped-*.parquet"):
            if ledger.with_name(ledger.name.replace("skipped", "part")) not in self.whole:
                ledger.unlink()
        last = folder / f"place-{len(self.whole) - 1:05d}.json"
        self.start = SourcePosition(**read_json(last)) if self.whole else SourcePosition()
        self.reading = open_source(source, recipe_folder, self.skipped, say, start=self.start)
        self.rows: list[dict[str, Any]] = []
        self.skips: list[LedgerRow] = []  # before the last row
        self.later: list[LedgerRow] = []  # since the last row
        self.damaged: list[str] = []
        self.size = 0

    def skipped(self, path: str, reason: str) -> None:
        if reason in DAMAGED:
            self.damaged.append(f"{path} ({reason})")
        self.later.append(
            LedgerRow(
                step="read",
                action=DROPPED,
                reason=reason,
                id="",
                path=path,
                source=self.source.name,
                domain="",
                licence="",
                kept="",
                detail="",
                excerpt="",
                bytes=0,
            )
        )

    def run(self, advance: Callable[[int], None]) -> dict[str, int]:
        count, n_bytes = self.start.documents, self.start.n_bytes
        advance(n_bytes)
        if count:
            self.say(f"source {self.source.name}: continued after {count} documents")
        for document in self.reading:
            advance(document.n_bytes)
            n_bytes += document.n_bytes
            self._add(document, count)
            count += 1
        if self.rows:
            self._flush()
        # Of no part: a source that is continued after its last one reports these again.
        self._write_skips(self.later, LAST)
        if self.damaged:
            self.say(
                f"source {self.source.name}: {len(self.damaged)} files or rows left out, first {self.damaged[0]}; "
                "see ledger/read.parquet"
            )
        return {"documents": count, "bytes": n_bytes}

    def _add(self, document: Document, row: int) -> None:
        document.order = self.number << SOURCE_BITS | row
        self.skips += self.later
        self.later = []
        self.rows.append(document.row())
        self.size += document.n_bytes
        if self.size >= PART_BYTES:
            self._flush()

    def _write_skips(self, skips: list[LedgerRow], name: str) -> None:
        with TableWriter(self.folder / f"skipped-{name}.parquet", LEDGER_SCHEMA) as ledger:
            for skip in skips:
                ledger.add(skip)

    def _flush(self) -> None:
        name = f"{len(self.whole):05d}.parquet"
        self._write_skips(self.skips, name.removesuffix(".parquet"))
        write_json(self.folder / f"place-{len(self.whole):05d}.json", asdict(self.reading.position))
        write_table(pa.Table.from_pylist(self.rows, schema=DOCUMENT_SCHEMA), self.folder / f"part-{name}")
        self.whole.append(self.folder / f"part-{name}")
        self.rows, self.skips, self.size = [], [], 0
