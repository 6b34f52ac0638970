"""What the comparison needs of a vocabulary, whoever trained it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol


class Vocabulary(Protocol):
    """A vocabulary that is measured. Ids are Python ints in [0, vocab_size)."""

    name: str
    library: str  # what encodes, with its version
    sha256: str | None  # of the file that was read; None where a package carries it
    vocab_size: int  # special tokens included
    single_bytes: frozenset[int]  # ids that stand for exactly one byte of text
    unknown: int | None  # id for what cannot be spelled; None where there is none

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; none stands for a special token."""

    def decode(self, ids: Sequence[int]) -> str | None:
        """Text of the ids; None where the library gives none."""

    def parity(self, text: str, ids: Sequence[int]) -> bool | None:
        """Whether the encoder of record gives these ids; None for a vocabulary that is not ours."""


def version_of(package: str) -> str:
    """The installed version of a package, for reports."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "(unknown version)"
