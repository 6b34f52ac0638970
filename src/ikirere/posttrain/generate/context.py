"""What generators draw from: a random source, the split, and the documents of that split."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypedDict

from ikirere.posttrain.generate.row import HELDOUT_SHARE, ConversationDraft, Split, split_of

WORD_BYTES = 3_000_000  # of documents that are searched for words
_WORD = re.compile(r"(?<![A-Za-z_\d])[a-z]{3,10}(?![A-Za-z_\d])")


class SourceDocument(TypedDict):
    """What generators read of a document."""

    text: str
    path: str
    domain: str


class GeneratorContext:
    """Shared by the generators of one call. `choose` and `maybe` draw from the call's random source."""

    def __init__(self, rng: random.Random, split: Split, documents: Sequence[SourceDocument]) -> None:
        self.rng = rng
        self.split = split
        self.documents = documents

    def mine(self, key: str, one_in: int = HELDOUT_SHARE) -> bool:
        """Whether a key belongs to this split; one key in so many is held out."""
        return split_of(key, one_in) == self.split

    def choose(self, options: Sequence[str]) -> str:
        return options[self.rng.randrange(len(options))]

    def maybe(self, probability: float) -> bool:
        return self.rng.random() < probability

    def tools(self) -> tuple[str, ...]:
        """Tools offered beside the one that is needed: mostly both, in either order."""
        return ("calculator", "python_exec") if self.maybe(0.8) else ("python_exec", "calculator")

    @cached_property
    def shuffled(self) -> list[SourceDocument]:
        """The documents in this call's order."""
        order = list(self.documents)
        self.rng.shuffle(order)
        return order

    @cached_property
    def words(self) -> list[str]:
        """Lower-case words of the documents that belong to this split, most frequent first, at most 3,000."""
        counts: dict[str, int] = {}
        read = 0
        for document in self.documents:
            for word in _WORD.findall(document["text"]):
                counts[word] = counts.get(word, 0) + 1
            read += len(document["text"])
            if read > WORD_BYTES:
                break
        mine = [word for word in counts if self.mine(f"word {word}")]
        return sorted(mine, key=lambda word: (-counts[word], word))[:3000]


Generator = Callable[[GeneratorContext], Iterator[ConversationDraft]]
