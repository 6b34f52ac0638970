"""Personal data and credentials are replaced by typed placeholders, and every replacement is logged without
its value."""

from __future__ import annotations

import hashlib
import hmac
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from ikirere.corpus.steps.pii_patterns import Span, addresses, cards, emails, phones
from ikirere.corpus.steps.pii_secrets import secrets
from ikirere.corpus.steps.step import CHANGED, LedgerBuilder, Outcome, StepContext, in_domains, with_text
from ikirere.errors import UserError

# Where two kinds overlap the earlier one is taken: a token may hold digits, a card number read like a
# telephone's.
FINDERS: dict[str, Callable[[str], list[Span]]] = {
    "secret": secrets,
    "email": emails,
    "card": cards,
    "ip": addresses,
    "phone": phones,
}
# In square brackets, because the special tokens of the tokenizer are in angles. No finder's pattern takes in
# a square bracket, so what is found never touches a placeholder.
PLACEHOLDERS = {kind: f"[{kind.upper()}]" for kind in FINDERS}
REDACTIONS = pa.schema(
    [
        (name, pa.int64() if name in ("start", "end") else pa.string())
        for name in ("id", "domain", "kind", "start", "end", "hash")
    ]
)


class Redaction(NamedTuple):
    """A span of characters [start, end) of a text, and the kind of what stood there."""

    kind: str
    start: int
    end: int


def find(text: str, kinds: Collection[str]) -> list[Redaction]:
    """Personal data of these kinds, in order, not overlapping."""
    found: list[Redaction] = []
    for kind, finder in FINDERS.items():
        if kind in kinds:
            new = [Redaction(kind, *span) for span in finder(text)]
            found += [
                one for one in new if not any(one.start < old.end and old.start < one.end for old in found)
            ]
    return sorted(found, key=lambda one: one.start)


def replace(text: str, found: Sequence[Redaction]) -> str:
    """The text with each span replaced by the placeholder of its kind. found: in order, not overlapping."""
    pieces, done = [], 0
    for kind, start, end in found:
        pieces += [text[done:start], PLACEHOLDERS[kind]]
        done = end
    return "".join(pieces) + text[done:]


def redact(text: str, kinds: Collection[str] = tuple(FINDERS)) -> tuple[str, list[Redaction]]:
    """The text without personal data, and what was taken out, by its position in the text as it came in.

    It looks again after each replacement, until nothing is found: a second call changes nothing. (What stands
    beside a placeholder may only then have a boundary there.)
    """
    taken: list[Redaction] = []
    current = text
    while True:
        found = find(current, kinds)
        if not found:
            return current, taken
        taken = _merged(taken, found)
        current = replace(text, taken)


def _merged(taken: Sequence[Redaction], found: Sequence[Redaction]) -> list[Redaction]:
    """`taken`, and with them `found`, which are spans of the text after `taken` were replaced."""
    merged = list(taken)
    shift, passed = 0, 0
    for kind, start, end in found:
        while passed < len(taken) and taken[passed].start < start + shift:
            one = taken[passed]
            shift += one.end - one.start - len(PLACEHOLDERS[one.kind])
            passed += 1
        merged.append(Redaction(kind, start + shift, end + shift))
    return sorted(merged, key=lambda one: one.start)


class Redactor:
    """Replaces e-mail addresses, telephone numbers, IP addresses, credentials and card numbers by `[EMAIL]`,
    `[PHONE]`, `[IP]`, `[SECRET]` and `[CARD]` (ledger: `changed`, reason `pii`, counts per kind).

    The log `redactions` has a row per replacement: id, domain, kind, start and end in characters of the text
    as it came in, and a keyed hash of the value (HMAC-SHA256, 32 hex digits). The value is in no log. The key
    comes from the recipe's seed, so that builds are equal and equal values can be counted; whoever has the
    recipe can therefore test a guess, and can try all telephone numbers. The hashes are no anonymisation: do
    not publish them.

    Not covered: names, postal addresses, birth dates, national identity numbers, and what the finders of
    `pii_patterns` and `pii_secrets` name as not found.
    """

    name: ClassVar[str] = "pii"

    def __init__(self, context: StepContext) -> None:
        settings = context.data.pii
        if settings is None:
            raise UserError("data.pii: the step needs its section")
        self.kinds = tuple(settings.kinds)
        self.domains = settings.domains
        self.key = hashlib.sha256(f"ikirere pii {context.seed}".encode()).digest()

    def prepare(self, parts: Sequence[Path]) -> None:
        """Nothing to make ready."""

    def fingerprint(self) -> str:
        return f"phonenumbers {importlib.metadata.version('phonenumbers')}"

    def value_hash(self, value: str) -> str:
        """32 hex digits, equal for equal values of one recipe seed."""
        return hmac.new(self.key, value.encode(), hashlib.sha256).hexdigest()[:32]

    def __call__(self, table: pa.Table) -> Outcome:
        ledger = LedgerBuilder(self.name)
        texts: list[str] = []
        log: list[dict[str, Any]] = []
        columns = table.select(["id", "text", "path", "source", "domain", "licence"])
        for row, looked_at in zip(columns.to_pylist(), in_domains(table, self.domains)):
            text, taken = redact(row["text"], self.kinds) if looked_at else (row["text"], [])
            texts.append(text)
            if not taken:
                continue
            counts = Counter(one.kind for one in taken)
            ledger.add(row, CHANGED, "pii", detail=dict(sorted(counts.items())))
            for kind, start, end in taken:
                value = self.value_hash(row["text"][start:end])
                log.append(
                    {
                        "id": row["id"],
                        "domain": row["domain"],
                        "kind": kind,
                        "start": start,
                        "end": end,
                        "hash": value,
                    }
                )
        return Outcome(
            with_text(table, texts),
            ledger.table(),
            {"redactions": pa.Table.from_pylist(log, schema=REDACTIONS)},
        )
