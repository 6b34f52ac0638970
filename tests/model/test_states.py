"""What every mixer with a state of fixed size keeps: documents apart, the past only, and exact continuation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from mixer_helpers import decoding_continues, documents_stay_apart, rows_may_differ, scattered, tokens

from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder

SETTINGS: dict[str, dict[str, Any]] = {
    "kda": {"head_dim": 10, "chunk_size": 16},
    "mamba2": {"head_dim": 12, "state_size": 10, "n_groups": 2, "chunk_size": 16},
    "retention": {"num_heads": 3, "head_dim": 10, "value_head_dim": 14, "chunk_size": 16},
}
PER_ROW = {  # numbers of each row and layer: tails of the convolutions and the state
    "kda": 3 * 3 * 20 + 2 * 10 * 10,
    "mamba2": 4 * 10 * 12 + 3 * (48 + 40),
    "retention": 3 * 10 * 14,
}
EXACT = {"kda": {"A_log", "dt_bias"}, "mamba2": {"A_log", "dt_bias", "D"}, "retention": set()}


@pytest.fixture(params=sorted(SETTINGS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> Decoder:
    mixers = {name: SETTINGS[name]}
    return scattered(ModelConfig(50, 24, 3, 2, 2, 40, 200, head_dim=12, layer_pattern=name, mixers=mixers))


def tail(state: Any) -> Tensor:
    """Of the convolutions, rows first."""
    return state.tails.transpose(0, 1) if hasattr(state, "tails") else state.tail


def test_layers_see_the_past_only_and_all_of_it(model: Decoder) -> None:
    t = tokens(1, 1, 40)
    other = t.clone()
    other[0, 20] = (t[0, 20] + 1) % 50
    with torch.no_grad():
        a, b = model(t), model(other)
    assert (a[:, :20] - b[:, :20]).abs().max() <= 1e-6
    assert (a[:, 20:] - b[:, 20:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("lengths", [[1, 1, 30, 5, 16, 17], [64, 6], [3, 2, 2, 1, 1, 1, 60]])
def test_packed_documents_equal_documents_apart(model: Decoder, lengths: list[int]) -> None:
    documents_stay_apart(model, lengths)


def test_rows_of_a_batch_pack_differently(model: Decoder) -> None:
    t = tokens(3, 2, 30)
    documents = torch.tensor([[0] * 11 + [1] * 19, [4] * 29 + [-1]])
    with torch.no_grad():
        packed = model(t, None, documents)
        alone = [model(t[i : i + 1], None, documents[i : i + 1]) for i in range(2)]
    assert (packed - torch.cat(alone)).abs().max() <= 1e-5


def test_decoding_continues_at_every_position(model: Decoder) -> None:
    decoding_continues(model, 35)


def test_rows_of_different_lengths_and_padding(model: Decoder) -> None:
    cache, t, _ = rows_may_differ(model)
    with torch.no_grad():
        # A padded prefill leaves what an unpadded one leaves.
        alone = KVCache(model.config, 1, 40)
        model(t[1:2, :3], cache=alone)
    for padded, plain in zip(cache.layers, alone.layers, strict=True):
        torch.testing.assert_close(padded.memory[0], plain.memory[0])
        torch.testing.assert_close(tail(padded)[0], tail(plain)[0])
    assert not cache.layers[0].memory[2].any()


def test_rows_are_copied_and_forgotten(model: Decoder, name: str) -> None:
    t = tokens(6, 1, 12)
    with torch.no_grad():
        whole = model(t)
        cache = KVCache(model.config, 2, 12)
        model(t[:, :7], cache=cache, rows=torch.tensor([0]))
        cache.copy(0, 1)
        copied = model(t[:, 7:], cache=cache, rows=torch.tensor([1]))
        cache.reset(0)
        again = model(t, cache=cache, rows=torch.tensor([0]))
    assert (copied - whole[:, 7:]).abs().max() <= 1e-5
    assert (again - whole).abs().max() <= 1e-5
    # Of fixed size: 3 layers, 2 rows, numbers of 4 bytes.
    assert cache.bytes == KVCache(model.config, 2, 9000).bytes == 3 * 2 * PER_ROW[name] * 4


def test_a_pass_with_a_cache_may_have_a_gradient(model: Decoder) -> None:
    cache = KVCache(model.config, 1, 9)
    model(tokens(1, 1, 4), cache=cache)
    model(tokens(2, 1, 5), cache=cache).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_half_precision(name: str) -> None:
    """bf16 weights and activations: within 3% of fp32 in the mean; decays and state stay fp32."""
    config = ModelConfig(50, 64, 2, 2, 2, 96, 300, layer_pattern=name, mixers={name: {"head_dim": 32}})
    model, t = Decoder(config), tokens(7, 2, 150)
    with torch.no_grad():
        whole = model(t)
        model.to(torch.bfloat16)
        kept = {n.split(".")[-1] for n, p in model.named_parameters() if p.dtype == torch.float32}
        assert kept == EXACT[name]
        half = model(t)
        assert half.dtype == torch.bfloat16
        assert (half - whole).norm() <= 0.03 * whole.norm()
        cache = KVCache(config, 2, 150, torch.bfloat16)
        parts = torch.cat([model(p, cache=cache) for p in t.split([100, 1, 49], 1)], 1)
        assert cache.layers[0].memory.dtype == torch.float32
        assert tail(cache.layers[0]).dtype == torch.bfloat16
        assert (parts - whole).norm() <= 0.03 * whole.norm()


def test_mixed_precision_trains(model: Decoder) -> None:
    t = tokens(8, 2, 40)
    with torch.no_grad():
        whole = model(t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(t[:, :-1]).float().flatten(0, 1), t[:, 1:].flatten())
    loss.backward()
    expected = F.cross_entropy(whole[:, :-1].flatten(0, 1), t[:, 1:].flatten())
    assert abs(loss.item() - expected.item()) <= 0.02 * expected.item()
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == p.dtype for p in model.parameters())
