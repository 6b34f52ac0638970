"""Exact duplicates, found by the text as it reads: line ends, trailing blanks and Unicode form aside.

Near-duplicates are not found here.
"""

from __future__ import annotations

import hashlib
import unicodedata


def content_hash(text: str) -> bytes:
    """16 bytes, equal for texts that differ at most in line ends, blanks at line ends, empty lines at either end,
    and Unicode composition."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return hashlib.blake2b(lines.strip("\n").encode(), digest_size=16).digest()


class ExactDedup:
    """Remembers every text it saw; the first copy is the one that is kept. About 150 bytes per document."""

    def __init__(self) -> None:
        self._kept: dict[bytes, str] = {}

    def kept_copy(self, identity: str, text: str) -> str | None:
        """The id of the earlier copy, or None for a text that is new (it is remembered under `identity`)."""
        key = content_hash(text)
        first = self._kept.setdefault(key, identity)
        return None if first is identity else first
