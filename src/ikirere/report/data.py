"""The report's section on data: what was read, what was dropped and why, and the mixture of each phase of training."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ikirere.report import figures
from ikirere.report.collect import Run, StageRecord
from ikirere.report.section import Figure, ReportSection
from ikirere.report.tables import Table, number, size

LICENCES = 18  # rows of the licence table
SCORES = {
    "language": (("language", "language found"),),
    "quality": (("perplexity", "perplexity, log10"), ("classifier", "probability of good text")),
}


def data(run: Run, stage: StageRecord) -> ReportSection:
    """Domains, steps, mixtures, licences, scores, and samples of what was dropped."""
    section = ReportSection(
        "Data",
        "Held-out documents come from groups that training never saw, and no family of near-duplicates is on both "
        "sides. Every dropped document is in the folder data/ledger with its reason.",
    )
    section.figures += _mixtures(run)
    section.figures += _scores(stage)
    for table in (_domains(stage), _steps(stage), _reasons(stage), _licences(stage)):
        if table.rows:
            section.tables.append(table)
    section.texts += _samples(stage)
    return section


def _domains(stage: StageRecord) -> Table:
    rows = [
        (
            row["domain"],
            number(row["documents"]),
            size(row["bytes"]),
            number(row["train_documents"]),
            number(row["heldout_documents"]),
            f"{100 * row['heldout_bytes'] / row['bytes']:.1f}%" if row["bytes"] else "",
        )
        for row in stage.rows("domains.jsonl")
    ]
    head = ("Domain", "Documents", "Bytes", "Training", "Held out", "Held-out bytes")
    return Table(head, rows, {1, 2, 3, 4, 5}, "Domains")


def _steps(stage: StageRecord) -> Table:
    rows = [
        (
            row["step"],
            number(row["documents_in"]),
            number(row["documents_out"]),
            number(row["dropped"]),
            number(row["changed"]),
            size(row["bytes_out"]),
        )
        for row in stage.rows("steps.jsonl")
    ]
    head = ("Step", "Documents in", "Documents out", "Dropped", "Changed", "Bytes out")
    return Table(head, rows, {1, 2, 3, 4, 5}, "Steps, in order")


def _reasons(stage: StageRecord) -> Table:
    rows = [
        (row["step"], row["reason"], row["action"], number(row["documents"]), size(row["bytes"]))
        for row in stage.rows("dropped.jsonl")
    ]
    return Table(("Step", "Reason", "Action", "Documents", "Bytes"), rows, {3, 4}, "Dropped and changed")


def _licences(stage: StageRecord) -> Table:
    kept: Counter[str] = Counter()
    kept_bytes: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    for row in stage.rows("licences.jsonl"):
        if row["outcome"] == "kept":
            kept[row["licence"]] += row["documents"]
            kept_bytes[row["licence"]] += row["bytes"]
        elif row["outcome"].startswith("licence"):
            gone[row["licence"]] += row["documents"]
    names = sorted({*kept, *gone}, key=lambda name: (-kept_bytes[name], -gone[name], name))
    rows = [(name, number(kept[name]), size(kept_bytes[name]), number(gone[name])) for name in names]
    if len(rows) > LICENCES:
        rest = names[LICENCES:]
        others = (
            f"{len(rest)} others",
            number(sum(kept[n] for n in rest)),
            size(sum(kept_bytes[n] for n in rest)),
            number(sum(gone[n] for n in rest)),
        )
        rows = [*rows[:LICENCES], others]
    return Table(("SPDX licence", "Kept", "Bytes kept", "Dropped for it"), rows, {1, 2, 3}, "Licences")


def _mixtures(run: Run) -> list[Figure]:
    """Training tokens by domain, one cluster per phase."""
    phases = run.recipe.get("pretrain", {}).get("phases") or []
    groups: dict[str, dict[str, float]] = {}
    for phase in phases:
        tokens = phase["steps"] * phase["batch_size"] * phase["sequence_length"]
        whole = sum(phase["mixture"].values()) or 1
        groups[phase["name"]] = {d: tokens * w / whole for d, w in phase["mixture"].items() if w > 0}
    most = max((v for group in groups.values() for v in group.values()), default=0)
    unit, scale = ("billion", 1e9) if most >= 1e9 else ("million", 1e6) if most >= 1e5 else ("thousand", 1e3)
    scaled = {name: {d: v / scale for d, v in group.items()} for name, group in groups.items()}
    if not scaled:
        return []
    return [
        Figure(figures.grouped_bars(scaled, f"{unit} tokens"), "Tokens by domain and phase of pretraining.")
    ]


def _scores(stage: StageRecord) -> list[Figure]:
    found = []
    for step, columns in SCORES.items():
        path = stage.folder / "ledger" / f"{step}-scores.parquet"
        if not path.is_file():
            continue
        import pyarrow.parquet as pq

        names = set(pq.read_schema(path).names)
        for column, label in columns:
            if column not in names:
                continue
            table = pq.read_table(path, columns=["domain", column]).to_pylist()
            if svg := _distribution(table, column, label):
                found.append(Figure(svg, f"Documents by {label.split(',')[0]}, before the filter."))
    return found


def _distribution(rows: Sequence[Mapping[str, Any]], column: str, label: str) -> str | None:
    """Bars of the most frequent words, or a histogram of numbers by domain."""
    import math

    known = [row for row in rows if row[column] is not None]
    if not known:
        return None
    if isinstance(known[0][column], str):
        counts = Counter(row[column] for row in known)
        return figures.horizontal_bars(dict(counts.most_common(12)), "documents")
    series: dict[str, list[float]] = defaultdict(list)
    for row in known:
        value = row[column]
        if "log10" in label:
            value = math.log10(max(value, 1e-9))
        if math.isfinite(value):
            series[row["domain"]].append(value)
    return figures.histogram(series, label) if series else None


def _samples(stage: StageRecord) -> list[dict[str, str]]:
    """One folded text per reason, with the beginnings of some documents."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in stage.rows("samples.jsonl"):
        if row["excerpt"] or row["detail"]:
            grouped[row["step"], row["reason"]].append(row)
    texts = []
    for (step, reason), rows in grouped.items():
        shown = []
        for row in rows:
            detail = json.loads(row["detail"]) if row["detail"] else {}
            about = ", ".join(f"{k} {_short(v)}" for k, v in detail.items())
            shown.append(f"{row['path']}\n  {about}\n  {' '.join(row['excerpt'].split())}")
        texts.append({"title": f"Dropped by {step}: {reason}", "text": "\n\n".join(shown), "fold": "yes"})
    return texts


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)[:80]
