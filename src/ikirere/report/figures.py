"""Figures of the report: matplotlib, drawn to SVG text so that one HTML file holds them.

Every figure takes rows that were read from the run folder and nothing else.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

INK, MUTED, GRID = "#1f2937", "#6b7280", "#e5e7eb"
BLUE, TEAL, AMBER, RED, VIOLET = "#2563eb", "#0d9488", "#d97706", "#dc2626", "#7c3aed"
PALETTE = (BLUE, TEAL, AMBER, VIOLET, RED, MUTED)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: the same run gives the same bytes. Text stays text: small and searchable.
    with matplotlib.rc_context(
        {"svg.hashsalt": "ikirere", "svg.fonttype": "none", "font.family": "sans-serif"}
    ):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, color=MUTED, fontsize=8)
    axes.set_ylabel(y, color=MUTED, fontsize=8)


def _smooth(values: Sequence[float], decay: float) -> list[float]:
    """Exponential moving average with bias correction."""
    out, mean = [], 0.0
    for i, value in enumerate(values, 1):
        mean = decay * mean + (1 - decay) * value
        out.append(mean / (1 - decay**i))
    return out


def loss_curve(rows: Sequence[Mapping[str, Any]], title: str = "loss, nats per token") -> str:
    """Loss against training tokens, raw and smoothed, over the learning rate's shape. A dashed line is where settings
    were changed in a training that continued."""
    figure, axes = _axes(6.4, 2.7)
    for row, following in pairwise(rows):
        if "go_on" in following and "tokens" in row:
            axes.axvline(row["tokens"] / 1e6, color=BLUE, linestyle="--", linewidth=0.8)
    rows = [row for row in rows if "loss" in row]
    x = [row["tokens"] / 1e6 for row in rows]
    loss = [row["loss"] for row in rows]
    rates = [row["lr"] for row in rows]
    twin = axes.twinx()
    twin.fill_between(x, rates, color=AMBER, alpha=0.10, linewidth=0)
    twin.set_ylim(0, max(rates) * 1.05 or 1)
    twin.axis("off")
    axes.plot(x, loss, color=BLUE, alpha=0.25, linewidth=0.8)
    # About twenty independent points, whatever the number of rows.
    axes.plot(x, _smooth(loss, max(0.0, 1 - 20 / len(loss))), color=BLUE, linewidth=1.6)
    axes.set_xlim(left=0)
    _label(axes, "million tokens (shaded: learning rate)", title)
    return _svg(figure)


def grouped_bars(
    groups: Mapping[str, Mapping[str, float]],
    y: str,
    bands: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> str:
    """One cluster per group, one bar per series; `bands` are (low, high) of the same keys."""
    figure, axes = _axes(6.4, 2.7)
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = min(0.28, 0.8 / max(1, len(series)))
    for s, name in enumerate(series):
        positions = [g for g, group in enumerate(groups.values()) if name in group]
        values = [group[name] for group in groups.values() if name in group]
        x = [position + (s - (len(series) - 1) / 2) * width for position in positions]
        axes.bar(x, values, width * 0.92, color=PALETTE[s % len(PALETTE)], label=name)
        for middle, value in zip(x, values):
            axes.text(middle, value, f" {value:.2f}", ha="center", va="bottom", fontsize=7, color=INK)
        for g, group in enumerate(groups):
            if bands and name in bands.get(group, {}):
                low, high = bands[group][name]
                middle = g + (s - (len(series) - 1) / 2) * width
                axes.plot([middle, middle], [low, high], color=INK, linewidth=1)
    axes.set_xlim(-0.75, len(groups) - 0.25)
    axes.set_xticks(range(len(groups)), list(groups), color=INK)
    axes.set_ylim(top=max((v for g in groups.values() for v in g.values()), default=1) * 1.18 or 1)
    if len(series) > 1:
        axes.legend(
            fontsize=7, frameon=False, ncols=len(series), loc="upper center", bbox_to_anchor=(0.5, 1.17)
        )
    _label(axes, "", y)
    return _svg(figure)


def horizontal_bars(values: Mapping[str, float], x: str) -> str:
    """Labelled horizontal bars, largest first."""
    ordered = sorted(values.items(), key=lambda item: item[1])
    figure, axes = _axes(6.4, 0.5 + 0.26 * len(ordered))
    axes.grid(axis="y", visible=False)
    axes.barh([name for name, _ in ordered], [value for _, value in ordered], color=BLUE, height=0.66)
    for i, (_, value) in enumerate(ordered):
        axes.text(value, i, f" {value:,.1f}", va="center", fontsize=7, color=INK)
    axes.set_xlim(right=max((v for v in values.values()), default=1) * 1.15 or 1)
    axes.tick_params(axis="y", labelcolor=INK)
    _label(axes, x, "")
    return _svg(figure)


def histogram(series: Mapping[str, Sequence[float]], x: str, bins: int = 30) -> str:
    """Outlines of several samples over shared bins, each as its share of the sample."""
    import numpy as np

    figure, axes = _axes(6.4, 2.7)
    everything = np.concatenate([np.asarray(values, dtype=float) for values in series.values()])
    low, high = np.quantile(everything, [0.002, 0.998])
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    for s, (name, values) in enumerate(series.items()):
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        axes.stairs(
            counts / max(1, len(values)), edges, color=PALETTE[s % len(PALETTE)], label=name, linewidth=1.3
        )
    axes.legend(fontsize=7, frameon=False)
    _label(axes, x, "share of documents")
    return _svg(figure)
