"""Kimi Delta Attention as a layer: start, settings, counts. What it shares with other states: `test_states.py`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.layers.kda import KimiDeltaAttention
from ikirere.model.layers.mixer import ForwardContext
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


def test_the_100m_programme_is_counted_exactly() -> None:
    model = load_recipe(Path(__file__).parents[2] / "recipes" / "smol-100m-kda.yaml").model
    with torch.device("meta"):
        built = Decoder(ModelConfig.from_recipe(model))
    assert count(model).total == built.num_parameters()


def test_decay_of_a_fresh_layer_spans_short_and_long_memory() -> None:
    config = ModelConfig(50, 64, 1, 4, 4, 96, 64, layer_pattern="kda", mixers={"kda": {"head_dim": 32}})
    mixer = Decoder(config).layers[0].mixer
    x = torch.randn(1, 50, 64, generator=torch.Generator().manual_seed(0))
    decay = mixer.decay(x).exp()
    assert decay.shape == (1, 50, 4, 32)
    assert 0 < decay.min() < 0.6 < 0.99 < decay.max() < 1
    context = ForwardContext(torch.arange(50)[None], (), None, None, causal=True)
    assert mixer(x, context).shape == x.shape
