"""Tokenizers compared, and judged by criteria that are fixed before anything is measured.

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
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ikirere.common.files import file_sha256, write_json, write_rows, write_text
from ikirere.common.intervals import verdict
from ikirere.errors import UserError
from ikirere.tokenizer.comparison import (
    PAGE,
    REPORT,
    ROWS,
    SPEED,
    Arm,
    Comparison,
    Criterion,
    CriterionResult,
    Document,
    Plan,
    content_hash,
)
from ikirere.tokenizer.comparison_markdown import render
from ikirere.tokenizer.report import RESAMPLES, TOGETHER, Figures, count_document
from ikirere.tokenizer.vocabularies import read_vocabulary
from ikirere.tokenizer.vocabulary import Vocabulary


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
    write_rows(folder / ROWS, (row for arm in rows.values() for row in arm))
    write_rows(folder / SPEED, timed)
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
    write_json(folder / REPORT, _summary(comparison, folder))
    write_text(folder / PAGE, render(comparison))
    return comparison


def fingerprint(documents: Iterable[Document]) -> dict[str, Any]:
    """Number, bytes and hash of documents: of their ids, domains and texts, in order."""
    digest, count, size = hashlib.sha256(), 0, 0
    for document in documents:
        data = document.text.encode()
        digest.update(content_hash([document.id, document.domain, hashlib.sha256(data).hexdigest()]).encode())
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
        "rows_sha256": file_sha256(folder / ROWS),
        "vocabularies": comparison.vocabularies,
        "not_run": comparison.missing,
        "figures": [asdict(figure) | {"name": figure.name} for figure in comparison.figures.found.values()],
        "encode_mb_per_cpu_second": comparison.speed,
        "verdicts": [asdict(judged) for judged in comparison.verdicts],
        "environment": {"python": platform.python_version(), "machine": platform.machine()},
    }
