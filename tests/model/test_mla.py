"""Latent attention: documents, exact continuation from latent vectors, the two ways of computing it,
settings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from mixer_helpers import (
    decoding_continues,
    documents_stay_apart,
    kept_by_a_layer,
    rows_may_differ,
    scattered,
    tokens,
)

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.layers.mla import LatentAttention, LatentState
from ikirere.recipe.load import load_recipe
from ikirere.recipe.planner.counts import count
from ikirere.recipe.planner.memory import cache_memory, layer_elements
from ikirere.recipe.schema import Model

WIDTHS = {"kv_lora_rank": 14, "qk_nope_head_dim": 8, "qk_rope_head_dim": 3, "v_head_dim": 6}
SHAPES = {
    "plain": WIDTHS,
    "values wider than keys": WIDTHS | {"v_head_dim": 15},
    "low-rank queries": WIDTHS | {"q_lora_rank": 9},
    "defaults": {},
}


def shape(mixer: dict[str, int], pattern: str = "mla") -> ModelConfig:
    mixers = {"mla": mixer} | ({"kda": {"head_dim": 10, "chunk_size": 16}} if "kda" in pattern else {})
    return ModelConfig(50, 24, 2, 3, 3, 40, 200, head_dim=12, layer_pattern=pattern, mixers=mixers)


@pytest.fixture(params=sorted(SHAPES))
def model(request: pytest.FixtureRequest) -> Decoder:
    """A decoder of latent attention whose weights are far from their start."""
    return scattered(shape(SHAPES[request.param]), 0.2)


def test_attention_as_the_paper_writes_it(model: Decoder) -> None:
    """One layer, head by head and token by token."""
    mixer = model.layers[0].mixer
    s, x = mixer.sizes, torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(2))
    q = mixer._queries(x)[0].view(7, 3, s.nope + s.shared)
    latent, shared = mixer.kv_a_proj(x)[0].split((s.rank, s.shared), -1)
    up = mixer.kv_b_proj.weight.view(3, s.nope + s.value, s.rank)
    latent = mixer.kv_a_norm(latent)
    rows = []
    for t in range(7):
        heads = []
        for h in range(3):
            keys = torch.cat((latent[: t + 1] @ up[h, : s.nope].T, shared[: t + 1]), 1)
            weights = (keys @ q[t, h] / (s.nope + s.shared) ** 0.5).softmax(0)
            heads.append(weights @ (latent[: t + 1] @ up[h, s.nope :].T))
        rows.append(torch.cat(heads))
    expected = mixer.o_proj(torch.stack(rows)[None])
    context = model._context(tokens(1, 1, 7), None, None, None, None, None)
    torch.testing.assert_close(mixer(x, context), expected, rtol=1e-4, atol=1e-5)


def test_nothing_depends_on_positions(model: Decoder) -> None:
    t = tokens(1, 1, 20)
    with torch.no_grad():
        assert torch.equal(model(t), model(t, torch.arange(20)[None] + 50))


def test_packed_latent_documents_equal_documents_apart(model: Decoder) -> None:
    documents_stay_apart(model, [140, 3, 1, 40])


def test_latent_decoding_continues_at_every_position(model: Decoder) -> None:
    decoding_continues(model, 26)


@pytest.mark.parametrize("pattern", ["mla", "kda mla"])
def test_latent_rows_of_different_lengths(pattern: str) -> None:
    model = scattered(shape(WIDTHS, pattern), 0.2)
    cache, t, whole = rows_may_differ(model)
    cache.copy(3, 2)
    with torch.no_grad():
        third = model(t[:1, 22:23], cache=cache, rows=torch.tensor([2]))
    assert (third - whole[:1, 22:23]).abs().max() <= 1e-5


def test_both_ways_of_computing_are_one(model: Decoder) -> None:
    mixer = model.layers[0].mixer
    s, r = mixer.sizes, torch.Generator().manual_seed(3)
    q = torch.randn(2, 5, 3, s.nope + s.shared, generator=r)
    held = torch.randn(2, 11, s.rank + s.shared, generator=r)
    cache = KVCache(model.config, 2, 11)
    cache.lengths[:] = torch.tensor([6, 4])
    context = model._context(tokens(1, 2, 5), None, None, cache, None, None)
    held = held[:, : context.step.end]
    a, b = mixer._in_latent_space(q, held, context), mixer._expanded(q, held, context)
    assert a.shape == (2, 5, 3, s.value)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_long_passes_expand_and_short_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ways = scattered(shape(WIDTHS), 0.2), []
    for name in ("_expanded", "_in_latent_space"):
        plain = getattr(LatentAttention, name)
        monkeypatch.setattr(
            LatentAttention,
            name,
            lambda self, *a, plain=plain, name=name: ways.append(name) or plain(self, *a),
        )
    cache = KVCache(model.config, 1, 60)
    with torch.no_grad():
        for n in (20, 1, 13, 14):  # 14 * (2 * 14 - 8 - 6) = 14 * (8 + 6) is where they cost the same
            ways.clear()
            model(tokens(1, 1, n), cache=cache)
            assert set(ways) == {"_expanded" if n in (20, 14) else "_in_latent_space"}, n


def test_the_cache_holds_latents_only() -> None:
    config = shape(WIDTHS)
    cache = KVCache(config, 2, 30)
    assert isinstance(cache.layers[0], LatentState)
    assert cache.layers[0].latents.shape == (2, 30, 14 + 3)
    assert cache.bytes == 2 * 2 * 30 * 17 * 4


def test_half_precision_of_latents() -> None:
    """bf16 weights and cache: within 3% of fp32 in the mean, for both ways of computing."""
    config = shape({})
    model, t = Decoder(config), tokens(1, 2, 90)
    with torch.no_grad():
        whole = model(t)
        model.to(torch.bfloat16)
        cache = KVCache(config, 2, 90, torch.bfloat16)
        parts = torch.cat([model(p, cache=cache) for p in t.split([60, 1, 29], 1)], 1)
        for half in (model(t), parts):
            assert (half - whole).norm() <= 0.03 * whole.norm()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mixers": {"mla": {"rank": 3}}}, r"model\.mixers\.mla\.rank"),
        ({"mixers": {"mla": {"kv_lora_rank": 0}}}, r"model\.mixers\.mla\.kv_lora_rank"),
        ({"qk_norm": True}, r"model\.qk_norm is true; 'mla' layers"),
    ],
)
def test_latent_settings_that_cannot_be(change: dict, words: str) -> None:
    config = ModelConfig.from_dict(shape(WIDTHS).to_dict() | change)
    with pytest.raises(UserError, match=words), torch.device("meta"):
        Decoder(config)


@settings(max_examples=15, deadline=None)
@given(
    hidden=st.integers(1, 60),
    heads=st.integers(1, 4),
    half=st.integers(1, 9),
    chosen=st.fixed_dictionaries(
        {},
        optional={
            key: st.integers(1, 30)
            for key in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        },
    ),
)
def test_planner_counts_mla_exactly(hidden: int, heads: int, half: int, chosen: dict[str, int]) -> None:
    model = Model(
        vocab_size=30, hidden_size=hidden, num_hidden_layers=3, num_attention_heads=heads, num_key_value_heads=heads,
        head_dim=2 * half, intermediate_size=20, max_position_embeddings=64, layer_pattern="full mla",
        mixers={"mla": chosen},
    )  # fmt: skip
    with torch.device("meta"):
        built = Decoder(ModelConfig.from_recipe(model))
    counted = count(model)
    assert counted.total == built.num_parameters()
    assert counted.hidden_2d == sum(p.numel() for p in built.layers.parameters() if p.ndim == 2)


def test_planner_holds_latents_at_the_served_context() -> None:
    recipe = load_recipe(Path(__file__).parents[1] / "recipe" / "small.yaml", ["model.layer_pattern=mla"])
    s = recipe.model.mixer("mla").sizes(recipe.model.head_size)
    held = cache_memory(recipe)
    assert held.per_sequence == recipe.model.num_hidden_layers * held.context * held.bits / 8 * (
        s.rank + s.shared
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("pattern", "settings_"),
    [
        ("kda", {"head_dim": 16, "chunk_size": 16}),
        ("kda", {"head_dim": 32, "gate_rank": 7, "num_heads": 3}),
        ("mla", {}),
        ("mla", {"v_head_dim": 40}),
        ("mla", {"kv_lora_rank": 5, "q_lora_rank": 9, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2}),
    ],
)
def test_planner_knows_what_autograd_keeps(pattern: str, settings_: dict[str, int], packed: bool) -> None:
    length, batch = 128, 2
    model = Model(
        vocab_size=30, hidden_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
        intermediate_size=96, max_position_embeddings=256, layer_pattern=pattern, mixers={pattern: settings_},
    )  # fmt: skip

    counted = sum(layer_elements(model, pattern, "dense", length, packed)) * 4 * batch * length
    assert kept_by_a_layer(model, batch, length, packed) == pytest.approx(counted, rel=0.03)
