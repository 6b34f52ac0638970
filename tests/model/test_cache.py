"""Prefill and decode through the cache equal the whole sequence at once, however it is split."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Networks this small only wait for a second thread.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LENGTHS = (13, 6, 9)


def build(**changes: object) -> tuple[Decoder, torch.Tensor, torch.Tensor]:
    """A model, three sequences, and the logits of each in one pass without a cache."""
    base = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    base |= {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 32}
    model = Decoder(ModelConfig.from_dict({**base, "initializer_range": 0.2, "qk_norm": True, **changes}))
    tokens = torch.randint(0, 61, (3, max(LENGTHS)), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return model, tokens, model(tokens)


MODEL, TOKENS, WHOLE = build()


def feed(cache: KVCache, model: Decoder, sequences: list[int], slots: list[int], sizes: list[int]) -> None:
    """Appends the next `sizes` tokens of sequences to their slots in one pass, and compares."""
    starts = [int(cache.lengths[slot]) for slot in slots]
    longest = max(sizes)
    tokens = torch.zeros(len(slots), longest, dtype=torch.long)
    for i, (s, start, size) in enumerate(zip(sequences, starts, sizes, strict=True)):
        tokens[i, :size] = TOKENS[s, start : start + size]
    counts = torch.tensor(sizes) if len(set(sizes)) > 1 else None
    with torch.inference_mode():
        logits = model(tokens, cache=cache, rows=torch.tensor(slots), counts=counts)
    for i, (s, start, size) in enumerate(zip(sequences, starts, sizes, strict=True)):
        torch.testing.assert_close(logits[i, :size], WHOLE[s, start : start + size], atol=1e-5, rtol=1e-5)
        assert int(cache.lengths[slots[i]]) == start + size


@pytest.mark.parametrize("split", range(1, LENGTHS[0]))
@pytest.mark.parametrize("rest", ["at once", "one by one"])
def test_every_split_point_with_rows_of_unequal_length(split: int, rest: str) -> None:
    cache = KVCache(MODEL.config, batch=5, capacity=LENGTHS[0])
    slots = [4, 0, 2]
    first = [min(split, n - 1) for n in LENGTHS]
    feed(cache, MODEL, [0, 1, 2], slots, first)
    left = [n - f for n, f in zip(LENGTHS, first, strict=True)]
    while any(left):
        going = [i for i in range(3) if left[i]]
        sizes = [left[i] if rest == "at once" else 1 for i in going]
        feed(cache, MODEL, going, [slots[i] for i in going], sizes)
        for i, size in zip(going, sizes, strict=True):
            left[i] -= size
    assert cache.lengths.tolist() == [6, 0, 9, 0, 13]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_schedule_of_appends(data: st.DataObject) -> None:
    cache = KVCache(MODEL.config, batch=4, capacity=13)
    slots = data.draw(st.permutations(range(4)))[:3]
    held = [0, 0, 0]
    while any(h < 13 for h in held):
        open_ = [i for i in range(3) if held[i] < 13]
        going = data.draw(st.lists(st.sampled_from(open_), min_size=1, unique=True))
        sizes = [data.draw(st.integers(1, 13 - held[i])) for i in going]
        feed(cache, MODEL, going, [slots[i] for i in going], sizes)
        for i, size in zip(going, sizes, strict=True):
            held[i] += size


def test_untied_model_without_head_norm_and_with_one_kv_head() -> None:
    model, tokens, whole = build(qk_norm=False, tie_word_embeddings=False, num_key_value_heads=1, head_dim=10)
    cache = KVCache(model.config, 3, 20)
    with torch.no_grad():
        parts = [model(piece, cache=cache) for piece in tokens.split([5, 1, 1, 6], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    assert cache.keys[0].shape == cache.values[2].shape == (3, 1, 20, 10)


def test_reset_and_reuse_of_a_slot() -> None:
    cache = KVCache(MODEL.config, 2, 16)
    feed(cache, MODEL, [0, 1], [0, 1], [12, 5])
    cache.reset(0)
    assert cache.lengths.tolist() == [0, 5]
    feed(cache, MODEL, [2, 1], [0, 1], [3, 1])
    feed(cache, MODEL, [2, 1], [0, 1], [4, 2])


def test_copies_go_their_own_ways() -> None:
    cache = KVCache(MODEL.config, 3, 16)
    feed(cache, MODEL, [0], [0], [7])
    cache.copy(0, 2)
    with torch.no_grad():
        MODEL(torch.tensor([[1, 2, 3]]), cache=cache, rows=torch.tensor([0]))
    feed(cache, MODEL, [0], [2], [4])
    assert cache.lengths.tolist() == [10, 0, 11]


def test_bytes_and_dtype() -> None:
    cache = KVCache(MODEL.config, 3, 16, dtype=torch.bfloat16)
    assert cache.bytes == 3 * 2 * 3 * 2 * 16 * 8 * 2
    counts = torch.tensor([8, 5, 6])
    with torch.no_grad():
        MODEL(TOKENS[:, :8], cache=cache, counts=counts)
        low = MODEL(TOKENS.gather(1, counts[:, None]), cache=cache)
    expected = WHOLE[torch.arange(3), counts][:, None]
    assert low.dtype == torch.float32
    assert (low - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("rows", "counts", "length", "words"),
    [
        ([0, 0], None, 1, "2 sequences"),
        ([0, 3], None, 1, "2 sequences"),
        ([-1, 0], None, 1, "2 sequences"),
        ([0], None, 1, "2 sequences"),
        (None, None, 1, "2 sequences"),
        ([0, 1], [1, 0], 2, "1 to 2 tokens"),
        ([0, 1], [1, 3], 2, "1 to 2 tokens"),
        ([0, 1], [1], 2, "1 to 2 tokens"),
        ([0, 1], None, 17, "17 tokens; the cache's capacity is 16"),
    ],
)
def test_impossible_steps(rows: list | None, counts: list | None, length: int, words: str) -> None:
    cache = KVCache(MODEL.config, 3, 16)
    with pytest.raises(ValueError, match=words):
        MODEL(
            torch.zeros(2, length, dtype=torch.long),
            cache=cache,
            rows=None if rows is None else torch.tensor(rows),
            counts=None if counts is None else torch.tensor(counts),
        )
    assert cache.lengths.tolist() == [0, 0, 0]


def test_longer_than_the_model_and_documents_with_a_cache() -> None:
    cache = KVCache(MODEL.config, 1, 100)
    with pytest.raises(UserError, match=r"33 tokens; model\.max_position_embeddings allows 32"):
        MODEL(torch.zeros(1, 33, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="one document"):
        MODEL(TOKENS[:1], document_ids=torch.zeros(1, 13, dtype=torch.long), cache=cache)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_key_value_heads": 4}, "num_key_value_heads 4; this one has 2"),
        ({"layer_pattern": "full window"}, "layer_pattern 'full window'; this one has 'full'"),
    ],
)
def test_a_cache_of_another_model_is_refused(change: dict[str, Any], words: str) -> None:
    shape = ModelConfig(31, 16, 2, 4, 2, 24, 32)
    cache = KVCache(dataclasses.replace(shape, **change), 1, 8)
    with pytest.raises(ValueError, match=words):
        Decoder(shape)(torch.zeros(1, 3, dtype=torch.long), cache=cache)


def test_a_cache_outlives_a_new_base_of_positions() -> None:
    model = Decoder(ModelConfig(31, 16, 2, 4, 2, 24, 32)).eval()
    cache = KVCache(model.config, 1, 8)
    model(torch.zeros(1, 3, dtype=torch.long), cache=cache)
    model.set_rope_theta(5.0)
    model(torch.zeros(1, 1, dtype=torch.long), cache=cache)
    assert cache.lengths.tolist() == [4]
