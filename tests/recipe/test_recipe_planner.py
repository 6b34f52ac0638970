"""The planner: counts, operations, memory, and every contradiction it has to find."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from mixer_helpers import kept_by_a_layer

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.recipe.load import load_recipe
from ikirere.recipe.mixers.attention import mean_context
from ikirere.recipe.planner import Plan, plan, render
from ikirere.recipe.planner.counts import count
from ikirere.recipe.planner.flops import forward_per_token, training_per_token
from ikirere.recipe.planner.memory import layer_elements
from ikirere.recipe.planner.name_overlap import find_leaks
from ikirere.recipe.schema import Model

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = Path(__file__).with_name("small.yaml")
NANO = RECIPES / "nanollama-1b.yaml"
ALL = sorted(RECIPES.rglob("*.yaml"))


def planned(path: Path, *overrides: str) -> Plan:
    return plan(load_recipe(path, list(overrides)))


def found(path: Path, *overrides: str) -> dict[str, list[str]]:
    """Texts of contradictions by rule."""
    result: dict[str, list[str]] = {}
    for f in planned(path, *overrides).contradictions:
        assert len(f.keys) == 2
        assert "\n" not in f.text
        result.setdefault(f.rule, []).append(f"{' '.join(f.keys)} {f.text}")
    return result


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_recipe_plans_as_text_and_json(path: Path) -> None:
    made = planned(path)
    text = render(made)
    assert max(len(line) for line in text.splitlines()) <= 110
    assert f"{made.counts.total:,}" in text
    values = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert values["parameters"]["total"] == made.counts.total
    assert values["hours"] > 0
    assert values["peak_memory"]["total"] == max(m["total"] for m in values["memory"])
    assert len(values["contradictions"]) == len(made.contradictions)


@pytest.mark.parametrize(
    ("name", "total", "share"),
    [
        ("irm-2b", 2.010e9, 0.001),
        ("nanollama-1b", 1_100_048_384, 0),
        ("smol-100m-kda", 100e6, 0.02),
        ("smol-100m-trm", 100e6, 0.02),
        ("modern-lm", 377_558_016, 0),
        ("specified/irm-2b-as-specified", 4.566e9, 0.001),
    ],
)
def test_programmes_have_the_size_they_state(name: str, total: float, share: float) -> None:
    assert planned(RECIPES / f"{name}.yaml").counts.total == pytest.approx(total, rel=share, abs=0.5)


def test_the_recursive_core_is_98_9_million() -> None:
    made = planned(RECIPES / "smol-100m-trm.yaml")
    assert made.counts.layers / 1e6 == pytest.approx(98.9, abs=0.05)


shapes = st.builds(
    dict,
    vocab_size=st.integers(1, 600),
    hidden_size=st.integers(1, 90),
    num_hidden_layers=st.integers(1, 5),
    num_key_value_heads=st.integers(1, 4),
    group=st.integers(1, 4),
    half_head=st.integers(1, 12),
    intermediate_size=st.integers(1, 200),
    qk_norm=st.booleans(),
    tie_word_embeddings=st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_formula_equals_the_built_model(shape: dict[str, int]) -> None:
    values = {k: v for k, v in shape.items() if k not in ("group", "half_head")}
    model = Model(
        **values,
        num_attention_heads=shape["num_key_value_heads"] * shape["group"],
        head_dim=2 * shape["half_head"],
        max_position_embeddings=64,
    )
    with torch.device("meta"):
        built = Decoder(ModelConfig.from_recipe(model))
    counted = count(model)
    assert counted.total == built.num_parameters()
    assert counted.hidden_2d == sum(p.numel() for p in built.layers.parameters() if p.ndim == 2)


@pytest.mark.parametrize("name", ["nanollama-1b", "modern-lm", "demo"])
def test_formula_equals_the_built_model_at_full_size(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    with torch.device("meta"):
        built = Decoder(ModelConfig.from_recipe(recipe.model))
    assert count(recipe.model).total == built.num_parameters()


@given(st.integers(1, 60), st.integers(1, 80))
def test_mean_context_is_the_mean_of_what_each_token_sees(length: int, window: int) -> None:
    seen = [min(i + 1, window) for i in range(length)]
    assert mean_context(length, window) == pytest.approx(sum(seen) / length)
    assert mean_context(length) == pytest.approx(sum(range(1, length + 1)) / length)


def test_operations_equal_those_that_torch_counts() -> None:
    """torch counts the whole attention square, so the causal half is added back."""
    from torch.utils.flop_counter import FlopCounterMode

    model = load_recipe(SMALL).model.model_copy(update={"num_hidden_layers": 2})
    length = 32
    decoder = Decoder(ModelConfig.from_recipe(model))
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        decoder(torch.zeros(1, length, dtype=torch.long))
    per_token = counter.get_total_flops() / length
    half = 4 * model.num_attention_heads * model.head_size * (length - mean_context(length)) * 2
    assert per_token == pytest.approx(forward_per_token(model, length) + half, rel=1e-6)
    assert training_per_token(model, length) == 3 * forward_per_token(model, length)


def test_a_recursive_step_costs_seventy_per_weight() -> None:
    model = load_recipe(RECIPES / "smol-100m-trm.yaml").model
    attention = model.model_copy(update={"layer_pattern": "full"})
    assert training_per_token(attention, 1) / count(attention).matmul == pytest.approx(70, rel=0.03)
    # Three layers of KDA run in both directions: 26M of 100M weights are multiplied twice.
    assert training_per_token(model, 1) / count(model).matmul == pytest.approx(70 * 1.265, rel=0.03)


def test_windows_and_summaries_cost_less_than_full_attention() -> None:
    model = load_recipe(RECIPES / "irm-2b.yaml").model
    full, hybrid = (forward_per_token(model, 524_288, pattern) for pattern in ("full", "hybrid"))
    window = forward_per_token(model, 524_288, "window")
    assert window < hybrid < full / 5
    assert forward_per_token(model, 4096, "window") == forward_per_token(model, 4096, "full")


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_kept_activations_equal_what_autograd_saves(qk_norm: bool, packed: bool) -> None:
    model = load_recipe(SMALL).model.model_copy(
        update={"qk_norm": qk_norm, "hidden_size": 64, "head_dim": 16}
    )
    length, batch = 48, 2

    counted = sum(layer_elements(model, "full", "dense", length, packed)) * 4 * batch * length
    # Exact when the constants were counted; a layer that keeps a tenth more or less asks for counting again.
    assert kept_by_a_layer(model, batch, length, packed) == pytest.approx(counted, rel=0.10)


def test_memory_follows_sharding_precision_and_optimiser() -> None:
    one = planned(NANO, "pretrain.parallel=none").memory[0]
    two = planned(NANO).memory[0]
    weights = 1_100_048_384
    assert one.weights == 6 * weights  # fp32 and a bf16 copy
    assert one.gradients == 4 * weights
    assert one.optimizer == 8 * weights
    assert (two.weights, two.gradients, two.optimizer) == (3 * weights, 2 * weights, 4 * weights)
    demo = planned(SMALL)
    moments = demo.memory[0].optimizer
    assert moments == 8 * demo.counts.total - 4 * demo.counts.hidden_2d  # Muon keeps one momentum
    plain = planned(NANO, "pretrain.activation_checkpointing=false").memory[0]
    assert plain.activations > 5 * two.activations
    assert plain.activations / 1e9 == pytest.approx(128, rel=0.1)


@pytest.mark.parametrize(
    ("overrides", "gigabytes"),
    [
        (["serve.kv_cache_bits=16", "model.layer_pattern=full"], 11.47),  # 57 kB a token, 200k tokens
        (["serve.kv_cache_bits=4", "model.layer_pattern=full"], 2.87),
        (["serve.kv_cache_bits=16", "model.layer_pattern=window*3 full"], 3.22),  # windows keep 8k
    ],
)
def test_cache_at_the_served_context(overrides: list[str], gigabytes: float) -> None:
    made = planned(RECIPES / "irm-2b.yaml", "serve.max_model_len=200000", *overrides)
    assert made.cache.per_sequence / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_kda_keeps_a_state_of_fixed_size() -> None:
    short, long = (
        planned(RECIPES / "smol-100m-kda.yaml", f"serve.max_model_len={n}").cache for n in (1024, 4096)
    )
    grown = long.per_sequence - short.per_sequence
    assert grown == 3 * 3072 * 2 * 128 * 2  # three full layers of one 128-wide key and value in 16 bits


# ---------------------------------------------------------------- contradictions


@pytest.mark.parametrize("name", ["demo", "irm-2b", "smol-100m-kda", "modern-lm"])
def test_recipes_that_hold_together_have_none(name: str) -> None:
    assert found(RECIPES / f"{name}.yaml") == {}


def test_the_2b_shape_of_the_specification() -> None:
    bad = found(RECIPES / "specified" / "irm-2b-as-specified.yaml")
    assert "= 4.566B parameters, stated 2B (+128%)" in bad["parameters"][0]
    assert "stated.parameters model" in bad["parameters"][0]
    assert "at most 1.2 bytes per token forbids compression" in bad["gate_targets"][0]


def test_the_timetable_of_nanollama() -> None:
    bad = found(NANO)
    assert set(bad) == {"vocabulary", "checkpoints", "throughput", "days"}
    assert "32,000 rows, the tokenizer 128,256 ids" in bad["vocabulary"][0]
    assert len(bad["checkpoints"]) == 1
    assert "stated.checkpoints.step_2500" in bad["checkpoints"][0]
    assert "327.7M tokens, stated 3.3B (10 times as many)" in bad["checkpoints"][0]
    assert "MFU 7.4%" in bad["throughput"][0]
    assert len(bad["throughput"]) == 4
    assert "stated 21" in bad["days"][0]


def test_arc_inside_arc_and_bf16_on_t4() -> None:
    bad = found(RECIPES / "specified" / "smol-100m-kda-as-specified.yaml")
    assert any("376 of the 400" in text for text in bad["leaks"])
    assert {text.split()[0] for text in bad["precision"]} == {"hardware.precision", "pretrain.precision"}


def test_grids_need_no_gpt2_vocabulary() -> None:
    assert set(found(RECIPES / "smol-100m-trm.yaml")) == {"vocabulary"}


@pytest.mark.parametrize(
    ("rule", "overrides", "says"),
    [
        ("parameters", ["stated.parameters=4.4e6"], "= 4.984M parameters, stated 4.4M (+13%)"),
        ("vocabulary", ["stated.tokenizer_vocabulary=5000"], "4,096 rows, the tokenizer 5,000 ids: 904 ids"),
        ("latency", ["serve.latency_p95_ms=1"], "weights 0.00997 + states 0.0105 GB at 1 x 10 GB/s: at least 2.05 ms"),
        ("tokens", ["stated.tokens=2e6"], "400 x 16 x 256 = 1.638M tokens, stated 2M (0.82 of it)"),
        ("checkpoints", ["stated.checkpoints={step_100: 1e6}"], "100 of 400 steps see 409.6k tokens"),
        ("checkpoints", ["stated.checkpoints={step_900: 1.6384e6}"], "900 of 400 steps"),
        ("throughput", ["stated.throughput_tokens_per_second=100"], "credible is 15% to 70%"),
        ("throughput", ["stated.throughput_steps_per_second=50"], "50 steps/s x 4,096 tokens"),
        ("throughput", ["stated.phase_steps_per_second={mian: 1}"], "no such phase; phases are main"),
        (
            "throughput",
            ["stated.throughput_tokens_per_second=1500", "stated.throughput_steps_per_second=0.5"],
            "0.5 steps/s x 4,096 tokens = 2.048k tokens/s, stated 1.5k",
        ),
        ("days", ["stated.days=3"], "stated 3"),
        ("gguf_widths", ["serve.export=[gguf-q4_k_m]", "model.intermediate_size=700"], "700 = 2.73 x 256"),
        ("gguf_widths", ["serve.export=[gguf-q8_0]", "model.head_dim=32"], "128 (4 x 32) = 0.5 x 256"),
        ("batches", ["hardware.count=3"], "16 sequences over 3 groups of devices = 5.33 each"),
        ("batches", ["hardware.count=3", "pretrain.phases.0.context_parallel=2"], "groups of 2"),
        ("fits", ["hardware.device=t4", "hardware.precision=fp16", "model.intermediate_size=4000000"], "t4 has 16 GB"),
        ("fits", ["hardware.device=t4", "hardware.precision=fp16", "serve.max_num_seqs=9000"], "9000 caches"),
        ("precision", ["hardware.device=t4"], ""),
        ("precision", ["hardware.device=a100-80gb", "pretrain.precision=fp8"], "a100-80gb has no fp8"),
        ("precision", ["pretrain.precision=fp8"], "cpu has no fp8"),
        ("gate_targets", ["gates.evaluate.0.target=90"], "a proportion from 0 to 1, the target is 90; 90% is 0.9"),
        ("mixtures", ["pretrain.phases.0.mixture={code: 0, docs: 0}"], "nothing to draw from"),
    ],
)  # fmt: skip
def test_each_rule_finds_its_contradiction(rule: str, overrides: list[str], says: str) -> None:
    bad = found(SMALL, *overrides)
    if says:
        assert any(says in text for text in bad[rule]), bad
    else:  # fp32 runs on a T4
        assert rule not in bad


def test_settings_of_stages_that_are_not_built_are_shown() -> None:
    recipe = load_recipe(RECIPES / "nanollama-1b.yaml")
    text = " ".join(render(plan(recipe)).split())
    assert "planned, not built probes: needle={length: 16384, tests: 100}" in text
    assert "stated, not checked about 12,000 steps a day are expected" in text
    built = frozenset({"data", "pretrain", "quantise"})
    made = plan(recipe, built=built)
    assert list(made.planned) == [name for name in recipe.stages if name not in built]
    assert made.to_json()["planned_not_built"]["probes"] == recipe.planned["probes"]
    assert made.planned["sft"] == {}  # not built and without settings: named all the same
    assert [f.keys[0] for f in made.contradictions if f.rule == "planned"] == ["planned.quantise"]


def test_the_least_time_of_a_token_is_what_it_reads_over_the_bandwidth() -> None:
    made = planned(SMALL, "serve.latency_p95_ms=4")
    weights, states = 2 * made.counts.total, 4 * made.cache.per_sequence
    assert made.decode.seconds == pytest.approx((weights + states) / 10e9)
    assert "wanted p95 4 ms" in render(made)
    assert made.to_json()["decode"]["latency_p95_ms"] == 4
    two = planned(SMALL, "hardware.count=2").decode
    assert two.seconds == made.decode.seconds / 2


def test_hybrid_attention_reads_its_window_and_blocks_only() -> None:
    made = planned(RECIPES / "irm-2b.yaml")
    width = 2 * 4 * 128 * 4 / 8  # keys and values of 4 heads in 4 bits
    read = width * (8192 + 16 * 1024 + 204_800 / 1024) + 4 * 1024 * 4
    assert made.decode.states == pytest.approx(8 * 28 * read)


def test_small_differences_are_no_contradictions() -> None:
    near = ["stated.parameters=5.2e6", "stated.tokens=1.7e6", "stated.checkpoints={step_100: 4e5}"]
    assert found(SMALL, *near) == {}


def test_mixtures_that_do_not_sum_to_one_are_a_note() -> None:
    made = planned(SMALL, "pretrain.phases.0.mixture={code: 3, docs: 1}")
    assert made.contradictions == ()
    assert [f.rule for f in made.notes] == ["mixtures"]
    assert "3 + 1 = 4" in made.notes[0].text


def source(text: str) -> str:
    return f"data.sources.0={{kind: hub, name: x, domain: code, {text}}}"


@pytest.mark.parametrize(
    ("hub", "evaluated", "certain"),
    [
        ("dataset: openai/gsm8k, split: test", "gsm8k", True),
        ("dataset: openai/gsm8k, split: train", "gsm8k", False),
        ("dataset: openai/gsm8k, split: train", "gsm8k:train", True),
        ("dataset: openai/grade-school-math, split: test", "gsm8k:test", True),
        ("dataset: openai/gsm8k, split: test", "gsm8k:train", False),
        ("dataset: arcprize/ARC_AGI_2, split: training", "arc_agi_1:evaluation", True),
        ("dataset: arcprize/ARC_AGI_2, split: evaluation", "arc_agi_1:evaluation", None),
        ("dataset: fchollet/ARC-AGI, split: training", "arc-agi-2:evaluation", None),
        ("dataset: wikimedia/wikipedia, config: 20231101.en", "wikitext2", True),
        ("dataset: Salesforce/wikitext, config: wikitext-2-raw-v1, split: test", "wikitext2:test", True),
        ("dataset: Salesforce/wikitext, config: wikitext-2-raw-v1", "wikitext2:test", False),
        ("dataset: cais/mmlu, split: test", "mmlu", True),
        ("dataset: me/my-quiz, split: all", "my-quiz", True),
        ("dataset: HuggingFaceFW/fineweb-edu", "mmlu", None),
        ("dataset: a/b, mirror: benchmarks/hellaswag/*.jsonl", "hellaswag", True),
    ],
)
def test_evaluation_sets_inside_sources(hub: str, evaluated: str, certain: bool | None) -> None:
    overrides = [source(hub), "pretrain.phases.0.mixture={code: 1}", f"data.evaluation_sets=['{evaluated}']"]
    leaks = find_leaks(load_recipe(SMALL, overrides))
    assert [leak.certain for leak in leaks] == ([] if certain is None else [certain])
    contradictions = found(SMALL, *overrides)
    assert ("leaks" in contradictions) == (certain is True)


def test_a_mirrors_files_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "wikitext-2-valid-test.parquet").touch()
    overrides = [
        source("dataset: a/b, mirror: wiki/*.parquet"),
        "pretrain.phases.0.mixture={code: 1}",
        "data.evaluation_sets=['wikitext2:validation']",
    ]
    monkeypatch.delenv("IKIRERE_DATA", raising=False)
    assert "leaks" not in found(SMALL, *overrides)
    monkeypatch.setenv("IKIRERE_DATA", str(tmp_path))
    assert "data.sources.0.mirror" in found(SMALL, *overrides)["leaks"][0]


def test_unknown_devices_are_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UserError,
        match=r"hardware.device: no device 'h100' \(did you mean h100-pcie-80gb or h100-80gb\?\); known: cpu, ",
    ):
        planned(SMALL, "hardware.device=h100")
