"""Bits per byte against a plain computation, and the windows that make it."""

from __future__ import annotations

import gzip
import lzma
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.data.shards import Shard
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.pretrain.evaluate import (
    _windows,
    bits_per_byte,
    chosen_documents,
    compressed_bits,
    continuation,
)
from ikirere.recipe.schema import Model

SHAPE = Model(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    intermediate_size=24, max_position_embeddings=64, initializer_range=0.3,
)  # fmt: skip


def _model() -> Decoder:
    return Decoder(ModelConfig.from_recipe(SHAPE))


def _shard(lengths: list[int]) -> Shard:
    generator = torch.Generator().manual_seed(3)
    documents = [[*torch.randint(2, 40, (n,), generator=generator).tolist(), 1] for n in lengths]
    return Shard.from_documents(documents, [3 * n for n in lengths])


def test_documents_that_fit_one_window_equal_a_plain_forward() -> None:
    model, shard = _model(), _shard([5, 12, 1, 30, 9])
    rows = {row["document"]: row for row in bits_per_byte(model, shard, 10**9, 32, batch=3)}
    assert len(rows) == 5
    for i in range(5):
        ids = torch.from_numpy(shard.tokens(i).astype("int64"))[:-1]
        with torch.no_grad():
            logs = torch.log_softmax(model(ids[None])[0], -1)
        nats = math.log(40) - sum(float(logs[t, ids[t + 1]]) for t in range(len(ids) - 1))
        row = rows[shard.id(i)]
        assert math.isclose(row["nats"], nats, rel_tol=1e-5)
        assert row["bits"] == row["nats"] / math.log(2) and row["bytes"] == 3 * len(ids)
        assert row["tokens"] == len(ids)


def test_long_documents_are_scored_with_at_least_half_a_window_of_context() -> None:
    model, shard = _model(), _shard([50])
    row = bits_per_byte(model, shard, 10**9, 16)[0]
    ids = torch.from_numpy(shard.tokens(0).astype("int64"))[:-1]
    nats, done = math.log(40), 1
    while done < 50:
        end = min(50, 16 if done == 1 else done + 8)
        start = max(0, end - 16)
        with torch.no_grad():
            logs = torch.log_softmax(model(ids[None, start:end])[0], -1)
        nats -= sum(float(logs[t - start - 1, ids[t]]) for t in range(done, end))
        done = end
    assert math.isclose(row["nats"], nats, rel_tol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(2, 64))
def test_every_token_but_the_first_is_scored_once(length: int, window: int) -> None:
    scored = [t for w in _windows(0, length, window) for t in range(w.first, w.end)]
    assert scored == list(range(1, length))
    assert all(w.end - w.start <= window and w.start < w.first for w in _windows(0, length, window))


def test_the_mode_of_the_model_is_kept_and_training_is_not_touched() -> None:
    model, shard = _model(), _shard([8])
    model.train()
    bits_per_byte(model, shard, 100, 8)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_the_choice_of_documents_stays_within_the_budget_and_is_never_empty() -> None:
    shard = _shard([10, 20, 30, 40])
    assert len(chosen_documents(shard, 1)) == 1
    picked = chosen_documents(shard, 200)
    assert len(picked) >= 1 and sum(int(shard.n_bytes[i]) for i in picked) <= 200
    assert sorted(chosen_documents(shard, 10**9)) == [0, 1, 2, 3]


def test_compressors_are_the_field_s() -> None:
    text = b"the same words and the same words again " * 50
    found = compressed_bits(text)
    assert found["gzip9"] == 8 * len(gzip.compress(text, 9, mtime=0))
    assert found["xz9"] == 8 * len(lzma.compress(text, preset=9))


def test_a_continuation_is_the_greedy_one() -> None:
    model = _model()
    model.eval()
    ids = [3, 4, 5]
    expected = list(ids)
    with torch.no_grad():
        for _ in range(10):
            token = int(model(torch.tensor([expected]))[0, -1].argmax())
            if token == 1:
                break
            expected.append(token)
    assert continuation(model, ids, 10, stop=1) == expected[3:]
