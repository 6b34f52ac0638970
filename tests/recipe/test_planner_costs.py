"""Weights against networks that are built, operations against sums over every token, mixer by mixer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.model.build import on_meta
from ikirere.model.config import ModelConfig
from ikirere.recipe.ffns import Moe
from ikirere.recipe.load import load_recipe
from ikirere.recipe.mixers.decay import Mamba2
from ikirere.recipe.mixers.kda import Kda
from ikirere.recipe.mixers.mlp import Mlp
from ikirere.recipe.planner.counts import count
from ikirere.recipe.planner.flops import forward_per_token, phases, stages, training_per_token
from ikirere.recipe.schema import Model

SMALL = Path(__file__).with_name("small.yaml")
FEW = settings(max_examples=40, deadline=None)
HEADS, KV, WIDTH = 6, 3, 10


def model(pattern: str = "full", **changes: Any) -> Model:
    values: dict[str, Any] = {
        "vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": HEADS,
        "num_key_value_heads": KV, "head_dim": WIDTH, "intermediate_size": 70, "max_position_embeddings": 64,
    }  # fmt: skip
    return Model(**{**values, "layer_pattern": pattern, **changes})


def mixer(name: str, **values: Any) -> Model:
    return model(name, mixers={name: values})


KDA = {"num_heads": 4, "head_dim": 12, "conv_size": 3, "gate_rank": 5}
MLA = {"kv_lora_rank": 20, "qk_nope_head_dim": 14, "qk_rope_head_dim": 6, "v_head_dim": 18}
MAMBA2 = {"state_size": 16, "head_dim": 12, "num_heads": 8, "n_groups": 2, "conv_size": 3}
RETENTION = {"num_heads": 5, "head_dim": 8, "value_head_dim": 22}
RECURSIVE = {"family": "recursive", "mixers": {"recursive": {"puzzle_tokens": 7}}}
SHAPES = {
    "full": model(),
    "untied": model(tie_word_embeddings=False),
    "norm of heads": model(qk_norm=True),
    "norm over all heads": model(qk_norm=True, qk_norm_width="full"),
    "learned sinks": mixer("full", learned_sinks=True),
    "learned sinks of a window": mixer("window", learned_sinks=True, window=8),
    "hybrid": mixer("hybrid", window=8, block_size=4),
    "kda": mixer("kda", **KDA),
    "kda by default": model("kda"),
    "mla": mixer("mla", **MLA),
    "mla with a narrow query": mixer("mla", **MLA, q_lora_rank=9),
    "mla by default": model("mla"),
    "mamba2": mixer("mamba2", **MAMBA2),
    "retention": mixer("retention", **RETENTION),
    "retention by default": model("retention"),
    "mixed": model("kda full window", mixers={"kda": KDA}),
    "experts": model(ffn_pattern="moe", ffns={"moe": {"num_experts": 5, "top_k": 2, "expert_size": 33}}),
    "experts of the model's width": model(ffn_pattern="dense moe", ffns={"moe": {"num_experts": 4, "top_k": 1}}),
    "recursive": model("full", **RECURSIVE),
    "recursive with kda": model("kda full", **RECURSIVE),
    "recursive over positions": model("mlp", **RECURSIVE),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_counts_equal_the_network_that_is_built(name: str) -> None:
    shape = SHAPES[name]
    network = on_meta(ModelConfig.from_recipe(shape))
    counted = count(shape)
    assert (
        counted.total
        == network.num_parameters()
        == counted.embedding + counted.layers + (shape.hidden_size + (shape.family == "recursive"))
    )
    table = shape.vocab_size * shape.hidden_size
    assert counted.embedding == table * (1 if shape.tie_word_embeddings else 2)
    assert counted.embedding_share == counted.embedding / counted.total
    # Convolutions and per-head vectors have 2-D tensors too; products with whole hidden states are what counts here.
    if not {"kda", "mamba2", "hybrid"} & set(shape.layers):
        others = ((101, 48), (1, 48))  # table and halting head
        layers = [p for _, p in network.named_parameters() if p.ndim >= 2 and tuple(p.shape) not in others]
        assert counted.hidden_2d == sum(p.numel() for p in layers)


def test_a_token_meets_its_own_experts_only() -> None:
    shape = SHAPES["experts"]
    one = 3 * 48 * 33
    counted = count(shape)
    assert counted.matmul == counted.hidden_2d + 101 * 48 - 3 * (5 - 2) * one
    assert counted.hidden_2d == 3 * (5 * one + 5 * 48 + 2 * 48 * 10 * (HEADS + KV))
    wide = count(SHAPES["experts of the model's width"])
    assert wide.matmul == wide.hidden_2d + 101 * 48 - 1 * (4 - 1) * 3 * 48 * 70


def test_the_head_is_one_product_tied_or_not() -> None:
    for shape in (SHAPES["full"], SHAPES["untied"]):
        assert count(shape).matmul == count(shape).hidden_2d + 101 * 48


def test_a_table_of_puzzles_is_an_embedding() -> None:
    plain = SHAPES["recursive"]
    tables = model("full", family="recursive", mixers={"recursive": {"puzzle_tokens": 7, "puzzles": 11}})
    assert (
        count(tables).embedding - count(plain).embedding
        == 11 * 48
        == count(tables).total - count(plain).total
    )


def test_of_layers_that_change_their_mixer_the_larger_weights_are_kept() -> None:
    """Layer by layer; windows weigh what full attention does."""
    narrow = {**KDA, "num_heads": 2}
    shape = model("full", mixers={"kda": narrow})
    full, kda = count(shape), count(model("kda", mixers={"kda": narrow}))
    assert full.hidden_2d > kda.hidden_2d and full.layers - full.hidden_2d < kda.layers - kda.hidden_2d
    both = count(shape, ("kda",))
    assert both.hidden_2d == full.hidden_2d
    assert both.layers - both.hidden_2d == kda.layers - kda.hidden_2d
    assert count(shape, ("window", "kda full*2")).hidden_2d == full.hidden_2d
    assert (
        count(model("kda", mixers={"kda": narrow}), ("full kda kda",)).hidden_2d
        == kda.hidden_2d + (full.hidden_2d - kda.hidden_2d) // 3
    )


# ---------------------------------------------------------------- operations


def mixing(shape: Model, length: int) -> float:
    """Operations per token beyond two per matrix weight, of one layer."""
    return (forward_per_token(shape, length) - 2 * count(shape).matmul) / shape.num_hidden_layers


@FEW
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5), st.integers(1, 9), st.integers(1, 4))
def test_attention_costs_four_per_channel_and_key_that_is_read(
    length: int, window: int, sinks: int, block: int, top_k: int
) -> None:
    """Two for the score, two for the weighted sum. Blocks end before a token's window begins; summaries are read
    like keys and asked once per key-value head."""
    channels, positions = 4 * HEADS * WIDTH, range(length)
    assert mixing(model(), length) == pytest.approx(channels * sum(i + 1 for i in positions) / length)
    seen = sum(min(i + 1, window) for i in positions) / length + min(sinks, length)
    assert mixing(mixer("window", window=window, sinks=sinks), length) == pytest.approx(channels * seen)
    blocks = [max(0, i + 1 - window) // block for i in positions]
    read = (
        sum(i + 1 - block * (b - min(b, top_k)) + b for i, b in zip(positions, blocks, strict=True)) / length
    )
    asked = 2 * KV * WIDTH * sum(blocks) / length
    hybrid = mixer("hybrid", window=window, block_size=block, top_k=top_k)
    assert mixing(hybrid, length) == pytest.approx(channels * read + asked)


@pytest.mark.parametrize("length", [1, 64, 5000])
def test_states_cost_the_same_at_every_length(length: int) -> None:
    """Per entry of the state and token: KDA decays (1), reads S^T k (2), writes (2) and reads S^T q (2); Mamba-2 and
    retention read nothing before they write."""
    assert mixing(SHAPES["kda"], length) == pytest.approx((1 + 2 + 2 + 2) * 4 * 12 * 12)
    assert mixing(SHAPES["kda by default"], length) == pytest.approx(7 * HEADS * 128 * 128)
    assert mixing(SHAPES["mamba2"], length) == pytest.approx((1 + 2 + 2) * (8 * 12) * 16)
    assert mixing(SHAPES["retention"], length) == pytest.approx(5 * 5 * 8 * 22)


def test_latent_attention_scores_on_key_channels_and_sums_values() -> None:
    assert mixing(SHAPES["mla"], 9) == pytest.approx(2 * HEADS * (14 + 6 + 18) * 5)


def test_a_phase_may_mix_otherwise_than_the_model() -> None:
    shape = model("full", mixers={"window": {"window": 4}})
    window = forward_per_token(model("window", mixers={"window": {"window": 4}}), 60)
    assert forward_per_token(shape, 60, "window") == window < forward_per_token(shape, 60)
    one_of_three = (window + 2 * forward_per_token(shape, 60)) / 3
    assert forward_per_token(shape, 60, "window full*2") == pytest.approx(one_of_three)
    assert training_per_token(shape, 60, "window") == 3 * window


RECURSION = {"inner_updates": 4, "cycles": 3, "supervision_steps": 5, "puzzle_tokens": 8}


def recursive(pattern: str, **changes: Any) -> Model:
    mixers = {"recursive": {**RECURSION, **changes}, "kda": KDA, "mlp": {"intermediate_size": 30}}
    return model(pattern, family="recursive", mixers=mixers)


def test_a_recursive_model_calls_its_core_in_every_cycle() -> None:
    """Each cycle calls it for every update of the latent and once for the answer; attention reads the whole square."""
    shape, length = recursive("full"), 20
    core = 2 * count(shape).matmul + 3 * 4 * HEADS * WIDTH * length
    assert forward_per_token(shape, length) == pytest.approx(core * 3 * (4 + 1) * 5)
    # Two cycles without gradient, and one of which the backward pass costs twice the forward one.
    assert training_per_token(shape, length) == pytest.approx(core * (4 + 1) * (1 + 1 + 1 + 2))


def test_a_recursive_core_runs_kda_both_ways() -> None:
    length = 20
    calls = 3 * (4 + 1) * 5
    both, once = recursive("kda"), recursive("kda", bidirectional=False)
    products, states = 48 * (4 * 48 + 2 * 5 + 4) + 2 * 5 * 48, 7 * 4 * 12 * 12
    base = 2 * count(once).matmul
    assert forward_per_token(once, length) == pytest.approx(calls * (base + 3 * states))
    assert forward_per_token(both, length) == pytest.approx(calls * (base + 3 * (2 * states + 2 * products)))


def test_a_network_over_positions_is_shared_by_all_channels() -> None:
    """Its three matrices act once per channel on 64 + 8 positions, so that each token has a share of 1 in 72."""
    shape = recursive("mlp")
    ffn, head = 3 * 3 * 48 * 70, 101 * 48
    products = 3 * 3 * 72 * 30 * 48 / 72
    assert forward_per_token(shape, 72) == pytest.approx(75 * 2 * (ffn + head + products))


# ---------------------------------------------------------------- stages


def test_work_is_tokens_times_their_cost() -> None:
    recipe = load_recipe(
        SMALL,
        [
            "pretrain.phases=[{name: one, steps: 7, sequence_length: 32, batch_size: 3, mixture: {code: 1}}, "
            "{name: two, steps: 5, sequence_length: 64, batch_size: 2, mixture: {code: 1}, attention: window}]",
            "model.mixers={window: {window: 16}}", "dpo.steps=9", "dpo.batch_size=4", "dpo.sequence_length=48",
            "dpo.pairs=50", "dpo.heldout_pairs=6", "sft.steps=11", "sft.batch_size=5", "sft.sequence_length=40",
        ],
    )  # fmt: skip
    shape = recipe.model
    first, second = phases(recipe)
    assert (first.name, first.tokens, second.name, second.tokens) == ("one", 7 * 32 * 3, "two", 5 * 64 * 2)
    assert first.flops == first.tokens * training_per_token(shape, 32)
    assert second.flops == second.tokens * training_per_token(shape, 64, "window")
    pretrain, sft, dpo = stages(recipe)
    assert [work.name for work in (pretrain, sft, dpo)] == ["pretrain", "sft", "dpo"]
    assert (pretrain.tokens, pretrain.flops) == (672 + 640, first.flops + second.flops)
    assert sft.tokens == 11 * 5 * 40 and sft.flops == sft.tokens * training_per_token(shape, 40)
    # Both answers of a pair are trained on, and the reference reads both of every pair once.
    assert dpo.tokens == 9 * 4 * 48 * 2
    assert dpo.flops == dpo.tokens * training_per_token(shape, 48) + 56 * 48 * 2 * forward_per_token(
        shape, 48
    )


def test_only_stages_of_the_recipe_are_work() -> None:
    recipe = load_recipe(SMALL)
    for names, expected in (
        (("data", "sft"), ["sft"]), (("pretrain",), ["pretrain"]), (("dpo", "pretrain"), ["pretrain", "dpo"]),
    ):  # fmt: skip
        assert [work.name for work in stages(recipe.model_copy(update={"stages": names}))] == expected
    bare = recipe.model_copy(update={"sft": None, "dpo": None})
    assert [work.name for work in stages(bare)] == ["pretrain"]


# ---------------------------------------------------------------- settings


def test_defaults_are_those_of_the_papers() -> None:
    """Balance loss of the Switch Transformer (arXiv 2101.03961), z-loss of ST-MoE (arXiv 2202.08906), bias step of
    DeepSeek-V3 (arXiv 2412.19437); Mamba-2 (arXiv 2405.21060) has one group of keys and heads of 64."""
    moe = Moe()
    assert (moe.num_experts, moe.top_k, moe.aux_weight, moe.router_z_weight, moe.bias_rate) == (
        8,
        2,
        0.01,
        0.001,
        0.001,
    )
    sizes = Mamba2().sizes(96)
    assert (sizes.heads, sizes.head_dim, sizes.groups, sizes.state, sizes.conv_size) == (3, 64, 1, 128, 4)


@pytest.mark.parametrize(
    ("positions", "width"), [(1, 256), (96, 256), (97, 512), (192, 512), (193, 768), (289, 1024), (900, 2560)]
)
def test_a_network_over_positions_is_eight_thirds_wide_in_steps_of_256(positions: int, width: int) -> None:
    assert Mlp().width(positions) == width and Mlp(intermediate_size=30).width(positions) == 30


@pytest.mark.parametrize(
    ("size", "accepted"), [(1, True), (2, True), (3, False), (48, False), (64, True), (96, False)]
)
def test_chunks_of_kda_are_powers_of_two(size: int, accepted: bool) -> None:
    if accepted:
        assert mixer("kda", chunk_size=size).mixer("kda") == Kda(chunk_size=size)
    else:
        with pytest.raises(ValueError, match=f"{size} is not a power of two"):
            mixer("kda", chunk_size=size)
