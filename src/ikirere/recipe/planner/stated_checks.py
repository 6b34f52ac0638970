"""Rules about what the specification claims: `stated` beside the arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

from ikirere.recipe.planner import flops
from ikirere.recipe.planner.contradictions import Facts, Finding, rule, short
from ikirere.recipe.planner.memory import working_precision
from ikirere.recipe.schema import Recipe

OFF = 0.10  # stated and counted may differ by this share
MFU_LOW, MFU_HIGH = 0.15, 0.70
DAYS_OFF = 2.0  # stated and planned days may differ by this factor


def _differs(stated: float, counted: float) -> bool:
    return abs(counted - stated) > OFF * stated


@rule
def parameters(f: Facts) -> Iterator[Finding]:
    stated = f.recipe.stated.parameters
    if stated and _differs(stated, f.counts.total):
        m = f.recipe.model
        yield Finding(
            "parameters",
            ("stated.parameters", "model"),
            f"{m.num_hidden_layers} layers of {short(f.counts.layers / m.num_hidden_layers)} + embeddings of "
            f"{short(f.counts.embedding)} = {short(f.counts.total)} parameters, stated {short(stated)} "
            f"({f.counts.total / stated - 1:+.0%})",
        )


@rule
def vocabulary(f: Facts) -> Iterator[Finding]:
    rows, size = f.recipe.model.vocab_size, f.recipe.stated.tokenizer_vocabulary
    if size and rows < size:
        yield Finding(
            "vocabulary",
            ("model.vocab_size", "stated.tokenizer_vocabulary"),
            f"the model has {rows:,} rows, the tokenizer {size:,} ids: {size - rows:,} ids have no row",
        )


@rule
def tokens(f: Facts) -> Iterator[Finding]:
    stated, counted = f.recipe.stated.tokens, f.recipe.pretrain.tokens
    if stated and _differs(stated, counted):
        terms = " + ".join(
            f"{p.steps:,} x {p.batch_size} x {p.sequence_length:,}" for p in f.recipe.pretrain.phases
        )
        yield Finding(
            "tokens",
            ("stated.tokens", "pretrain.phases"),
            f"{terms} = {short(counted)} tokens, stated {short(stated)} ({counted / stated:.2g} of it)",
        )


def tokens_after(recipe: Recipe, step: int) -> int:
    """Tokens seen after `step` optimiser steps of pretraining."""
    seen = 0
    for p in recipe.pretrain.phases:
        steps = min(step, p.steps)
        seen += steps * p.batch_size * p.sequence_length
        step -= steps
    return seen


@rule
def checkpoints(f: Facts) -> Iterator[Finding]:
    total = f.recipe.pretrain.steps
    for name, stated in f.recipe.stated.checkpoints.items():
        number = name.rpartition("_")[2]
        if not number.isdecimal():
            continue
        counted = tokens_after(f.recipe, int(number))
        if int(number) > total or _differs(stated, counted):
            yield Finding(
                "checkpoints",
                (f"stated.checkpoints.{name}", "pretrain.phases"),
                f"{int(number):,} of {total:,} steps see {short(counted)} tokens, stated {short(stated)} "
                f"({stated / max(counted, 1):.2g} times as many)",
            )


@rule
def throughput(f: Facts) -> Iterator[Finding]:
    stated, phases = f.recipe.stated, f.recipe.pretrain.phases
    rates: list[tuple[str, int, float, str]] = []  # key, phase, tokens per second, how it was had
    per_step = [p.batch_size * p.sequence_length for p in phases]
    if stated.throughput_tokens_per_second:
        rate = stated.throughput_tokens_per_second
        rates.append(("stated.throughput_tokens_per_second", 0, rate, f"{short(rate)} tokens/s"))
    steps = [("stated.throughput_steps_per_second", 0, stated.throughput_steps_per_second)]
    index = {p.name: i for i, p in enumerate(phases)}
    for name, value in stated.phase_steps_per_second.items():
        steps.append((f"stated.phase_steps_per_second.{name}", index.get(name, -1), value))
    for key, i, per_second in steps:
        if i < 0:
            names = ", ".join(index)
            yield Finding("throughput", (key, "pretrain.phases"), f"no such phase; phases are {names}")
        elif per_second:
            how = f"{per_second:g} steps/s x {per_step[i]:,} tokens = {short(per_second * per_step[i])} tokens/s"
            rates.append((key, i, per_second * per_step[i], how))
    count, name = f.recipe.hardware.count, f.device.name
    peak = count * _peak(f)
    for key, i, rate, how in rates:
        each = flops.training_per_token(f.recipe.model, phases[i].sequence_length, phases[i].attention)
        mfu = rate * each / peak
        if not MFU_LOW <= mfu <= MFU_HIGH:
            yield Finding(
                "throughput",
                (key, "hardware.device"),
                f"{how} x {short(each)} FLOP = {short(rate * each)}FLOP/s of the {short(peak)}FLOP/s of "
                f"{count} x {name}: MFU {mfu:.1%}, credible is {MFU_LOW:.0%} to {MFU_HIGH:.0%}",
            )
    a, b = stated.throughput_tokens_per_second, stated.throughput_steps_per_second
    if a and b and _differs(a, b * per_step[0]):
        yield Finding(
            "throughput",
            ("stated.throughput_tokens_per_second", "stated.throughput_steps_per_second"),
            f"{b:g} steps/s x {per_step[0]:,} tokens = {short(b * per_step[0])} tokens/s, stated {short(a)}",
        )


def _peak(f: Facts) -> float:
    precision = working_precision(f.recipe, f.recipe.pretrain)
    return f.device.peak.get(precision) or max(f.device.peak.values())


@rule
def days(f: Facts) -> Iterator[Finding]:
    stated, planned = f.recipe.stated.days, sum(f.seconds.values()) / 86400
    if stated and planned and not 1 / DAYS_OFF <= stated / planned <= DAYS_OFF:
        h = f.recipe.hardware
        yield Finding(
            "days",
            ("stated.days", "hardware.mfu"),
            f"at MFU {h.mfu:.0%} {h.count} x {h.device} need {planned:.3g} days, stated {stated:g} "
            f"({stated / planned:.2g} times as many)",
        )
