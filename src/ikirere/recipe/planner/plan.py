"""From a recipe to what it means: size, tokens, operations, memory, hours, contradictions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

# The first and the last are imported for their rules, which register themselves.
from ikirere.recipe.planner import feasibility, flops, stated_checks  # noqa: F401
from ikirere.recipe.planner.contradictions import RULES, Facts, Finding
from ikirere.recipe.planner.counts import Counts, count
from ikirere.recipe.planner.decode import Decode
from ikirere.recipe.planner.hardware import Device, find_device
from ikirere.recipe.planner.memory import Cache, Memory, cache_memory, training_memory, working_precision
from ikirere.recipe.schema import Recipe


def _ordered(found: list[Finding]) -> list[Finding]:
    """Contradictions first, notes last."""
    return sorted(found, key=lambda finding: ("contradiction", "refusal", "note").index(finding.severity))


def find(facts: Facts) -> list[Finding]:
    """All findings, contradictions first."""
    found = [finding for one in RULES.values() for finding in one(facts)]
    return _ordered(found)


@dataclass(frozen=True)
class StagePlan:
    """A training stage or a phase of pretraining."""

    name: str
    tokens: float
    flops: float
    seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Plan:
    """All that is known of a recipe before it runs. Sizes in bytes, times in seconds."""

    name: str
    description: str
    counts: Counts
    tokens: int
    tokens_per_parameter: float
    phases: tuple[StagePlan, ...]
    stages: tuple[StagePlan, ...]
    device: Device
    devices: int
    precision: str
    mfu: float
    memory: tuple[Memory, ...]
    cache: Cache
    findings: tuple[Finding, ...]
    stage_names: tuple[str, ...]
    decode: Decode
    latency_p95_ms: float | None  # wanted
    stated_notes: tuple[str, ...]
    planned: dict[str, dict[str, Any]]  # settings of stages that are not built

    @property
    def contradictions(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "contradiction")

    @property
    def refusals(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "refusal")

    @property
    def notes(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "note")

    @property
    def training_flops(self) -> float:
        return sum(s.flops for s in self.stages)

    @property
    def hours(self) -> float:
        return sum(s.seconds for s in self.stages) / 3600

    @property
    def peak_memory(self) -> Memory:
        """The training stage or phase that needs most on one device."""
        return max(self.memory, key=lambda m: m.total)

    def to_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes."""
        return {
            "name": self.name,
            "description": self.description,
            "stages": list(self.stage_names),
            "parameters": {
                "total": self.counts.total,
                "embedding": self.counts.embedding,
                "embedding_share": self.counts.embedding_share,
                "layers": self.counts.layers,
                "matmul": self.counts.matmul,
                "counted_by": "formula, equal to the built model",
            },
            "tokens": self.tokens,
            "tokens_per_parameter": self.tokens_per_parameter,
            "training_flops": self.training_flops,
            "phases": [asdict(p) for p in self.phases],
            "training": [asdict(s) for s in self.stages],
            "hours": self.hours,
            "hardware": {
                "device": self.device.name,
                "count": self.devices,
                "precision": self.precision,
                "mfu": self.mfu,
                "memory": self.device.memory,
                "peak_flops": self.device.peak.get(self.precision),
            },
            "memory": [{**asdict(m), "total": m.total} for m in self.memory],
            "peak_memory": {"where": self.peak_memory.where, "total": self.peak_memory.total},
            "kv_cache": {**asdict(self.cache), "total": self.cache.total},
            "decode": {**asdict(self.decode), "latency_p95_ms": self.latency_p95_ms},
            "stated_notes": list(self.stated_notes),
            "planned_not_built": self.planned,
            "contradictions": [_finding(f) for f in self.contradictions],
            "notes": [_finding(f) for f in self.notes],
        }


def _finding(f: Finding) -> dict[str, Any]:
    return {"rule": f.rule, "keys": list(f.keys), "text": f.text}


def plan(recipe: Recipe, refused: Iterable[Finding] = (), built: frozenset[str] | None = None) -> Plan:
    """Plan a recipe. Raises UserError for a device that is not in the table.

    refused: all that would refuse a run, beside what follows from the recipe alone. built: the stages that this
    code base has, where known: settings of others are shown as planned.
    """
    device = find_device(recipe.hardware.device)
    patterns = tuple(p.attention for p in recipe.pretrain.phases if p.attention)
    counts = count(recipe.model, patterns)
    memory = tuple(training_memory(recipe, device))
    cache = cache_memory(recipe)
    precision = working_precision(recipe, recipe.pretrain)
    peak = device.peak.get(precision) or max(device.peak.values())
    rate = recipe.hardware.count * peak * recipe.hardware.mfu

    def timed(work: flops.Work) -> StagePlan:
        seconds = work.flops / rate if rate else float("inf")
        return StagePlan(
            work.name, work.tokens, work.flops, seconds, work.tokens / seconds if seconds else 0.0
        )

    stages = tuple(timed(w) for w in flops.stages(recipe))
    facts = Facts(recipe, counts, device, memory, cache, {s.name: s.seconds for s in stages}, built)
    missing = recipe.planned if built is None else [name for name in recipe.stages if name not in built]
    return Plan(
        name=recipe.name,
        description=recipe.description,
        counts=counts,
        tokens=recipe.pretrain.tokens,
        tokens_per_parameter=recipe.pretrain.tokens / counts.total,
        phases=tuple(timed(w) for w in flops.phases(recipe)),
        stages=stages,
        device=device,
        devices=recipe.hardware.count,
        precision=precision,
        mfu=recipe.hardware.mfu,
        memory=memory,
        cache=cache,
        findings=tuple(_ordered([*find(facts), *refused])),
        stage_names=recipe.stages,
        decode=facts.decode,
        latency_p95_ms=recipe.serve.latency_p95_ms,
        stated_notes=recipe.stated.notes,
        planned={name: recipe.planned.get(name, {}) for name in missing},
    )
