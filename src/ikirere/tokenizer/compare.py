"""Tokenizers side by side, judged by criteria that were written before any number was.

    plan.json     arms, criteria, documents and seed with their hash; written first, and a later run has to be equal
    rows.jsonl    counts of each document for each arm (report.count_document); every figure follows from them
    speed.jsonl   bytes and processor seconds of each batch that was encoded
    report.json   figures, verdicts, versions
    report.md     the same for people

| verdict | when |
|---|---|
| NOT RUN | an arm or a figure that the criterion needs is not there; the reason is given |
| INSIDE NOISE | the interval (of the figure, or of the paired difference from another arm) holds the target |
| PASS, MISS | otherwise, by comparison |
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ikirere.errors import Refused, UserError
from ikirere.tokenizer.comparison_markdown import render
from ikirere.tokenizer.report import CONFIDENCE, METRICS, RESAMPLES, TOGETHER, Figures, count_document
from ikirere.tokenizer.vocabularies import Vocabulary, read_vocabulary

PLAN, ROWS, SPEED, REPORT, PAGE = "plan.json", "rows.jsonl", "speed.jsonl", "report.json", "report.md"
Verdict = Literal["PASS", "MISS", "INSIDE NOISE", "NOT RUN"]
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
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
        return _hash(self.to_json())

    def lock(self, folder: Path) -> None:
        """Write plan.json, or find the same plan there. Raises Refused where another one was locked."""
        file = folder / PLAN
        if file.exists():
            locked = _read(file)
            if not isinstance(locked, dict) or locked.get("sha256") != _hash(locked.get("plan")):
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
            _write(file, _pretty({"plan": self.to_json(), "sha256": self.sha256}))
        report = folder / REPORT
        if report.exists() and _read(report).get("plan_sha256") != self.sha256:
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


def compare(
    folder: Path,
    arms: Sequence[Arm],
    documents: Sequence[Document],
    criteria: Sequence[Criterion],
    seed: int = 0,
    resamples: int = RESAMPLES,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Measure all arms on all documents and write the report in `folder`.

    A candidate that cannot be read raises UserError; another arm that cannot be read is NOT RUN with the reason.
    Raises UserError for no document or arms and criteria that do not fit, Refused where the folder has another plan.
    """
    chosen = [document for document in documents if document.text]
    _check(arms, chosen, criteria)
    vocabularies, missing = _read_arms(arms, say)
    known = tuple(
        replace(arm, sha256=vocabularies[arm.name].sha256) if arm.candidate else arm for arm in arms
    )
    plan = Plan(known, tuple(criteria), fingerprint(chosen), seed, resamples)
    folder.mkdir(parents=True, exist_ok=True)
    plan.lock(folder)
    say(f"plan {plan.sha256[:12]} locked: {len(criteria)} criteria, {len(chosen)} documents")
    rows: dict[str, list[dict[str, Any]]] = {}
    timed: list[dict[str, Any]] = []
    for name, vocabulary in vocabularies.items():
        rows[name] = _count(vocabulary, chosen, timed)
        say(f"{name}: {sum(row['tokens'] for row in rows[name]):,} tokens")
    _write(folder / ROWS, _lines(row for arm in rows.values() for row in arm))
    _write(folder / SPEED, _lines(timed))
    comparison = Comparison(
        plan,
        Figures(rows, {name: v.vocab_size for name, v in vocabularies.items()}, seed, resamples),
        {
            name: {"vocab_size": v.vocab_size, "library": v.library, "sha256": v.sha256}
            for name, v in vocabularies.items()
        },
        missing,
        {name: _rate([row for row in timed if row["arm"] == name]) for name in vocabularies},
    )
    comparison.verdicts = [
        judge(comparison, criterion, arm.name)
        for arm in arms
        if arm.candidate
        for criterion in criteria
        if criterion.target != arm.name
    ]
    _write(folder / REPORT, _pretty(_summary(comparison, folder)))
    _write(folder / PAGE, render(comparison))
    return comparison


def fingerprint(documents: Iterable[Document]) -> dict[str, Any]:
    """Number, bytes and hash of documents: of their ids, domains and texts, in order."""
    digest, count, size = hashlib.sha256(), 0, 0
    for document in documents:
        data = document.text.encode()
        digest.update(_hash([document.id, document.domain, hashlib.sha256(data).hexdigest()]).encode())
        count, size = count + 1, size + len(data)
    return {"count": count, "bytes": size, "sha256": digest.hexdigest()}


def judge(comparison: Comparison, criterion: Criterion, arm: str) -> CriterionResult:
    """The verdict on one candidate."""
    text, figures = str(criterion), comparison.figures
    if isinstance(criterion.target, str):
        if criterion.target in comparison.missing:
            reason = f"{criterion.target}: {comparison.missing[criterion.target]}"
            return CriterionResult(arm, text, "NOT RUN", reason=reason)
        found, target = figures.difference(arm, criterion.target, criterion.metric), 0.0
    else:
        found, target = figures.get(arm, criterion.metric), criterion.target
    if found is None:
        both = f" for {arm} and {criterion.target}" if isinstance(criterion.target, str) else f" for {arm}"
        return CriterionResult(arm, text, "NOT RUN", reason=f"{criterion.metric} was not measured{both}")
    result = verdict(found.value, found.low, found.high, criterion.op, target)
    return CriterionResult(arm, text, result, found.value, found.low, found.high)


def verdict(value: float, low: float | None, high: float | None, op: str, target: float) -> Verdict:
    """As the programme's gates judge: a target inside a band that has a width is INSIDE NOISE."""
    if low is not None and high is not None and low < high and low <= target <= high:
        return "INSIDE NOISE"
    return "PASS" if OPERATORS[op](value, target) else "MISS"


def _check(arms: Sequence[Arm], documents: Sequence[Document], criteria: Sequence[Criterion]) -> None:
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two arms are called {twice[0]}; give names as NAME=PATH")
    if not any(arm.candidate for arm in arms):
        raise UserError("no tokenizer to judge; give at least one")
    if not documents:
        raise UserError("no document with text to measure on; give a held-out parquet, a folder or a glob")
    for criterion in criteria:
        if isinstance(criterion.target, str) and criterion.target not in names:
            raise UserError(
                f"criterion '{criterion}': {criterion.target} is no number and no arm; arms are {', '.join(names)}"
            )


def _read_arms(
    arms: Sequence[Arm], say: Callable[[str], None]
) -> tuple[dict[str, Vocabulary], dict[str, str]]:
    vocabularies: dict[str, Vocabulary] = {}
    missing: dict[str, str] = {}
    for arm in arms:
        try:
            vocabularies[arm.name] = read_vocabulary(arm.spec, arm.name)
        except UserError as error:
            if arm.candidate:
                raise
            missing[arm.name] = str(error)
            say(f"{arm.name}: not run ({error})")
    return vocabularies, missing


def _count(
    vocabulary: Vocabulary, documents: Sequence[Document], timed: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of one arm; `timed` gets one row per batch."""
    rows: list[dict[str, Any]] = []
    seen: set[int] = set()
    for start in range(0, len(documents), TOGETHER):
        batch = documents[start : start + TOGETHER]
        texts = [document.text for document in batch]
        begun = time.process_time()
        encoded = vocabulary.encode_batch(texts)
        spent = time.process_time() - begun
        size = sum(len(text.encode()) for text in texts)
        timed.append({"arm": vocabulary.name, "bytes": size, "cpu_seconds": spent})
        for document, ids in zip(batch, encoded):
            counts = count_document(document.text, ids, vocabulary, seen)
            rows.append({"arm": vocabulary.name, "id": document.id, "domain": document.domain, **counts})
    return rows


def _rate(timed: Sequence[Mapping[str, Any]]) -> float:
    """MB (10^6 bytes) per second of processor time, all threads counted."""
    return sum(r["bytes"] for r in timed) / 1e6 / max(sum(r["cpu_seconds"] for r in timed), 1e-9)


def _summary(comparison: Comparison, folder: Path) -> dict[str, Any]:
    return {
        "plan_sha256": comparison.plan.sha256,
        "rows_sha256": hashlib.sha256((folder / ROWS).read_bytes()).hexdigest(),
        "vocabularies": comparison.vocabularies,
        "not_run": comparison.missing,
        "figures": [asdict(figure) | {"name": figure.name} for figure in comparison.figures.found.values()],
        "encode_mb_per_cpu_second": comparison.speed,
        "verdicts": [asdict(judged) for judged in comparison.verdicts],
        "environment": {"python": platform.python_version(), "machine": platform.machine()},
    }


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); give another --out") from None


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f"{file.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
