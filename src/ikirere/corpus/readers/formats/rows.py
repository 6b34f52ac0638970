"""Rows of JSONL, Parquet or hub datasets to documents."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ikirere.corpus.document import Document
from ikirere.corpus.licence import UNKNOWN, spdx
from ikirere.corpus.readers.text import (
    BAD_ROW,
    BINARY,
    EMPTY,
    LARGEST,
    TOO_LONG,
    UNDECODABLE,
    Skipped,
    printable,
)
from ikirere.errors import UserError

Row = Mapping[str, Any]

# Collections that quote a licence's deed rather than name it.
_DEED = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)")
_FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what. `a.b` leads into a struct. `url` and `path` may be patterns with columns in braces.

    text: the columns that the text is made of; compose: makes it of their values in that order, and raises ValueError
    for values it cannot use; without it the one column is the text. licence: of rows that carry none in
    licence_field. group: column by which documents are split, None: the file or, on the hub, the row.
    """

    text: tuple[str, ...] = ("text",)
    compose: Callable[..., str] | None = None
    licence: str | None = None
    licence_field: str | None = None
    group: str | None = None
    url: str | None = "url"
    path: str | None = "path"
    lang: str = "lang"

    def named(self) -> set[str]:
        """The top-level columns that are looked at."""
        single = (self.licence_field, self.group, self.lang)
        patterns = [name for text in (self.url, self.path) if text for name in _FIELD.findall(text) or [text]]
        return {name for one in (*self.text, *single, *patterns) if one for name in (one, one.split(".")[0])}


def value(row: Row, name: str | None) -> Any:
    """A column, or a field of a struct by its dotted name; None where there is no such thing."""
    if name is None or name in row:
        return None if name is None else row[name]
    found: Any = row
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _filled(row: Row, pattern: str | None) -> str:
    """A column's text or a filled pattern; '' where a column is missing or empty."""
    if pattern is None:
        return ""
    names = _FIELD.findall(pattern)
    if not names:
        found = value(row, pattern)
        return printable(found) if isinstance(found, str) else ""
    values = {name: value(row, name) for name in names}
    if any(v is None or v == "" for v in values.values()):
        return ""
    return printable(_FIELD.sub(lambda match: str(values[match[1]]), pattern))


def licence_id(value: Any, otherwise: str | None) -> str:
    """SPDX expression of a row's value: a name, the address of a Creative Commons deed, or a list of them (all of
    which then hold)."""
    if isinstance(value, (list, tuple)):
        found = sorted({licence_id(v, None) for v in value})
        return " AND ".join(f"({f})" if " OR " in f and len(found) > 1 else f for f in found) or spdx(
            otherwise
        )
    text = str(value) if value else ""
    if deed := _DEED.search(text):
        kind, name, version = deed.groups()
        return (
            f"CC0-{version}"
            if name == "zero"
            else f"CC-{name.upper()}-{version}"
            if kind == "licenses"
            else UNKNOWN
        )
    return spdx(text) if text else spdx(otherwise)


class RowMapper:
    """Makes documents of rows by their columns."""

    def __init__(self, name: str, domain: str, columns: Columns) -> None:
        self.name, self.domain, self.columns = name, domain, columns
        self._good: set[str] = set()  # files of which a row had its text

    def wanted(self) -> set[str]:
        """Columns that are looked at."""
        return self.columns.named()

    def require(self, names: Iterable[str], where: str) -> None:
        """Raises UserError naming the columns where those of the text are not among them."""
        names = set(map(str, names))
        if missing := [n for n in self.columns.text if n not in names and n.split(".")[0] not in names]:
            raise UserError(
                f"{where}: no field {', '.join(map(repr, missing))} (text_field of source {self.name!r}); "
                f"fields are {', '.join(sorted(names)) or 'none'}"
            )

    def document(self, row: Row, where: str, file: str, skipped: Skipped) -> Document | None:
        """where: file and row, for messages. file: the group of rows that have none of their own.

        Raises UserError where the first row of a file has no such column as the text's; a later row without it is
        skipped.
        """
        values = [value(row, name) for name in self.columns.text]
        if any(v is None and name not in row for v, name in zip(values, self.columns.text)):
            if file not in self._good:
                self.require(row, where)
            skipped(where, BAD_ROW)
            return None
        self._good.add(file)
        text, reason = self._text(values)
        if reason is not None:
            skipped(where, reason)
            return None
        own = value(row, self.columns.group)
        try:
            return Document(
                text,
                self.name,
                file if own is None else f"{self.name}/{printable(str(own))}",
                _filled(row, self.columns.path) or where,
                self.domain,
                licence_id(value(row, self.columns.licence_field), self.columns.licence),
                printable(str(value(row, self.columns.lang) or "")),
                _filled(row, self.columns.url),
            )
        except UnicodeEncodeError:  # JSON may spell half of a surrogate pair
            skipped(where, UNDECODABLE)
            return None

    def _text(self, values: list[Any]) -> tuple[str, str | None]:
        """The text, or why there is none."""
        try:
            values = [v.decode() if isinstance(v, bytes) else v for v in values]
            if self.columns.compose is None:
                text = values[0]
            elif any(v is None or v in ("", []) for v in values):
                return "", EMPTY
            else:
                text = self.columns.compose(*values)
        except UnicodeDecodeError:
            return "", UNDECODABLE
        except (ValueError, TypeError, KeyError, AttributeError):
            return "", BAD_ROW
        if not isinstance(text, str) or not text.strip():
            return "", EMPTY
        if len(text) > LARGEST:
            return "", TOO_LONG
        return ("", BINARY) if "\0" in text else (text, None)
