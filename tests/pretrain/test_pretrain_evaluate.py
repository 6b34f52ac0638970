"""Bits per byte: every token once, what it is worth, and of the documents it says."""

from __future__ import annotations

import gzip
import lzma
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.pretrain.evaluate import _windows, bits_per_byte, chosen_documents, compressed_bits, continuation
from ikirere.tokens.shards import Shard

VOCAB, EOS = 50, 49


@pytest.fixture(autouse=True)
def _thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_model() -> Decoder:
    model = Decoder(ModelConfig(VOCAB, 16, 2, 2, 1, 24, 64))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # so that context matters
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def documents(*lengths: int) -> Shard:
    generator = torch.Generator().manual_seed(7)
    texts = [[*torch.randint(0, EOS, (n,), generator=generator).tolist(), EOS] for n in lengths]
    return Shard.from_documents(texts, [3 * n for n in lengths])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(2, 40))
def test_windows_score_each_token_once_with_half_a_window_before_it(length: int, size: int) -> None:
    scored: list[int] = []
    for w in _windows(0, length, size):
        assert 0 <= w.start < w.first < w.end <= length and w.end - w.start <= size
        scored += range(w.first, w.end)
        assert w.start == 0 or w.first - w.start >= size // 2
    assert scored == list(range(1, length))


def reference(model: Decoder, ids: list[int], size: int) -> float:
    """Nats of a document, token by token."""
    nats = math.log(VOCAB)
    for w in _windows(0, len(ids), size):
        logits = F.log_softmax(model(torch.tensor([ids[w.start : w.end]])), -1)[0]
        nats -= sum(float(logits[i - w.start - 1, ids[i]]) for i in range(w.first, w.end))
    return nats


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_values_are_those_of_each_document_alone(batch: int) -> None:
    model, shard = small_model(), documents(1, 5, 12, 40, 33)
    with torch.no_grad():
        rows = bits_per_byte(model, shard, 10**6, 16, batch)
        assert model.training and all(p.grad is None for p in model.parameters())
        assert [row["document"] for row in rows] == sorted(shard.id(i) for i in range(len(shard)))
        for row in rows:
            i = [shard.id(j) for j in range(len(shard))].index(row["document"])
            ids = shard.tokens(i)[:-1].tolist()
            assert (row["tokens"], row["bytes"]) == (len(ids), 3 * len(ids))
            assert row["nats"] == pytest.approx(reference(model, ids, 16), rel=1e-5)
            assert row["bits"] == pytest.approx(row["nats"] / math.log(2))


def test_a_model_that_knows_nothing_needs_the_bits_of_the_vocabulary() -> None:
    model = small_model()
    with torch.no_grad():
        model.embed_tokens.weight.zero_()
    for row in bits_per_byte(model, documents(9, 30, 2), 10**6, 8):
        assert row["bits"] == pytest.approx(row["tokens"] * math.log2(VOCAB), rel=1e-6)


def test_an_empty_document_costs_nothing() -> None:
    [row] = bits_per_byte(small_model(), documents(0), 10, 8)
    assert (row["bits"], row["bytes"], row["tokens"]) == (0.0, 0, 0)


def test_documents_are_whole_and_within_the_budget() -> None:
    shard = documents(10, 20, 30, 200, 5)
    assert len(chosen_documents(shard, 10**6)) == 5
    some = chosen_documents(shard, 150)
    assert 0 < sum(int(shard.n_bytes[i]) for i in some) <= 150
    assert len(chosen_documents(documents(100), 10)) == 1


def test_compressors_are_the_real_ones() -> None:
    text = b"the same and the same again, " * 50
    found = compressed_bits(text)
    assert gzip.decompress(gzip.compress(text, 9)) == text
    assert found == {"gzip9": 8 * len(gzip.compress(text, 9)), "xz9": 8 * len(lzma.compress(text, preset=9))}


def test_continuation_is_greedy_and_stops() -> None:
    model = small_model()
    prompt = [1, 2, 3]
    expected = list(prompt)
    with torch.no_grad():
        for _ in range(6):
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    made = continuation(model, prompt, 6, stop=-1)
    assert made == expected[3:]
    assert continuation(model, prompt, 6, stop=made[2]) == made[: made.index(made[2])]
