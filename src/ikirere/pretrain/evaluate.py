"""Bits per byte on held-out documents: a measure that does not depend on the tokenizer."""

from __future__ import annotations

import gzip
import lzma
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ikirere.model.decoder import Decoder
from ikirere.tokens.batch import IGNORE
from ikirere.tokens.shards import Shard
from ikirere.train.objective import token_logprobs


@dataclass(frozen=True)
class _Window:
    """Tokens start to end of a document, of which the targets from `first` on are scored."""

    document: int
    start: int
    end: int
    first: int


def chosen_documents(shard: Shard, max_bytes: int) -> list[int]:
    """Whole documents that fit into `max_bytes` together, taken in the order of their content hashes; where not
    one fits, the shortest."""
    picked: list[int] = []
    total = 0
    for i in sorted(range(len(shard)), key=shard.id):
        size = int(shard.n_bytes[i])
        if total + size <= max_bytes:
            picked.append(i)
            total += size
    if not picked and len(shard):
        picked.append(min(range(len(shard)), key=lambda i: (int(shard.n_bytes[i]), shard.id(i))))
    return picked


def _windows(document: int, length: int, sequence_length: int) -> Iterable[_Window]:
    """Windows that overlap by half, so that a scored token has at least half a window before it (but at the
    document's start) and each token is scored once."""
    done = 1
    while done < length:
        end = min(length, sequence_length if done == 1 else done + sequence_length // 2)
        yield _Window(document, max(0, end - sequence_length), end, done)
        done = end


@torch.no_grad()
def bits_per_byte(
    model: Decoder,
    shard: Shard,
    max_bytes: int,
    sequence_length: int,
    batch: int = 16,
    advance: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows {document, bits, nats, bytes, tokens}, one per document of `chosen_documents`.

    sequence_length: tokens the model sees at once. The first token of a document, which has no context, is charged as
    one of vocab_size equally likely ones; the closing <eos> stands for no byte and is not scored. `model` is restored
    to the mode it was in (training or evaluation).
    """
    documents = chosen_documents(shard, max_bytes)
    tokens = {i: torch.from_numpy(shard.tokens(i).astype("int64"))[:-1] for i in documents}
    first = math.log(model.config.vocab_size)
    nats = {i: first if len(tokens[i]) else 0.0 for i in documents}
    windows = [w for i in documents for w in _windows(i, len(tokens[i]), sequence_length)]
    windows.sort(key=lambda w: w.start - w.end)
    training = model.training
    model.eval()
    for begin in range(0, len(windows), batch):
        part = windows[begin : begin + batch]
        width = max(w.end - w.start for w in part) - 1
        inputs = torch.zeros(len(part), width, dtype=torch.long)
        labels = torch.full((len(part), width), IGNORE)
        for row, w in enumerate(part):
            ids = tokens[w.document][w.start : w.end]
            inputs[row, : len(ids) - 1] = ids[:-1]
            labels[row, w.first - w.start - 1 : len(ids) - 1] = ids[w.first - w.start :]
        # Padding lies on the right, where causal attention never sees it from a scored position.
        hidden = model.hidden(inputs.to(model.device))
        found = token_logprobs(hidden, model.output_weight, labels.to(model.device)).sum(-1).tolist()
        for w, value in zip(part, found, strict=True):
            nats[w.document] -= value
        if advance is not None:
            advance(len(part))
    model.train(training)
    return [
        {
            "document": shard.id(i),
            "bits": nats[i] / math.log(2),
            "nats": nats[i],
            "bytes": int(shard.n_bytes[i]),
            "tokens": len(tokens[i]),
        }
        for i in documents
    ]


def compressed_bits(text: bytes) -> dict[str, int]:
    """Bits of the same bytes under `gzip -9` and `xz -9`, headers included."""
    return {
        "gzip9": 8 * len(gzip.compress(text, 9, mtime=0)),
        "xz9": 8 * len(lzma.compress(text, preset=9)),
    }


@torch.no_grad()
def continuation(model: Decoder, prompt: list[int], count: int, stop: int) -> list[int]:
    """Ids of the greedy continuation of a prompt: at most `count`, up to `stop`, which is left out. For samples that
    people read; `serve` generates for users."""
    from ikirere.model.cache import KVCache

    training = model.training
    model.eval()
    cache = KVCache(model.config, 1, len(prompt) + count, model.dtype, model.device)
    given = torch.tensor([prompt], device=model.device)
    made: list[int] = []
    for _ in range(count):
        token = int(model(given, cache=cache, logits_to_keep=1)[0, -1].argmax())
        if token == stop:
            break
        made.append(token)
        given = torch.tensor([[token]], device=model.device)
    model.train(training)
    return made
