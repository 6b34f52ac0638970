"""Mamba-2 and retention as layers: start, extremes, settings, what the planner says. What they share with other states:
`test_states.py`."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from mixer_helpers import kept_by_a_layer, scattered, tokens

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.layers.mamba2 import Mamba2
from ikirere.model.layers.retention import Retention, log_decay
from ikirere.recipe.load import load_recipe
from ikirere.recipe.planner.counts import count
from ikirere.recipe.planner.memory import cache_memory, layer_elements
from ikirere.recipe.rehearse import shrink
from ikirere.recipe.schema import Model

STATES: dict[str, dict[str, Any]] = {
    "mamba2": {"head_dim": 12, "state_size": 10, "n_groups": 2, "chunk_size": 16},
    "retention": {"num_heads": 3, "head_dim": 10, "value_head_dim": 14, "chunk_size": 16},
}
both = pytest.mark.parametrize("name", sorted(STATES))


def shape(name: str, **more: Any) -> ModelConfig:
    given_ = {**STATES[name], **more}
    return ModelConfig(50, 24, 2, 2, 2, 40, 200, head_dim=12, layer_pattern=name, mixers={name: given_})


def test_mamba2_starts_as_published() -> None:
    config = ModelConfig(50, 64, 1, 2, 2, 40, 64, layer_pattern="mamba2", mixers={"mamba2": {"head_dim": 1}})
    first, second = (Decoder(config).layers[0].mixer for _ in range(2))
    assert isinstance(first, Mamba2)
    assert torch.equal(first.A_log, second.A_log)
    assert first.A_log.shape == (128,)
    assert 0 <= first.A_log.min() < math.log(2) < math.log(14) < first.A_log.max() <= math.log(16)
    step = F.softplus(first.dt_bias)
    assert 0.999e-3 <= step.min() < 3e-3 < 0.03 < step.max() <= 0.1001
    assert (first.D == 1).all() and (first.norm.weight == 1).all()
    for t in (first.conv.weight, first.conv.bias):
        assert 0.4 < t.abs().max() <= 0.5
    assert (
        first.out_proj.weight.std() < 0.9 * first.in_proj.weight.std()
    )  # it writes into the residual stream


def test_retention_decays_by_head() -> None:
    gamma = log_decay(40, torch.device("cpu")).double().exp()
    expected = 1 - 2.0 ** (-5 - torch.arange(40, dtype=torch.float64))
    torch.testing.assert_close(gamma, expected, rtol=0, atol=1e-8)
    assert (log_decay(40, torch.device("cpu")) < 0).all()


def test_extreme_steps_have_finite_gradients() -> None:
    model = scattered(shape("mamba2"))
    with torch.no_grad():
        for block in model.blocks():
            block.mixer.A_log.fill_(math.log(16))
            block.mixer.dt_bias[::2] = 1e4  # forgets all at every token
            block.mixer.dt_bias[1::2] = -1e4  # neither forgets nor writes
    model(tokens(3, 2, 70)).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@both
def test_rows_of_65536_tokens_stay_finite(name: str) -> None:
    small = {"mamba2": {"head_dim": 4, "state_size": 4}, "retention": {"head_dim": 2}}[name]
    config = ModelConfig(9, 4, 1, 2, 2, 4, 65_536, head_dim=2, layer_pattern=name, mixers={name: small})
    logits = Decoder(config)(torch.arange(65_536)[None] % 9)
    assert torch.isfinite(logits).all()
    cut = torch.zeros(1, 65_536, dtype=torch.long)
    cut[:, 30_001:] = 1
    model = Decoder(config)
    loss = model(torch.arange(65_536)[None] % 9, None, cut).square().mean()  # packed: no square of the length
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "settings_", "words"),
    [
        ("mamba2", {"head_dm": 3}, r"model\.mixers\.mamba2\.head_dm"),
        ("mamba2", {"state_size": 0}, r"model\.mixers\.mamba2\.state_size"),
        ("mamba2", {"head_dim": 5}, r"model\.mixers\.mamba2\.head_dim 5 does not divide the inner width 48"),
        ("mamba2", {"head_dim": 16, "n_groups": 2}, r"model\.mixers\.mamba2\.n_groups 2 .* 3 heads"),
        (
            "mamba2",
            {"head_dim": 16, "expand": 2, "num_heads": 4},
            r"mamba2\.num_heads 4 x head_dim 16 is not",
        ),
        ("retention", {"heads": 3}, r"model\.mixers\.retention\.heads"),
        ("retention", {"head_dim": 3}, r"model\.mixers\.retention\.head_dim 3 is odd"),
    ],
)
def test_state_settings_that_cannot_be(name: str, settings_: dict[str, Any], words: str) -> None:
    config = ModelConfig(50, 24, 1, 2, 2, 40, 64, layer_pattern=name, mixers={name: settings_})
    with pytest.raises(UserError, match=words), torch.device("meta"):
        Decoder(config)


def test_retention_without_rope() -> None:
    config = shape("retention", rope=False, head_dim=9)
    model = Decoder(config)
    assert len(model.ropes) == 0
    assert isinstance(model.layers[0].mixer, Retention)
    assert (
        model(tokens(1, 1, 300)).isfinite().all()
    )  # past max_position_embeddings, as nothing counts positions
    with pytest.raises(UserError, match="300 tokens"):
        Decoder(shape("retention"))(tokens(1, 1, 300))


# ---------------------------------------------------------------- the planner


@settings(max_examples=15, deadline=None)
@given(
    hidden=st.integers(1, 30).map(lambda n: 2 * n),
    head_dim=st.sampled_from([1, 2, 4]),
    state=st.integers(1, 20),
    groups=st.sampled_from([1, 2]),
    conv=st.integers(1, 5),
    heads=st.sampled_from([None, 4]),
    value=st.sampled_from([None, 7]),
)
def test_planner_counts_states_exactly(
    hidden: int, head_dim: int, state: int, groups: int, conv: int, heads: int | None, value: int | None
) -> None:
    mamba = {"head_dim": head_dim, "state_size": state, "conv_size": conv, "num_heads": heads}
    if heads or hidden * 2 // head_dim % 2 == 0:
        mamba["n_groups"] = groups
    retention = {"head_dim": 2 * head_dim, "num_heads": heads, "value_head_dim": value}
    if heads is None and 2 * hidden % head_dim:
        mamba["head_dim"] = 2
    model = Model(
        vocab_size=30, hidden_size=hidden, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        head_dim=4, intermediate_size=20, max_position_embeddings=64, layer_pattern="mamba2 retention full",
        mixers={"mamba2": mamba, "retention": retention},
    )  # fmt: skip
    with torch.device("meta"):
        built = Decoder(ModelConfig.from_recipe(model))
    counted = count(model)
    assert counted.total == built.num_parameters()
    assert counted.hidden_2d == sum(p.numel() for p in built.layers.parameters() if p.ndim == 2)
    mixer = built.layers[0].mixer
    assert all(p.ndim <= 2 for p in mixer.parameters())


def planned_model(name: str, depth: int, **more: Any) -> Model:
    return Model(
        vocab_size=64, hidden_size=64, num_hidden_layers=depth, num_attention_heads=4, num_key_value_heads=4,
        head_dim=16, intermediate_size=96, max_position_embeddings=4096, layer_pattern=name, mixers={name: more},
    )  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "settings_"),
    [
        ("mamba2", {"head_dim": 16, "state_size": 8}),
        ("mamba2", {"head_dim": 32, "state_size": 24, "n_groups": 2, "chunk_size": 32}),
        ("retention", {}),
        ("retention", {"num_heads": 6, "head_dim": 24, "value_head_dim": 20, "chunk_size": 32}),
    ],
)
def test_kept_activations_of_states(name: str, settings_: dict[str, Any], packed: bool) -> None:
    length, batch = 128, 2
    model = planned_model(name, 1, **settings_)
    counted = sum(layer_elements(model, name, "dense", length, packed)) * 4 * batch * length
    assert kept_by_a_layer(model, batch, length, packed) == pytest.approx(counted, rel=0.03)


@both
def test_planned_states_equal_the_built_ones(name: str) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "demo.yaml")
    model = planned_model(name, 3, **{"mamba2": {"head_dim": 16, "state_size": 8}, "retention": {}}[name])
    planned = cache_memory(recipe.model_copy(update={"model": model}))
    built = KVCache(ModelConfig.from_recipe(model), 1, 64)
    assert planned.per_sequence == built.bytes


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"head_dim": 128, "n_groups": 5, "state_size": 256},
        {"num_heads": 48, "head_dim": 64},
        {"expand": 3},
    ],
)
def test_rehearsed_states_fit_their_shape(chosen: dict[str, Any]) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "smol-100m-kda.yaml")
    mixers = {"mamba2": chosen, "retention": {"num_heads": 12, "head_dim": 128, "value_head_dim": 256}}
    update = {"layer_pattern": "mamba2*2 retention", "mixers": mixers}
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=update)})
    small = shrink(recipe).model
    with torch.device("meta"):
        built = Decoder(ModelConfig.from_recipe(small))
    assert count(small).total == built.num_parameters() < 5_000_000
    widths = [p.shape for p in built.layers[0].mixer.parameters() if p.ndim == 2]
    ratio = recipe.model.mixer("mamba2").sizes(recipe.model.hidden_size).width / recipe.model.hidden_size  # type: ignore[attr-defined]
    assert widths[-1][1] / widths[-1][0] == pytest.approx(ratio, rel=0.1)
