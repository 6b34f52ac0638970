"""Figures of a tokenizer on documents that it was not trained on: one row per document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from ikirere.tokenizer.base import Tokenizer

TOGETHER = 64  # documents encoded at once


def measure_documents(
    tokenizer: Tokenizer, documents: Iterable[Mapping[str, str]]
) -> Iterator[dict[str, Any]]:
    """Rows from documents with `id`, `domain` and `text`.

    id, domain; bytes (UTF-8), tokens, lines (a last line without a line end counts); round_trip (1 where decoding
    gives the text back exactly); forged (1 where the text with every special token's spelling appended gave a special
    id); unknown (tokens that stand for what the vocabulary cannot spell).
    """
    hostile = "".join(tokenizer.special_tokens)
    source = iter(documents)
    while batch := list(islice(source, TOGETHER)):
        texts = [document["text"] for document in batch]
        encoded = tokenizer.encode_batch(texts)
        attacked = tokenizer.encode_batch([text + hostile for text in texts])
        for document, text, ids, attack in zip(batch, texts, encoded, attacked):
            yield {
                "id": document["id"],
                "domain": document["domain"],
                "bytes": len(text.encode()),
                "tokens": len(ids),
                "lines": text.count("\n") + (not text.endswith("\n")),
                "round_trip": int(tokenizer.decode(ids) == text),
                "forged": int(not tokenizer.special_ids.isdisjoint(attack)),
                "unknown": 0 if tokenizer.unknown is None else ids.count(tokenizer.unknown),
            }
