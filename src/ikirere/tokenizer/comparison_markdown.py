"""A comparison as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from ikirere.tokenizer.comparison import Comparison, CriterionResult
from ikirere.tokenizer.report import ALL, COUNTS, RATIOS, USE, Figure, Figures

NOT_MEASURED = "not measured"
NAMES = {
    "bytes_per_token": "bytes per token",
    "tokens_per_line": "tokens per line",
    "tokens_per_word": "tokens per word",
    "single_byte_share": "single-byte tokens",
    "round_trip_failures": "documents not given back",
    "parity_failures": "other ids than the encoder of record",
    "unknown_tokens": "unknown tokens",
    USE: "ids in use",
}
_SHARES = {"single_byte_share", USE}
LINES_OF = "code"  # the one domain whose lines mean something


def render(comparison: Comparison) -> str:
    """The whole report: verdicts first, then figures by domain, then how they were made."""
    plan, documents = comparison.plan, comparison.plan.documents
    names = [arm.name for arm in plan.arms]
    lines = ["# Tokenizers side by side", ""]
    lines += [
        f"{documents['count']:,} documents, {documents['bytes'] / 1e6:.1f} MB (sha256 {documents['sha256'][:12]}). "
        f"Criteria locked before measuring: plan {plan.sha256[:12]}.",
        "",
        *verdicts(comparison.verdicts),
        *domains(comparison.figures, names),
        *arms(comparison),
        f"Brackets: {plan.confidence:.0%} bootstrap interval over documents ({plan.resamples:,} draws, seed "
        f"{plan.seed}); differences are paired. Speed is MB per second of processor time, on one machine, once; it "
        "is no criterion. Every figure follows from rows.jsonl.",
        "",
    ]
    return "\n".join(lines)


def verdicts(judged: Sequence[CriterionResult]) -> list[str]:
    """A table of verdicts; a criterion against another arm shows the difference from it."""
    if not judged:
        return []
    lines = ["| tokenizer | criterion | verdict | value or difference |", "|---|---|---|---|"]
    for one in judged:
        metric = one.criterion.split("/")[0].split(" ")[0]
        shown = one.reason if one.value is None else _shown(metric, one.value, one.low, one.high)
        lines.append(f"| {one.arm} | {one.criterion} | {one.verdict} | {shown} |")
    return [*lines, ""]


def domains(figures: Figures, names: Sequence[str]) -> list[str]:
    """One table of figures per domain, with all documents last where there are several domains."""
    found = sorted({figure.domain for figure in figures.found.values()} - {ALL})
    lines: list[str] = []
    for domain in [*found, ALL] if len(found) != 1 else found:
        columns = [m for m in (*RATIOS, *COUNTS, USE) if m != "tokens_per_line" or domain == LINES_OF]
        # Ids in use are counted over all documents; with one domain those are the same.
        columns = [m for m in columns if m != USE or domain == ALL or len(found) == 1]
        lines += [f"## {domain or 'All documents'}", ""]
        lines += ["| tokenizer | " + " | ".join(NAMES[m] for m in columns) + " |"]
        lines += ["|---" * (len(columns) + 1) + "|"]
        for name in names:
            cells = [_cell(_of(figures, name, metric, domain)) for metric in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def arms(comparison: Comparison) -> list[str]:
    """What each arm is, and what was not run."""
    lines = ["## Arms", "", "| tokenizer | ids | encoder | encoding, MB/s |", "|---|---|---|---|"]
    for arm in comparison.plan.arms:
        if arm.name in comparison.missing:
            lines.append(f"| {arm.name} | NOT RUN: {comparison.missing[arm.name]} | | |")
        else:
            facts = comparison.vocabularies[arm.name]
            rate = comparison.speed[arm.name]
            lines.append(f"| {arm.name} | {facts['vocab_size']:,} | {facts['library']} | {rate:.1f} |")
    return [*lines, ""]


def _of(figures: Figures, name: str, metric: str, domain: str) -> Figure | None:
    where = "" if metric == USE else domain
    return figures.get(name, f"{metric}/{where}" if where else metric)


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return NOT_MEASURED
    return _shown(figure.metric, figure.value, figure.low, figure.high)


def _shown(metric: str, value: float, low: float | None, high: float | None) -> str:
    def number(x: float) -> str:
        if metric in COUNTS:
            return f"{x:,.0f}"
        return f"{x:.2%}" if metric in _SHARES else f"{x:.3f}"

    return (
        number(value) if low is None or high is None else f"{number(value)} ({number(low)} to {number(high)})"
    )
