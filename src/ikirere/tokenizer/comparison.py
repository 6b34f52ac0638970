"""What a comparison of tokenizers is: arms, criteria, the plan that is locked before anything is measured, results."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ikirere.common.files import read_json, write_json
from ikirere.common.intervals import OPERATORS, Verdict
from ikirere.errors import Refused, UserError
from ikirere.tokenizer.report import CONFIDENCE, METRICS, RESAMPLES, Figures

PLAN, ROWS, SPEED, REPORT, PAGE = "plan.json", "rows.jsonl", "speed.jsonl", "report.json", "report.md"
_CRITERION = re.compile(r"\s*([a-z_]+)(?:/(\S+))?\s*(>=|<=|==|>|<)\s*([^\s=].*?)\s*")


@dataclass(frozen=True)
class Document:
    """A text that is measured; `domain` groups figures (code, text, ...)."""

    id: str
    domain: str
    text: str


@dataclass(frozen=True)
class Arm:
    """What is compared. Candidates are judged; the others are there to compare with."""

    name: str
    spec: str  # what `read_vocabulary` is given
    candidate: bool
    sha256: str | None = None  # of a candidate's file, so that a plan is for this one and not its successor


@dataclass(frozen=True)
class Criterion:
    """`metric` (with /domain, or over all documents) of a candidate against a number or another arm's."""

    metric: str
    op: str
    target: float | str

    @classmethod
    def parse(cls, text: str) -> Criterion:
        """`bytes_per_token/code >= 4.1` or `tokens_per_line/code <= llama-3`. Raises UserError."""
        found = _CRITERION.fullmatch(text)
        if not found or found[1] not in METRICS:
            hint = "; speed differs from machine to machine and is only reported" if "mb_per" in text else ""
            raise UserError(
                f"criterion {text!r}: give METRIC[/DOMAIN] OP TARGET with a metric of {', '.join(METRICS)}, "
                f"one of {' '.join(OPERATORS)}, and a number or an arm's name{hint}"
            )
        try:
            number = float(found[4])
        except ValueError:
            number = math.nan
        target = number if math.isfinite(number) else found[4]
        return cls(f"{found[1]}/{found[2]}" if found[2] else found[1], found[3], target)

    def __str__(self) -> str:
        target = self.target if isinstance(self.target, str) else f"{self.target:g}"
        return f"{self.metric} {self.op} {target}"


@dataclass(frozen=True)
class Plan:
    """All that decides a comparison, fixed before it is measured."""

    arms: tuple[Arm, ...]
    criteria: tuple[Criterion, ...]
    documents: Mapping[str, Any]  # count, bytes, sha256
    seed: int = 0
    resamples: int = RESAMPLES
    confidence: float = CONFIDENCE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def sha256(self) -> str:
        return content_hash(self.to_json())

    def lock(self, folder: Path) -> None:
        """Write plan.json, or find the same plan there. Raises Refused where another one was locked."""
        file = folder / PLAN
        if file.exists():
            locked = read_json(file)
            if not isinstance(locked, dict) or locked.get("sha256") != content_hash(locked.get("plan")):
                raise Refused(f"{file}: was altered after it was locked; give another --out")
            here = json.loads(json.dumps(self.to_json()))
            if differ := [key for key in here if here[key] != locked["plan"].get(key)]:
                raise Refused(
                    f"{file}: was locked with other {', '.join(differ)}; criteria are written before numbers, so "
                    "give another --out for another plan"
                )
        elif left := [name for name in (ROWS, SPEED, REPORT, PAGE) if (folder / name).exists()]:
            raise Refused(f"{folder}: holds {left[0]} and no {PLAN}; give another --out")
        else:
            write_json(file, {"plan": self.to_json(), "sha256": self.sha256})
        report = folder / REPORT
        if report.exists() and read_json(report).get("plan_sha256") != self.sha256:
            raise Refused(f"{report}: was made under another plan; give another --out")


@dataclass(frozen=True)
class CriterionResult:
    """A criterion on one candidate. value, low, high: of the figure, or of its difference from the target arm."""

    arm: str
    criterion: str
    verdict: Verdict
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass
class Comparison:
    """What came out. `figures` has `get` and `difference`; speed is MB per processor second, by arm."""

    plan: Plan
    figures: Figures
    vocabularies: Mapping[str, Mapping[str, Any]]  # arm -> vocab_size, library, sha256
    missing: Mapping[str, str]  # arm -> why it was not measured
    speed: Mapping[str, float]
    verdicts: list[CriterionResult] = field(default_factory=list)

    @property
    def missed(self) -> bool:
        return any(judged.verdict == "MISS" for judged in self.verdicts)


def default_criteria(baseline: str | None, domains: Iterable[str]) -> tuple[Criterion, ...]:
    """At least the baseline's compression (of code, where there is code), and nothing lost."""
    where = "/code" if "code" in set(domains) else ""
    against = (
        (
            Criterion(f"bytes_per_token{where}", ">=", baseline),
            Criterion(f"tokens_per_line{where}", "<=", baseline),
        )
        if baseline
        else ()
    )
    zero = ("round_trip_failures", "parity_failures", "unknown_tokens")
    return (*against, *(Criterion(name, "==", 0.0) for name in zero))


def content_hash(value: Any) -> str:
    """Hex sha256 of a value as JSON, without the spaces of `common.files.canonical_json`: the hashes in locked plans are
    of this form."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
