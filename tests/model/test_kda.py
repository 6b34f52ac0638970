"""Kimi Delta Attention as a layer: documents, decoding, precision, settings, counts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.layers.kda import KimiDeltaAttention
from ikirere.model.layers.mixer import Context
from ikirere.recipe.load import load_recipe
from ikirere.recipe.planner.counts import count
from ikirere.recipe.schema import Model

# ---------------------------------------------------------------- the layer

SHAPE = ModelConfig(
    50,
    24,
    3,
    2,
    2,
    40,
    200,
    head_dim=12,
    layer_pattern="kda",
    mixers={"kda": {"head_dim": 10, "chunk_size": 16}},
)


def scattered(config: ModelConfig = SHAPE, seed: int = 0) -> Decoder:
    """A decoder whose weights are far from their start, each kind within its own range."""
    model, r = Decoder(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=r) * 0.1)
    return model


def tokens(seed: int, batch: int, length: int) -> Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_start() -> None:
    first, second = (Decoder(SHAPE).layers[0].mixer for _ in range(2))
    assert isinstance(first, KimiDeltaAttention)
    assert torch.equal(first.A_log, second.A_log)
    assert first.A_log.shape == (2,)
    assert 0 <= first.A_log.min() <= first.A_log.max() <= math.log(16)
    step = F.softplus(first.dt_bias)
    assert 0.999e-3 <= step.min() < 3e-3 < 0.03 < step.max() <= 0.1001
    assert 0 < first.q_conv.weight.abs().max() <= 0.5
    assert not torch.equal(first.q_conv.weight, first.k_conv.weight)


def test_layers_see_the_past_only_and_all_of_it() -> None:
    model = scattered()
    t = tokens(1, 1, 40)
    other = t.clone()
    other[0, 20] = (t[0, 20] + 1) % 50
    with torch.no_grad():
        a, b = model(t), model(other)
    assert torch.equal(a[:, :20], b[:, :20])
    assert (a[:, 20:] - b[:, 20:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("lengths", [[1, 1, 30, 5, 16, 17], [64, 6], [3, 2, 2, 1, 1, 1, 60]])
def test_packed_documents_equal_documents_apart(lengths: list[int]) -> None:
    model = scattered()
    t = tokens(2, 2, sum(lengths))
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    found = []
    for logits in (
        model(t, None, documents),
        torch.cat([model(piece) for piece in t.split(lengths, 1)], 1),
    ):
        model.zero_grad()
        (logits.square().mean() + logits[:, ::3].sum() / 100).backward()
        found.append((logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (ours, of_ours), (apart, of_apart) = found
    assert (ours - apart).abs().max() <= 1e-5
    for name, grad in of_apart.items():
        assert (of_ours[name] - grad).abs().max() <= 1e-4 * grad.abs().max(), name


def test_rows_of_a_batch_pack_differently() -> None:
    model = scattered()
    t = tokens(3, 2, 30)
    documents = torch.tensor([[0] * 11 + [1] * 19, [4] * 29 + [-1]])
    with torch.no_grad():
        packed = model(t, None, documents)
        alone = [model(t[i : i + 1], None, documents[i : i + 1]) for i in range(2)]
    assert (packed - torch.cat(alone)).abs().max() <= 1e-5


def test_decoding_continues_at_every_place() -> None:
    model = scattered()
    t = tokens(4, 2, 35)
    with torch.no_grad():
        whole = model(t)
        for cut in range(1, 35):
            cache = KVCache(SHAPE, 3, 35)
            rows = torch.tensor([2, 0])
            parts = [
                model(p, cache=cache, rows=rows)
                for p in (t[:, :cut], t[:, cut : cut + 1], t[:, cut + 1 :])
                if p.numel()
            ]
            assert (torch.cat(parts, 1) - whole).abs().max() <= 1e-5


def test_rows_of_different_lengths_and_padding() -> None:
    model = scattered()
    t = tokens(5, 3, 30)
    with torch.no_grad():
        whole = model(t)
        cache = KVCache(SHAPE, 4, 40)
        rows, counts = torch.tensor([3, 0, 1]), torch.tensor([20, 1, 7])
        first = model(t[:, :20], cache=cache, rows=rows, counts=counts)
        for i, n in enumerate(counts.tolist()):
            assert (first[i, :n] - whole[i, :n]).abs().max() <= 1e-5
        at = counts.unsqueeze(1) + torch.arange(2)
        second = model(t.gather(1, at), cache=cache, rows=rows)
        assert (second - whole[torch.arange(3).unsqueeze(1), at]).abs().max() <= 1e-5
        # A padded prefill leaves what an unpadded one leaves.
        alone = KVCache(SHAPE, 1, 40)
        model(t[1:2, :3], cache=alone)
        for padded, plain in zip(cache.layers, alone.layers, strict=True):
            torch.testing.assert_close(padded.memory[0], plain.memory[0])
            torch.testing.assert_close(padded.tails[:, 0], plain.tails[:, 0])
        assert not cache.layers[0].memory[2].any()


def test_rows_are_copied_and_forgotten() -> None:
    model = scattered()
    t = tokens(6, 1, 12)
    with torch.no_grad():
        whole = model(t)
        cache = KVCache(SHAPE, 2, 12)
        model(t[:, :7], cache=cache, rows=torch.tensor([0]))
        cache.copy(0, 1)
        copied = model(t[:, 7:], cache=cache, rows=torch.tensor([1]))
        cache.reset(0)
        again = model(t, cache=cache, rows=torch.tensor([0]))
    assert (copied - whole[:, 7:]).abs().max() <= 1e-5
    assert (again - whole).abs().max() <= 1e-5
    # Of fixed size: 3 layers x 2 rows x (3 tails of 3 x 20 and 2 heads of 10 x 10) numbers of 4 bytes.
    assert cache.bytes == KVCache(SHAPE, 2, 9000).bytes == 3 * 2 * (3 * 3 * 20 + 2 * 100) * 4


def test_a_pass_with_a_cache_may_have_a_gradient() -> None:
    model, cache = scattered(), KVCache(SHAPE, 1, 9)
    model(tokens(1, 1, 4), cache=cache)
    model(tokens(2, 1, 5), cache=cache).sum().backward()
    assert torch.isfinite(model.layers[0].mixer.A_log.grad).all()


def test_half_precision() -> None:
    """bf16 weights and activations: within 3% of fp32 in the mean, decays and state stay fp32."""
    config = ModelConfig(50, 64, 2, 2, 2, 96, 300, layer_pattern="kda", mixers={"kda": {"head_dim": 32}})
    model = Decoder(config)
    t = tokens(7, 2, 150)
    with torch.no_grad():
        whole = model(t)
        model.to(torch.bfloat16)
        kept = {n.split(".")[-1] for n, p in model.named_parameters() if p.dtype == torch.float32}
        assert kept == {"A_log", "dt_bias"}
        half = model(t)
        assert half.dtype == torch.bfloat16
        assert (half - whole).norm() <= 0.03 * whole.norm()
        cache = KVCache(config, 2, 150, torch.bfloat16)
        parts = torch.cat([model(p, cache=cache) for p in t.split([100, 1, 49], 1)], 1)
        assert cache.layers[0].memory.dtype == torch.float32
        assert cache.layers[0].tails.dtype == torch.bfloat16
        assert (parts - whole).norm() <= 0.03 * whole.norm()


def test_mixed_precision_trains() -> None:
    model, t = scattered(), tokens(8, 2, 40)
    with torch.no_grad():
        whole = model(t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(t[:, :-1]).float().flatten(0, 1), t[:, 1:].flatten())
    loss.backward()
    expected = F.cross_entropy(whole[:, :-1].flatten(0, 1), t[:, 1:].flatten())
    assert abs(loss.item() - expected.item()) <= 0.02 * expected.item()
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == p.dtype for p in model.parameters())


def test_weights_that_are_no_matrices_are_vectors() -> None:
    """So optimisers neither decay nor orthogonalise them."""
    mixer = Decoder(SHAPE).layers[0].mixer
    assert {n for n, p in mixer.named_parameters() if p.ndim != 2} == {
        "A_log", "dt_bias", "o_norm.weight", "q_conv.weight", "k_conv.weight", "v_conv.weight",
    }  # fmt: skip
    assert all(p.ndim <= 2 for p in mixer.parameters())


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"head_dm": 3}, r"model\.mixers\.kda\.head_dm"),
        ({"head_dim": 0}, r"model\.mixers\.kda\.head_dim"),
        ({"chunk_size": 48}, r"model\.mixers\.kda\.chunk_size: .*48 is not a power of two"),
    ],
)
def test_settings_that_cannot_be(settings_: dict, words: str) -> None:
    config = ModelConfig(50, 24, 1, 2, 2, 40, 64, layer_pattern="kda", mixers={"kda": settings_})
    with pytest.raises(UserError, match=words), torch.device("meta"):
        Decoder(config)


@settings(max_examples=15, deadline=None)
@given(
    hidden=st.integers(1, 60),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 40),
    own=st.sampled_from([None, 1, 3]),
    rank=st.sampled_from([None, 7]),
    conv=st.integers(1, 5),
)
def test_planner_counts_kda_exactly(
    hidden: int, heads: int, head_dim: int, own: int | None, rank: int | None, conv: int
) -> None:
    chosen = {"head_dim": head_dim, "num_heads": own, "gate_rank": rank, "conv_size": conv}
    model = Model(
        vocab_size=30, hidden_size=hidden, num_hidden_layers=3, num_attention_heads=heads, num_key_value_heads=heads,
        head_dim=4, intermediate_size=20, max_position_embeddings=64, layer_pattern="kda*2 full",
        mixers={"kda": chosen},
    )  # fmt: skip
    with torch.device("meta"):
        built = Decoder(ModelConfig.from_recipe(model))
    counted = count(model)
    assert counted.total == built.num_parameters()
    assert counted.hidden_2d == sum(p.numel() for p in built.layers.parameters() if p.ndim == 2)
    assert counted.not_built == ()


def test_the_100m_programme_is_counted_exactly() -> None:
    model = load_recipe(Path(__file__).parents[2] / "recipes" / "smol-100m-kda.yaml").model
    with torch.device("meta"):
        built = Decoder(ModelConfig.from_recipe(model))
    assert count(model).total == built.num_parameters()
    assert count(model).not_built == ()


def test_decay_of_a_fresh_layer_spans_short_and_long_memory() -> None:
    config = ModelConfig(50, 64, 1, 4, 4, 96, 64, layer_pattern="kda", mixers={"kda": {"head_dim": 32}})
    mixer = Decoder(config).layers[0].mixer
    x = torch.randn(1, 50, 64, generator=torch.Generator().manual_seed(0))
    decay = mixer.decay(x).exp()
    assert decay.shape == (1, 50, 4, 32)
    assert 0 < decay.min() < 0.6 < 0.99 < decay.max() < 1
    context = Context(torch.arange(50)[None], (), None, None, causal=True)
    assert mixer(x, context).shape == x.shape
