"""The memory estimate added up by hand: 6 heads of 10 in a hidden size of 48, feed-forwards of 70, 101 words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ikirere.recipe.load import load_recipe
from ikirere.recipe.planner.counts import count
from ikirere.recipe.planner.hardware import Device
from ikirere.recipe.planner.memory import (
    activation_bytes,
    cache_memory,
    logits_bytes,
    optimizer_bytes,
    training_memory,
    working_precision,
)
from ikirere.recipe.schema import Model, Recipe
from ikirere.recipe.sections import Optimizer

SMALL = Path(__file__).with_name("small.yaml")
MB = 2**20
CARD = Device("card", 80e9, {"fp32": 1e12}, 1.0)
CPU = Device("cpu", 24e9, {"fp32": 1e11}, 1.0)
SHAPE: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 3,
    "head_dim": 10, "intermediate_size": 70, "max_position_embeddings": 64,
}  # fmt: skip


def model(pattern: str = "full", settings: dict[str, Any] | None = None, **changes: Any) -> Model:
    mixers = {} if settings is None else {pattern: settings}
    return Model(**{**SHAPE, "layer_pattern": pattern, "mixers": mixers, **changes})


KDA = {"num_heads": 4, "head_dim": 12, "conv_size": 3, "gate_rank": 5, "chunk_size": 32}
MLA = {"kv_lora_rank": 20, "qk_nope_head_dim": 14, "qk_rope_head_dim": 6}
MAMBA2 = {"state_size": 16, "head_dim": 12, "num_heads": 8, "n_groups": 2, "conv_size": 3, "chunk_size": 32}
RETENTION = {"num_heads": 5, "head_dim": 8, "value_head_dim": 22, "chunk_size": 16}
HYBRID = {"window": 8, "block_size": 4, "top_k": 2}
BLOCKS = sum(min(2, max(0, i + 1 - 8) // 4) for i in range(20)) / 20
NORMS, INNER = 4 * 48 + 2, 4 * 70  # two norms with their roots; gate, up, silu and product

# Per token: fp32 elements, elements of the working precision, what a packed row adds in fp32. Rows of 20 tokens.
KEPT: dict[str, tuple[Model, float, float, float]] = {
    "full": (model(), NORMS + 6, INNER + 2 * 60 + 2 * 30, 20),
    "normed heads": (model(qk_norm=True), NORMS + 6 + 60 + 30 + 6 + 3, INNER + 2 * 60 + 2 * 30, 20),
    "window": (model("window", {"window": 4}), NORMS + 6, INNER + 2 * 60 + 2 * 30, 20),
    "hybrid": (
        model("hybrid", HYBRID), NORMS + 6 + 2 * 3 + 3 + 3 * BLOCKS, INNER + 2 * 60 + 2 * 30 + 30 + 2 * 30 / 4, 0,
    ),
    "kda": (
        model("kda", KDA), NORMS + 4 * (22 * 12 + 4 * 32 + 5) + 4 * 12 * 12 / 32, INNER + 4 * 12 + 2 * 5, (4 + 1) * 32,
    ),
    "kda by default": (
        model("kda"), NORMS + 6 * (22 * 128 + 4 * 64 + 5) + 6 * 128 * 128 / 64, INNER + 6 * 128 + 2 * 128, (6 + 1) * 64,
    ),
    "mla, narrow values": (
        model("mla", {**MLA, "v_head_dim": 18}), NORMS + 6 + 1 + 20 + 6, INNER + 6 * (3 * 20 + 20 + 18) + 20 + 6, 20,
    ),
    "mla, values as wide as keys": (
        model("mla", {**MLA, "v_head_dim": 20, "q_lora_rank": 9}), NORMS + 6 + 1 + 20 + 6,
        INNER + 6 * (3 * 20 + 14 + 20) + 20 + 6 + 2 * 9, 20,
    ),
    "mla, wide values": (
        model("mla", {**MLA, "v_head_dim": 25}), NORMS + 6 + 1 + 20 + 6, INNER + 6 * (3 * 25 + 14 + 25) + 20 + 6, 20,
    ),
    "mamba2": (
        model("mamba2", MAMBA2), NORMS + 10 * 96 + 8 * (5 + 32) + 2 + 6 * 2 * 16 + 96 * 16 / 32 + 96,
        INNER + 96 + (96 + 2 * 2 * 16) + 8, 2,
    ),
    "mamba2 of one group": (
        model("mamba2", {**MAMBA2, "n_groups": 1}), NORMS + 10 * 96 + 8 * (5 + 32) + 1 + 6 * 16 + 96 * 16 / 32,
        INNER + 96 + (96 + 2 * 16) + 8, 2,
    ),
    "over 64 + 16 positions": (
        model("mlp", {"intermediate_size": 30}, family="recursive"), NORMS, INNER + 4 * 30 * 48 / 80, 0,
    ),
    "retention": (
        model("retention", RETENTION), NORMS + 5 * (6 * 22 + 2 * 8 + 4 + 16) + 5 * 8 * 22 / 16, INNER + 2 * 5 * 22, 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_activations_of_a_layer(name: str) -> None:
    """The backward pass holds three gradients of the feed-forward's width beside them."""
    shape, single, working, packed = KEPT[name]
    for length, tokens in ((20, 20), (20, 60)):
        for precision, width in (("fp32", 4), ("bf16", 2), ("fp8", 2)):
            bare = activation_bytes(shape, None, length, tokens, precision, False, False)
            assert bare == pytest.approx(tokens * (4 * single + width * working + width * 3 * 70))
            full = activation_bytes(shape, None, length, tokens, precision, False, True)
            assert full - bare == pytest.approx(tokens * 4 * packed)


def test_activations_of_several_layers_and_with_checkpoints() -> None:
    """With checkpoints each layer keeps its fp32 input, and two of the widest are open at a time."""
    shape = model("kda full", num_hidden_layers=3, mixers={"kda": KDA})

    def bytes_of(pattern: str) -> float:
        one = Model(**{**SHAPE, "layer_pattern": pattern, "mixers": {"kda": KDA}})
        return activation_bytes(one, None, 20, 1, "bf16", False, False) - 2 * 3 * 70

    kda, full = bytes_of("kda"), bytes_of("full")
    assert kda > full
    assert activation_bytes(shape, None, 20, 7, "bf16", False, False) == pytest.approx(
        7 * (2 * kda + full + 420)
    )
    assert activation_bytes(shape, None, 20, 7, "bf16", True, False) == pytest.approx(
        7 * (3 * 4 * 48 + 2 * kda + 420)
    )
    assert activation_bytes(shape, "full", 20, 7, "bf16", True, False) == pytest.approx(
        7 * (3 * 4 * 48 + 2 * full + 420)
    )


@pytest.mark.parametrize(
    ("vocabulary", "tokens", "cpu", "rows"),
    [
        (101, 100, True, 100), (4096, 5000, True, 1024), (65_536, 5000, True, 256), (65_536, 200, True, 200),
        (65_536, 5000, False, 1024), (65_536, 1000, False, 1000), (1_000_000, 5000, False, 256),
    ],
)  # fmt: skip
def test_logits_are_one_chunk(vocabulary: int, tokens: int, cpu: bool, rows: int) -> None:
    """16 MB of fp32 on a CPU, 256 MB on a card, where logits and their gradient in half precision stand beside; and
    the fp32 gradients of hidden states and head."""
    shape = model(vocab_size=vocabulary)
    gradients = 4 * 48 * (tokens + vocabulary)
    assert logits_bytes(shape, tokens, cpu) == rows * vocabulary * (4 if cpu else 4 + 2 + 2) + gradients


def test_moments_of_the_optimisers() -> None:
    counts = count(model())
    rest = counts.total - counts.hidden_2d
    assert optimizer_bytes(counts, Optimizer(name="adamw", lr=1.0)) == 8 * counts.total
    assert (
        optimizer_bytes(counts, Optimizer(name="muon", lr=1.0, muon_lr=1.0))
        == 8 * rest + 4 * counts.hidden_2d
    )


def recipe_of(shape: Model, *overrides: str) -> Recipe:
    return load_recipe(SMALL, list(overrides)).model_copy(update={"model": shape})


def test_precision_is_the_stages_or_else_the_hardwares() -> None:
    for overrides, expected in (
        (["hardware.device=t4", "hardware.precision=fp16"], "fp16"),
        (["hardware.device=t4", "hardware.precision=fp16", "pretrain.precision=bf16"], "bf16"),
        (["hardware.precision=bf16", "pretrain.precision=bf16"], "fp32"),
    ):
        recipe = load_recipe(SMALL, overrides)
        assert working_precision(recipe, recipe.pretrain) == expected


PHASE = "pretrain.phases=[{name: a, steps: 1, sequence_length: 20, batch_size: 12, mixture: {code: 1}}]"
ON_CARDS = ["hardware.device=h100-80gb", "hardware.precision=bf16"]


@pytest.mark.parametrize(
    ("overrides", "share", "tokens", "weight"),
    [
        (ON_CARDS, 1, 12 * 20, 6),
        ([*ON_CARDS, "hardware.count=3"], 1, 4 * 20, 6),
        ([*ON_CARDS, "hardware.count=3", "pretrain.parallel=fsdp"], 3, 4 * 20, 6),
        ([*ON_CARDS, "hardware.count=24"], 1, 20, 6),
        ([*ON_CARDS, "pretrain.micro_batch_size=5"], 1, 5 * 20, 6),
        ([*ON_CARDS, "hardware.count=6", "pretrain.phases.0.context_parallel=2"], 1, 4 * 20 // 2, 6),
        ([*ON_CARDS, "pretrain.precision=fp8"], 1, 12 * 20, 5),
        ([*ON_CARDS, "pretrain.precision=fp32"], 1, 12 * 20, 4),
    ],
)
def test_training_on_cards(overrides: list[str], share: int, tokens: int, weight: int) -> None:
    """Weights are fp32 and a copy in the products' precision; a twentieth is lost to fragments."""
    shape = model()
    total = count(shape).total
    found = training_memory(recipe_of(shape, PHASE, *overrides), CARD)[0]
    precision = "fp32" if weight == 4 else "bf16"
    assert found.where == "pretrain/a"
    assert found.weights == pytest.approx(weight * total / share)
    assert found.gradients == pytest.approx(4 * total / share)
    moments = 8 * total - 4 * count(shape).hidden_2d
    assert found.optimizer == pytest.approx(moments / share)
    assert found.activations == pytest.approx(
        activation_bytes(shape, None, 20, tokens, precision, False, False)
    )
    assert found.logits == logits_bytes(shape, tokens, False)
    parts = found.weights + found.gradients + found.optimizer + found.activations + found.logits
    assert found.process == pytest.approx(1200 * MB + 0.05 * parts)
    assert found.total == pytest.approx(found.process + parts)


def test_training_on_a_cpu() -> None:
    """fp32 without a copy, rows with masks; the heap loses 19% of activations and 33% of what stays."""
    shape = model()
    found = training_memory(recipe_of(shape, PHASE), CPU)[0]
    assert found.weights == 4 * count(shape).total
    assert found.activations == activation_bytes(shape, None, 20, 240, "fp32", False, True)
    assert found.logits == logits_bytes(shape, 240, True)
    state = found.weights + found.gradients + found.optimizer
    assert found.process == pytest.approx((331 + 37 + 175) * MB + 0.19 * found.activations + 0.33 * state)


def test_sft_and_dpo_where_the_recipe_lists_them() -> None:
    shape = model()
    sizes = [
        PHASE, *ON_CARDS, "hardware.count=2", "sft.batch_size=6", "sft.sequence_length=24", "dpo.batch_size=8",
        "dpo.sequence_length=28", "pretrain.phases.0.attention=window",
    ]  # fmt: skip

    def tokens_of(found: Any, length: int) -> int:
        return round(found.activations / activation_bytes(shape, None, length, 1, "bf16", False, False))

    recipe = recipe_of(shape, *sizes)
    pretrain, sft, dpo = training_memory(recipe, CARD)
    assert [m.where for m in (pretrain, sft, dpo)] == ["pretrain/a", "sft", "dpo"]
    assert (tokens_of(sft, 24), tokens_of(dpo, 28)) == (3 * 24, 2 * 4 * 28)
    assert dpo.optimizer == 8 * count(shape).total
    narrow = training_memory(
        recipe_of(shape, *sizes, "dpo.micro_batch_size=3", "sft.micro_batch_size=2"), CARD
    )
    assert (tokens_of(narrow[1], 24), tokens_of(narrow[2], 28)) == (2 * 24, 2 * 3 * 28)
    many = training_memory(recipe_of(shape, *sizes, "hardware.count=100"), CARD)
    assert (tokens_of(many[1], 24), tokens_of(many[2], 28)) == (24, 2 * 28)
    for stages, expected in ((("pretrain", "dpo"), ["dpo"]), (("pretrain", "sft"), ["sft"])):
        some = training_memory(recipe.model_copy(update={"stages": stages}), CARD)
        assert [m.where for m in some[1:]] == expected
    assert len(training_memory(recipe.model_copy(update={"sft": None, "dpo": None}), CARD)) == 1


@pytest.mark.parametrize("both_ways", [True, False])
def test_a_recursive_model_keeps_the_calls_of_one_cycle(both_ways: bool) -> None:
    """n + 1 calls, in which KDA runs twice; an average of the weights; y and z of every position of carried rows."""
    one_way, shape = (
        model("kda full", family="recursive", num_hidden_layers=2, mixers={
            "kda": KDA, "recursive": {"inner_updates": 4, "puzzle_tokens": 7, "bidirectional": both},
        })
        for both in (False, both_ways)
    )  # fmt: skip
    found = training_memory(recipe_of(shape, PHASE, *ON_CARDS), CARD)[0]
    plain = activation_bytes(one_way, None, 20, 240, "bf16", False, False)
    _, single, working, _ = KEPT["kda"]
    second = 240 * (4 * (single - 4 * 48) + 2 * (working - INNER)) if both_ways else 0
    assert found.activations == pytest.approx(5 * (plain + second))
    total = count(shape).total
    assert found.weights == pytest.approx(6 * total + 4 * (total + 2 * 12 * (20 + 7) * 48))


@pytest.mark.parametrize(
    ("shape", "tokens", "fixed"),
    [
        (model(), 40 * 2 * 30, 0),
        (model("window", {"window": 9, "sinks": 3}), 12 * 2 * 30, 0),
        (model("window", {"window": 90, "sinks": 3}), 40 * 2 * 30, 0),
        (model("mla", {**MLA, "v_head_dim": 18}), 40 * (20 + 6), 0),
        (model("hybrid", {"window": 8, "block_size": 16}), (40 + 3) * 2 * 30, 3 * 16 * 4),
        (model("hybrid", {"window": 8, "block_size": 64}), (40 + 1) * 2 * 30, 3 * 40 * 4),
        (model("kda", KDA), 0, 4 * (4 * 12 * 12 + 3 * 4 * 12 * 2)),
        (model("kda"), 0, 4 * (6 * 128 * 128 + 3 * 6 * 128 * 3)),
        (model("mamba2", MAMBA2), 0, 4 * (96 * 16 + (96 + 2 * 2 * 16) * 2)),
        (model("retention", RETENTION), 0, 4 * 5 * 8 * 22),
        (model("mlp", family="recursive"), 0, 0),
    ],
)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_what_decoding_keeps_at_the_served_context(shape: Model, tokens: int, fixed: int, bits: int) -> None:
    """Elements that depend on the context are stored in `kv_cache_bits`; states and convolutions' last inputs in fp32."""
    recipe = recipe_of(shape, "serve.max_model_len=40", f"serve.kv_cache_bits={bits}", "serve.max_num_seqs=3")
    found = cache_memory(recipe)
    assert found.per_sequence == pytest.approx(tokens * bits / 8 + fixed)
    assert (found.context, found.bits, found.max_num_seqs) == (40, bits, 3)
    assert found.total == 3 * found.per_sequence


def test_the_cache_adds_up_over_layers_and_reaches_as_far_as_the_model() -> None:
    shape = model("kda full*2", num_hidden_layers=6, mixers={"kda": KDA})
    found = cache_memory(recipe_of(shape, "serve.kv_cache_bits=16"))
    assert found.context == 64
    assert found.per_sequence == 4 * 64 * 2 * 30 * 2 + 2 * 4 * (4 * 12 * 12 + 3 * 4 * 12 * 2)
