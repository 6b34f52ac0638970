"""Exact duplicates and repeated addresses: equal keys over all sets, the first copy in reading order is kept.

Texts count as equal up to line ends, blanks at line ends, empty lines at either end and Unicode composition.
Relational work goes through Daft, so that it runs natively or on Ray; rows are sorted before they are used.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from ikirere.common.files import file_sha256
from ikirere.corpus.executor import Engine
from ikirere.corpus.parts import part_name, read_part, write_table
from ikirere.corpus.steps.step import DROPPED, LedgerBuilder, Outcome, filtered

KEYS = pa.schema(
    [
        ("order", pa.int64()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("text_key", pa.string()),
        ("url_key", pa.string()),
    ]
)
VERDICTS = pa.schema(
    [
        ("order", pa.int64()),
        ("reason", pa.string()),
        ("kept", pa.string()),
        ("detail", pa.string()),
        ("family", pa.string()),
    ]
)
TRACKING = re.compile(r"(^|&)(utm_[a-z]+|fbclid|gclid|ref)=[^&]*", re.I)


def content_hash(text: str) -> bytes:
    """16 bytes, equal for texts that differ at most in line ends, blanks at line ends, empty lines at either end,
    and Unicode composition."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return hashlib.blake2b(lines.strip("\n").encode(), digest_size=16).digest()


def url_key(url: str) -> str:
    """An address without scheme, `www.`, port, fragment, tracking parameters and closing slash; '' for none."""
    if not url:
        return ""
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        host = (parts.hostname or "").removeprefix("www.")
    except ValueError:
        return ""
    query = TRACKING.sub("", parts.query).strip("&")
    return f"{host}{parts.path.rstrip('/')}{'?' + query if query else ''}" if host else ""


@dataclass
class KeyWork:
    """Keys of one part, for `Engine.each`."""

    out: str

    def __call__(self, path: str) -> dict[str, Any]:
        target = Path(self.out) / f"{part_name(Path(path))}.parquet"
        table = read_part(Path(path), ["order", "id", "source", "text", "url"])
        keys = {
            "text_key": [content_hash(text).hex() for text in table.column("text").to_pylist()],
            "url_key": [url_key(url or "") for url in table.column("url").to_pylist()],
        }
        columns = {name: table.column(name) for name in ("order", "id", "source")} | keys
        write_table(pa.table(columns, schema=KEYS), target)
        return {"file": str(target)}


def find_repeated(engine: Engine, parts: Sequence[Path], work: Path) -> Path:
    """Verdicts (schema VERDICTS) on the documents that repeat an earlier one's text or address: reasons `duplicate`
    and `same-url`. An address counts once its text was not a duplicate itself."""
    import daft

    col: Any = daft.col
    work.mkdir(parents=True, exist_ok=True)
    files = [Path(done["file"]) for done in engine.each(KeyWork(str(work)), parts)]
    keys = engine.frame(files)

    def repeats(rows: Any, key: str, reason: str) -> Any:
        firsts = rows.groupby(key).agg(
            col("order").min().alias("first"), col("order").count().alias("copies")
        )
        late = rows.join(firsts.where(col("copies") > 1), on=key).where(col("order") > col("first"))
        kept = rows.select(
            col("order").alias("first"),
            col("id").alias("kept"),
            col("source").alias("kept_source"),
        )
        return late.join(kept, on="first").select(
            "order", "source", "kept", "kept_source", daft.lit(reason).alias("reason")
        )

    same_text = repeats(keys, "text_key", "duplicate").sort("order").to_arrow()
    # A copy that is gone for its text stands for no address.
    left = keys.join(engine.from_arrow(same_text.select(["order"])), on="order", how="anti")
    with_url = left.where(col("url_key") != "")
    same_url = repeats(with_url, "url_key", "same-url").sort("order").to_arrow()
    rows = same_text.to_pylist() + same_url.to_pylist()
    verdicts = [
        {
            "order": row["order"],
            "reason": row["reason"],
            "kept": row["kept"],
            "detail": because(row["source"], row["kept_source"]),
            "family": "",
        }
        for row in sorted(rows, key=lambda row: row["order"])
    ]
    write_table(pa.Table.from_pylist(verdicts, schema=VERDICTS), work / "verdicts.parquet")
    return work / "verdicts.parquet"


def because(source: str, kept_source: str) -> str:
    """Why the other copy stayed."""
    if source == kept_source:
        return '{"because": "read before it in the same source"}'
    return '{"because": "' + f'{kept_source} comes before {source} in data.sources"' + "}"


@dataclass
class ApplyVerdicts:
    """Drops the documents that a table of verdicts names by `order`, and notes the families of the others."""

    name: str
    verdicts: str  # path, schema VERDICTS; an empty reason only names a family

    def __post_init__(self) -> None:
        self.sha256 = file_sha256(Path(self.verdicts))

    def prepare(self, parts: Sequence[Path]) -> None:
        """Nothing: the verdicts are there."""

    def fingerprint(self) -> str:
        return self.sha256

    def __call__(self, table: pa.Table) -> Outcome:
        verdicts = _load(self.verdicts, self.sha256)
        ledger = LedgerBuilder(self.name)
        keep, families = [], table.column("family").to_pylist()
        for i, order in enumerate(table.column("order").to_pylist()):
            reason, kept, detail, family = verdicts.get(order, ("", "", "", ""))
            keep.append(not reason)
            families[i] = family or families[i]
            if reason:
                ledger.add(table.slice(i, 1).to_pylist()[0], DROPPED, reason, kept)
                ledger.rows[-1]["detail"] = detail
        index = table.schema.get_field_index("family")
        table = table.set_column(index, "family", pa.array(families, type=pa.string()))
        return Outcome(filtered(table, keep), ledger.table())


@lru_cache(maxsize=2)  # those of a build: exact and near
def _load(path: str, sha256: str) -> dict[int, tuple[str, str, str, str]]:
    """reason, kept, detail and family by `order`. sha256: of the file, so that another one is read again."""
    columns = pq.read_table(path).select(VERDICTS.names).to_pydict()
    return dict(zip(columns["order"], zip(*(columns[name] for name in VERDICTS.names[1:]))))
