"""Rules about what the recipe asks for: batches, memory, latency, precision, gates, mixtures, leaks.

Shapes and lengths that cannot be are refused by the schema already.
"""

from __future__ import annotations

from collections.abc import Iterator

from ikirere.recipe.planner import constants
from ikirere.recipe.planner.contradictions import Facts, Finding, gb, rule, short
from ikirere.recipe.planner.name_overlap import find_leaks
from ikirere.recipe.sections import Training

GGUF_WIDTH = 256  # k-quants work on blocks of 256 weights of a row


@rule
def gguf_widths(f: Facts) -> Iterator[Finding]:
    targets = [t for t in f.recipe.serve.export if t.startswith("gguf")]
    m = f.recipe.model
    widths = {
        "model.hidden_size": m.hidden_size,
        "model.intermediate_size": m.intermediate_size,
        "model.num_attention_heads": m.num_attention_heads * m.head_size,
    }
    for key, width in widths.items() if targets else ():
        if width % GGUF_WIDTH:
            heads_of = f" ({m.num_attention_heads} x {m.head_size})" if key.endswith("heads") else ""
            yield Finding(
                "gguf_widths",
                (key, "serve.export"),
                f"{width}{heads_of} = {width / GGUF_WIDTH:.3g} x {GGUF_WIDTH}: {', '.join(targets)} packs "
                f"blocks of {GGUF_WIDTH} weights and falls back to wider types",
            )


@rule
def leaks(f: Facts) -> Iterator[Finding]:
    for leak in find_leaks(f.recipe):
        yield Finding(
            "leaks",
            (leak.key, "data.evaluation_sets"),
            f"training source {leak.source_name!r} and evaluation set {leak.evaluation!r}: {leak.why}",
            "contradiction" if leak.certain else "note",
        )


@rule
def batches(f: Facts) -> Iterator[Finding]:
    count = f.recipe.hardware.count
    for i, p in enumerate(f.recipe.pretrain.phases):
        key = f"pretrain.phases.{i}.batch_size"
        if count % p.context_parallel:
            yield Finding(
                "batches",
                (f"pretrain.phases.{i}.context_parallel", "hardware.count"),
                f"{count} devices do not part into groups of {p.context_parallel}",
            )
            continue
        groups = count // p.context_parallel
        if p.batch_size % groups:
            yield Finding(
                "batches",
                (key, "hardware.count"),
                f"{p.batch_size} sequences over {groups} groups of devices = {p.batch_size / groups:.3g} each",
            )


@rule
def fits(f: Facts) -> Iterator[Finding]:
    usable = f.device.memory * (1 - constants.HEADROOM)
    worst = max(f.memory, key=lambda m: m.total)
    if worst.total > usable:
        yield Finding(
            "fits",
            ("hardware.device", worst.where.replace("pretrain/", "pretrain.phases.")),
            f"weights {gb(worst.weights)} + gradients {gb(worst.gradients)} + optimiser {gb(worst.optimizer)} + "
            f"activations {gb(worst.activations)} + logits {gb(worst.logits)} + rest "
            f"{gb(worst.process)} = {gb(worst.total)} GB, {f.device.name} has "
            f"{gb(f.device.memory)} GB",
        )
    served = f.decode.weights + f.cache.total
    if served > usable * f.recipe.hardware.count:
        yield Finding(
            "fits",
            ("serve.max_num_seqs", "hardware.device"),
            f"weights {gb(f.decode.weights)} + {f.cache.max_num_seqs} caches of "
            f"{gb(f.cache.per_sequence)} = {gb(served)} GB, {f.recipe.hardware.count} x {f.device.name} have "
            f"{gb(f.device.memory * f.recipe.hardware.count)} GB",
        )


@rule
def latency(f: Facts) -> Iterator[Finding]:
    wanted, least = f.recipe.serve.latency_p95_ms, f.decode.seconds * 1e3
    if wanted is not None and least > wanted:
        yield Finding(
            "latency",
            ("serve.latency_p95_ms", "hardware.device"),
            f"a token reads weights {gb(f.decode.weights)} + states {gb(f.decode.states)} GB at "
            f"{f.recipe.hardware.count} x {gb(f.device.bandwidth)} GB/s: at least {least:.3g} ms, wanted {wanted:g} ms",
        )


@rule
def planned(f: Facts) -> Iterator[Finding]:
    for stage in f.recipe.planned:
        if f.built is not None and stage in f.built:
            yield Finding(
                "planned",
                (f"planned.{stage}", "stages"),
                "the stage is built and reads its settings elsewhere; nothing reads these",
            )


@rule
def precision(f: Facts) -> Iterator[Finding]:
    r = f.recipe
    sections: list[tuple[str, Training | None]] = [("pretrain", r.pretrain), ("sft", r.sft), ("dpo", r.dpo)]
    asked = {"hardware.precision": r.hardware.precision}
    asked |= {f"{n}.precision": s.precision for n, s in sections if s and s.precision != "auto"}
    for key, wanted in asked.items():
        if wanted not in f.device.peak and not (f.device.is_cpu and key == "hardware.precision"):
            yield Finding(
                "precision",
                (key, "hardware.device"),
                f"{f.device.name} has no {wanted}; it has {', '.join(f.device.peak)}",
            )


# Metrics that are shares, by the part of the name before the slash.
_PROPORTIONS = frozenset(
    [
        "answer",
        "right_tool",
        "right_arguments",
        "no_tool_when_not_needed",
        "answer_without_tool",
        "round_trip",
        "forged",
        "benchmark",
        "needle",
        "win_rate",
    ]
)


@rule
def gate_targets(f: Facts) -> Iterator[Finding]:
    for stage, gates in f.recipe.gates.items():
        for i, gate in enumerate(gates):
            key = f"gates.{stage}.{i}.target"
            metric = gate.metric.partition("@")[0]
            if metric.startswith("bytes_per_token") and gate.op in ("<=", "<") and gate.target < 2:
                yield Finding(
                    "gate_targets",
                    (key, "tokenizer.vocab_size"),
                    f"at most {gate.target:g} bytes per token forbids compression: {f.recipe.tokenizer.vocab_size:,} "
                    "ids are there to reach 3 to 4.5 bytes per token, bytes alone give 1",
                )
            if metric.partition("/")[0] in _PROPORTIONS and not 0 <= gate.target <= 1:
                yield Finding(
                    "gate_targets",
                    (key, f"gates.{stage}.{i}.metric"),
                    f"{gate.metric} is a proportion from 0 to 1, the target is {gate.target:g}; "
                    f"{gate.target:g}% is {gate.target / 100:g}",
                )


@rule
def mixtures(f: Facts) -> Iterator[Finding]:
    r = f.recipe
    named = {f"pretrain.phases.{i}.mixture": p.mixture for i, p in enumerate(r.pretrain.phases)}
    named |= {"tokenizer.mixture": r.tokenizer.mixture} if r.tokenizer.mixture else {}
    named |= {"sft.mixture": r.sft.mixture} if r.sft else {}
    for key, mixture in named.items():
        total = sum(mixture.values())
        if total == 0:
            yield Finding("mixtures", (key, key), "all weights are 0: nothing to draw from")
        elif abs(total - 1) > 1e-3:
            yield Finding(
                "mixtures",
                (key, key),
                f"{' + '.join(f'{v:g}' for v in mixture.values())} = {total:.4g}; shares are taken of the sum",
                "note",
            )


@rule
def empty_rows(f: Facts) -> Iterator[Finding]:
    rows, size = f.recipe.model.vocab_size, f.recipe.tokenizer.vocab_size
    if rows > size:
        yield Finding(
            "empty_rows",
            ("model.vocab_size", "tokenizer.vocab_size"),
            f"{rows:,} rows, {size:,} ids: {rows - size:,} rows are padding "
            f"({short((rows - size) * f.recipe.model.hidden_size)} parameters)",
            "note",
        )
