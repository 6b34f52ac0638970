"""Each rule of the planner at its bounds: what just passes, what just does not, and the whole line it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ikirere.recipe.load import load_recipe
from ikirere.recipe.planner.contradictions import RULES, Facts, Finding
from ikirere.recipe.planner.counts import count
from ikirere.recipe.planner.flops import training_per_token
from ikirere.recipe.planner.hardware import Device
from ikirere.recipe.planner.memory import Cache, Memory
from ikirere.recipe.planner.stated_checks import tokens_after

SMALL = Path(__file__).with_name("small.yaml")
PHASES = (
    "pretrain.phases=[{name: one, steps: 100, sequence_length: 50, batch_size: 4, mixture: {code: 1}}, "
    "{name: two, steps: 40, sequence_length: 100, batch_size: 6, mixture: {code: 1}, attention: window}]"
)  # 20,000 and 24,000 tokens; 200 and 600 per step
CARD = Device("card", 1000.0, {"fp32": 1e12, "bf16": 4e12}, 1.0)
FREE = Memory("pretrain/one", 0, 0, 0, 0, 0, 0)


def facts(*overrides: str, **changes: Any) -> Facts:
    """Of the small recipe on a card that never is too small, unless a fact is given."""
    recipe = load_recipe(SMALL, [PHASES, *overrides])
    known = Facts(recipe, replace(count(recipe.model), total=0), CARD, (FREE,), Cache(1, 16, 0, 1), {})
    return replace(known, **changes)


def said(rule: str, *overrides: str, **changes: Any) -> list[Finding]:
    return list(RULES[rule](facts(*overrides, **changes)))


def one(rule: str, *overrides: str, **changes: Any) -> tuple[tuple[str, ...], str]:
    (finding,) = said(rule, *overrides, **changes)
    assert finding.rule == rule
    return finding.keys, finding.text


# ---------------------------------------------------------------- what is stated


@pytest.mark.parametrize(("counted", "found"), [(899, True), (900, False), (1100, False), (1101, True)])
def test_sizes_may_be_a_tenth_off(counted: int, found: bool) -> None:
    counts = replace(count(load_recipe(SMALL).model), total=counted, layers=500, embedding=300)
    assert bool(said("parameters", "stated.parameters=1000", counts=counts)) is found
    assert not said("parameters", counts=counts), "nothing stated"


def test_the_line_about_parameters() -> None:
    counts = replace(count(load_recipe(SMALL).model), total=1_500_000, layers=1_000_000, embedding=500_000)
    assert one("parameters", "stated.parameters=1e6", counts=counts) == (
        ("stated.parameters", "model"),
        "5 layers of 200k + embeddings of 500k = 1.5M parameters, stated 1M (+50%)",
    )


def test_every_stated_id_needs_a_row() -> None:
    assert not said("vocabulary", "stated.tokenizer_vocabulary=4096")
    assert one("vocabulary", "stated.tokenizer_vocabulary=4097") == (
        ("model.vocab_size", "stated.tokenizer_vocabulary"),
        "the model has 4,096 rows, the tokenizer 4,097 ids: 1 ids have no row",
    )


@pytest.mark.parametrize(
    ("stated", "found"), [(40_000, False), (39_999, True), (48_888, False), (48_890, True)]
)
def test_tokens_of_all_phases_may_be_a_tenth_off(stated: int, found: bool) -> None:
    """44,000 are counted."""
    assert bool(said("tokens", f"stated.tokens={stated}")) is found
    assert not said("tokens")


def test_the_line_about_tokens() -> None:
    assert one("tokens", "stated.tokens=88000") == (
        ("stated.tokens", "pretrain.phases"),
        "100 x 4 x 50 + 40 x 6 x 100 = 44k tokens, stated 88k (0.5 of it)",
    )


def test_tokens_after_a_step_are_summed_over_phases() -> None:
    recipe = facts().recipe
    assert [tokens_after(recipe, step) for step in (0, 1, 100, 101, 140, 141)] == [
        0, 200, 20_000, 20_600, 44_000, 44_000,
    ]  # fmt: skip


def test_checkpoints_are_within_the_run_and_see_what_is_stated() -> None:
    fine = "stated.checkpoints={step_100: 2e4, after_step_110: 26000, step_140: 44000, best: 1, step_x1: 5}"
    assert not said("checkpoints", fine)
    assert one("checkpoints", "stated.checkpoints={step_110: 52000}") == (
        ("stated.checkpoints.step_110", "pretrain.phases"),
        "110 of 140 steps see 26k tokens, stated 52k (2 times as many)",
    )
    assert one("checkpoints", "stated.checkpoints={step_141: 44000}")[1].startswith(
        "141 of 140 steps see 44k"
    )
    assert one("checkpoints", "stated.checkpoints={step_0: 50}")[1].endswith("stated 50 (50 times as many)")


def rate_of(mfu: float, phase: int = 0, precision: str = "fp32", count_of_cards: int = 1) -> float:
    """Tokens per second that make this share of the card's peak."""
    recipe = facts().recipe
    p = recipe.pretrain.phases[phase]
    each = training_per_token(recipe.model, p.sequence_length, p.attention)
    return mfu * CARD.peak[precision] * count_of_cards / each


@pytest.mark.parametrize(("mfu", "found"), [(0.149, True), (0.151, False), (0.699, False), (0.701, True)])
@pytest.mark.parametrize(("precision", "cards"), [("fp32", 1), ("bf16", 1), ("fp32", 8), ("fp8", 1)])
def test_rates_are_within_15_and_70_percent_of_all_cards(
    mfu: float, found: bool, precision: str, cards: int
) -> None:
    """A precision that the card has not (fp8) is measured against the fastest that it has."""
    known = precision if precision in CARD.peak else "bf16"
    rate = rate_of(mfu, precision=known, count_of_cards=cards)
    changes = ["hardware.device=h100-80gb", f"pretrain.precision={precision}", f"hardware.count={cards}"]
    tokens = said("throughput", f"stated.throughput_tokens_per_second={rate}", *changes)
    steps = said("throughput", f"stated.throughput_steps_per_second={rate / 200}", *changes)
    assert (bool(tokens), bool(steps)) == (found, found)
    if found:
        assert tokens[0].keys == ("stated.throughput_tokens_per_second", "hardware.device")
        assert f"{cards} x card: MFU {mfu:.1%}, credible is 15% to 70%" in tokens[0].text
        assert steps[0].keys == ("stated.throughput_steps_per_second", "hardware.device")
        assert f"steps/s x 200 tokens = {tokens[0].text.split()[0]} tokens/s x " in steps[0].text


def test_the_line_about_throughput_adds_up() -> None:
    rate = rate_of(0.9)
    _, text = one("throughput", f"stated.throughput_tokens_per_second={rate}")
    assert text == (
        f"{rate / 1000:.4g}k tokens/s x {1e12 * 0.9 / rate / 1e6:.4g}M FLOP = 900GFLOP/s of the 1TFLOP/s of "
        "1 x card: MFU 90.0%, credible is 15% to 70%"
    ).replace("900GFLOP", "900BFLOP")


def test_a_phase_has_its_own_rate() -> None:
    for mfu, found in ((0.4, False), (0.1, True)):
        rate = rate_of(mfu, phase=1) / 600
        assert bool(said("throughput", f"stated.phase_steps_per_second={{two: {rate}}}")) is found
    assert one("throughput", "stated.phase_steps_per_second={three: 1}") == (
        ("stated.phase_steps_per_second.three", "pretrain.phases"), "no such phase; phases are one, two",
    )  # fmt: skip


@pytest.mark.parametrize(("share", "found"), [(0.89, True), (0.91, False), (1.09, False), (1.12, True)])
def test_tokens_and_steps_per_second_agree(share: float, found: bool) -> None:
    rate = rate_of(0.4)
    findings = said(
        "throughput", f"stated.throughput_tokens_per_second={rate}",
        f"stated.throughput_steps_per_second={rate * share / 200}",
    )  # fmt: skip
    assert bool(findings) is found
    for finding in findings:
        assert finding.keys == ("stated.throughput_tokens_per_second", "stated.throughput_steps_per_second")
        assert "steps/s x 200 tokens = " in finding.text


@pytest.mark.parametrize(("stated", "found"), [(0.99, True), (1, False), (4, False), (4.01, True)])
def test_days_may_be_half_or_twice(stated: float, found: bool) -> None:
    seconds = {"pretrain": 86_400.0, "sft": 86_400.0}
    assert bool(said("days", f"stated.days={stated}", seconds=seconds)) is found
    assert not said("days", seconds=seconds) and not said("days", "stated.days=3")
    if stated > 4:
        assert one("days", "stated.days=5", seconds=seconds) == (
            ("stated.days", "hardware.mfu"), "at MFU 50% 1 x cpu need 2 days, stated 5 (2.5 times as many)",
        )  # fmt: skip


# ---------------------------------------------------------------- what is asked for


def test_widths_for_k_quants_are_multiples_of_256() -> None:
    assert not said("gguf_widths", "model.intermediate_size=700"), "no GGUF is exported"
    assert not said("gguf_widths", "serve.export=[gguf-q4_k_m]"), "256, 768 and 4 x 64"
    keys, text = one("gguf_widths", "serve.export=[safetensors, gguf-q4_k_m, gguf-q8_0]", "model.head_dim=96")
    assert keys == ("model.num_attention_heads", "serve.export")
    assert text == (
        "384 (4 x 96) = 1.5 x 256: gguf-q4_k_m, gguf-q8_0 packs blocks of 256 weights and falls back to wider types"
    )
    wide = said("gguf_widths", "serve.export=[gguf-q4_k_m]", "model.hidden_size=260", "model.head_dim=64")
    assert [(f.keys[0], f.text.split(":")[0]) for f in wide] == [("model.hidden_size", "260 = 1.02 x 256")]


def test_a_recipe_without_alignment_is_asked_nothing_about_it() -> None:
    recipe = facts().recipe.model_copy(update={"sft": None, "dpo": None})
    for rule in ("precision", "mixtures"):
        assert not said(rule, recipe=recipe)


def test_a_token_takes_what_it_reads() -> None:
    """1,000 bytes of weights and, of 4 requests, 5 layers' keys and values of 2 heads of 64 at 10 tokens in 16 bits."""
    states = 4 * 5 * 10 * 2 * 2 * 64 * 2
    known: dict[str, Any] = {
        "counts": replace(count(load_recipe(SMALL).model), total=500),
        "device": replace(CARD, bandwidth=2.0 * (states + 1000)),
    }
    served = "serve.max_model_len=10"
    assert facts(served, **known).decode.seconds == 0.5
    assert not said("latency", served, **known), "nothing wanted"
    assert not said("latency", served, "serve.latency_p95_ms=500", **known)
    assert one("latency", served, "serve.latency_p95_ms=499", **known) == (
        ("serve.latency_p95_ms", "hardware.device"),
        "a token reads weights 1e-06 + states 0.000102 GB at 1 x 0.000207 GB/s: at least 500 ms, wanted 499 ms",
    )
    assert not said("latency", served, "serve.latency_p95_ms=250", "hardware.count=2", **known)


def test_settings_of_built_stages_are_read_elsewhere() -> None:
    settings = "planned={evaluate: {a: 1}, report: {b: 2}}"
    assert not said("planned", settings)
    assert not said("planned", settings, built=frozenset({"data"}))
    assert one("planned", settings, built=frozenset({"data", "report"})) == (
        ("planned.report", "stages"),
        "the stage is built and reads its settings elsewhere; nothing reads these",
    )


def test_batches_are_shared_by_groups_of_devices() -> None:
    """Batches of 4 and 6."""
    assert not said("batches", "hardware.count=2")
    assert one("batches", "hardware.count=4") == (
        ("pretrain.phases.1.batch_size", "hardware.count"), "6 sequences over 4 groups of devices = 1.5 each",
    )  # fmt: skip
    # Pairs of devices make two groups of four, and one phase without is refused alone.
    assert not said("batches", "hardware.count=4", "pretrain.phases.1.context_parallel=2")
    first, second = said(
        "batches",
        "hardware.count=3",
        "pretrain.phases.0.context_parallel=2",
        "pretrain.phases.1.batch_size=4",
    )
    assert first.keys == ("pretrain.phases.0.context_parallel", "hardware.count")
    assert first.text == "3 devices do not part into groups of 2"
    assert second.text == "4 sequences over 3 groups of devices = 1.33 each"
    (alone,) = said(
        "batches", "hardware.count=5", "pretrain.phases.0.context_parallel=2", "pretrain.phases.0.batch_size=3",
        "pretrain.phases.1.batch_size=5",
    )  # fmt: skip
    assert alone.text == "5 devices do not part into groups of 2", "of such a phase the batch is no matter"


@pytest.mark.parametrize(("total", "found"), [(950, False), (951, True)])
def test_a_twentieth_of_the_device_stays_free(total: int, found: bool) -> None:
    parts = Memory("pretrain/two", total - 5, 1, 1, 1, 1, 1)
    findings = said("fits", memory=(FREE, parts, FREE))
    assert bool(findings) is found
    for finding in findings:
        assert finding.keys == ("hardware.device", "pretrain.phases.two")


def test_the_line_about_memory_names_its_parts() -> None:
    big = Memory("sft", 6e9, 1e9, 2e9, 3e9, 4e9, 5e9)
    card = replace(CARD, memory=20e9)
    assert one("fits", memory=(big, FREE), device=card) == (
        ("hardware.device", "sft"),
        "weights 1 + gradients 2 + optimiser 3 + activations 4 + logits 5 + rest 6 = 21 GB, card has 20 GB",
    )


@pytest.mark.parametrize(
    ("cards", "caches", "found"), [(1, 7, False), (1, 8, True), (2, 17, False), (2, 18, True)]
)
def test_weights_in_16_bits_and_all_caches_fit_all_devices(cards: int, caches: int, found: bool) -> None:
    """100 weights, 100 bytes per cache, 950 bytes per card."""
    counts = replace(facts().counts, total=100)
    findings = said("fits", f"hardware.count={cards}", counts=counts, cache=Cache(1, 16, 100.0, caches))
    assert bool(findings) is found
    for finding in findings:
        assert finding.keys == ("serve.max_num_seqs", "hardware.device")
    if found:
        big = replace(counts, total=10**9)
        text = said("fits", f"hardware.count={cards}", counts=big, cache=Cache(1, 16, 1e9, caches))[0].text
        assert text == (
            f"weights 2 + {caches} caches of 1 = {caches + 2} GB, {cards} x card have {cards * 1e-6:.3g} GB"
        )


def test_every_stage_computes_in_a_precision_of_the_device() -> None:
    assert not said("precision", "pretrain.precision=bf16", "sft.precision=fp32", "dpo.precision=auto")
    for key in ("pretrain", "sft", "dpo"):
        assert one("precision", f"{key}.precision=fp16") == (
            (f"{key}.precision", "hardware.device"), "card has no fp16; it has fp32, bf16",
        )  # fmt: skip
    assert one("precision", "hardware.precision=fp16")[0] == ("hardware.precision", "hardware.device")
    cpu = Device("cpu", 1e9, {"fp32": 1e9}, 1e9)
    assert not said("precision", "hardware.precision=bf16", device=cpu), (
        "a CPU computes in fp32 whatever is written"
    )
    assert one("precision", "sft.precision=bf16", device=cpu)[0] == ("sft.precision", "hardware.device")


def gate(metric: str, op: str, target: float) -> str:
    return (
        f'gates={{evaluate: [{{name: g, metric: "{metric}", op: "{op}", target: {target}, on_miss: stop}}]}}'
    )


@pytest.mark.parametrize(
    ("metric", "op", "target", "found"),
    [
        ("bytes_per_token/code", "<=", 1.99, True),
        ("bytes_per_token", "<", 1.2, True),
        ("bytes_per_token/code", "<=", 2, False),
        ("bytes_per_token/code", ">=", 1.2, False),
        ("answer/calculator", ">=", 1, False),
        ("answer/calculator", ">=", 0, False),
        ("answer/calculator", ">=", 1.01, True),
        ("answer/calculator", ">=", -0.01, True),
        ("needle@milestone", ">=", 95, True),
        ("win_rate/judge@final", ">=", 55, True),
        ("perplexity/code", "<=", 15, False),
        ("answers/calculator", ">=", 90, False),
    ],
)  # fmt: skip
def test_targets_that_cannot_be_meant(metric: str, op: str, target: float, found: bool) -> None:
    assert bool(said("gate_targets", gate(metric, op, target))) is found


def test_the_lines_about_targets() -> None:
    assert one("gate_targets", gate("bytes_per_token/code", "<=", 1.2)) == (
        ("gates.evaluate.0.target", "tokenizer.vocab_size"),
        "at most 1.2 bytes per token forbids compression: 4,096 ids are there to reach 3 to 4.5 bytes per token, "
        "bytes alone give 1",
    )
    assert one("gate_targets", gate("answer/units@late", ">=", 90)) == (
        ("gates.evaluate.0.target", "gates.evaluate.0.metric"),
        "answer/units@late is a proportion from 0 to 1, the target is 90; 90% is 0.9",
    )


def test_weights_of_a_mixture_are_shares() -> None:
    key = "pretrain.phases.0.mixture"
    assert not said("mixtures", f"{key}={{code: 0.5, docs: 0.4991}}")
    (note,) = said("mixtures", f"{key}={{code: 0.5, docs: 0.498}}")
    assert (note.severity, note.keys) == ("note", (key, key))
    assert note.text == "0.5 + 0.498 = 0.998; shares are taken of the sum"
    (nothing,) = said("mixtures", "tokenizer.mixture={code: 0, docs: 0}")
    assert nothing.severity == "contradiction" and nothing.keys[0] == "tokenizer.mixture"
    assert nothing.text == "all weights are 0: nothing to draw from"
    (sft,) = said("mixtures", "sft.mixture={chat: 2}")
    assert sft.keys[0] == "sft.mixture"


def test_rows_that_no_id_needs() -> None:
    assert not said("empty_rows")
    (note,) = said("empty_rows", "tokenizer.vocab_size=4000")
    assert (note.severity, note.keys) == ("note", ("model.vocab_size", "tokenizer.vocab_size"))
    assert note.text == "4,096 rows, 4,000 ids: 96 rows are padding (24.58k parameters)"


def test_a_leak_that_is_not_certain_is_a_note() -> None:
    source = "data.sources.0={{kind: hub, name: x, domain: code, dataset: openai/gsm8k, split: {}}}"
    evaluated = "data.evaluation_sets=[gsm8k]"
    (certain,) = said("leaks", source.format("test"), evaluated)
    (maybe,) = said("leaks", source.format("train"), evaluated)
    assert (certain.severity, maybe.severity) == ("contradiction", "note")
    assert certain.keys[0].startswith("data.sources.0.") and certain.keys[1] == "data.evaluation_sets"
    assert certain.text.startswith("training source 'x' and evaluation set 'gsm8k': ")
