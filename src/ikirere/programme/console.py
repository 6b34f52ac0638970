"""The tables that people see: state of a run, gates, and what to do next."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ikirere.programme import result
from ikirere.programme.progress import clock
from ikirere.programme.status import status

COLOURS = {"PASS": "green", "MISS": "red", "INSIDE NOISE": "yellow", "NOT RUN": "dim"}


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _band(gate: dict[str, Any]) -> str:
    return "" if gate["low"] is None else f"{gate['low']:.4g} to {gate['high']:.4g}"


def stages_table(shown: dict[str, Any], folder: Path) -> Table:
    """Stage, state, time and peak memory."""
    mark = " (rehearsal)" if shown.get("rehearsal") else ""
    table = Table(title=f"{shown['run']}{mark}", title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("seconds", justify="right")
    table.add_column("peak memory", justify="right")
    total = 0.0
    for stage in shown["stages"]:
        seconds, memory = "", ""
        if stage["seconds"] is not None:
            total += stage["seconds"]
            seconds = f"{stage['seconds']:.1f}"
            memory = f"{result.read(folder / stage['name'])['peak_rss_bytes'] / 1e9:.2f} GB"
        table.add_row(stage["name"], stage["state"], seconds, memory)
    table.add_section()
    table.add_row("all", clock(total), f"{total:.1f}", "")
    return table


def gates_table(shown: dict[str, Any]) -> Table | None:
    """All gates with measured value, noise band and verdict; None where the recipe has none."""
    rehearsal = bool(shown.get("rehearsal"))
    title = "gates (REHEARSAL: shrunk model, targets of the full one)" if rehearsal else "gates"
    table = Table(title=title, title_justify="left")
    for name in ("stage", "gate", "metric", "target"):
        table.add_column(name)
    table.add_column("measured", justify="right")
    table.add_column("noise band")
    table.add_column("verdict")
    for stage in shown["stages"]:
        for gate in stage["gates"]:
            verdict = gate["verdict"] + (" (rehearsal)" if rehearsal and gate["verdict"] != "NOT RUN" else "")
            table.add_row(
                stage["name"], gate["name"], gate["metric"], f"{gate['op']} {gate['target']:g}",
                _number(gate["value"]), _band(gate), f"[{COLOURS[gate['verdict']]}]{verdict}",
            )  # fmt: skip
    return table if table.row_count else None


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _files(folder: Path, shown: dict[str, Any]) -> list[Path]:
    found: list[Path] = []
    for stage in shown["stages"]:
        if stage["state"] == "done":
            rows = result.read(folder / stage["name"])["artifacts"]
            found.extend(folder / stage["name"] / row["path"] for row in rows)
    return found


def show_status(folder: Path, console: Console) -> None:
    """Stages and gates of a run."""
    shown = status(folder)
    console.print(stages_table(shown, folder))
    if (gates := gates_table(shown)) is not None:
        console.print(gates)


def report_pages(folder: Path) -> list[str]:
    """HTML pages that stages of the run made, as paths from here."""
    return [_short(path) for path in _files(folder, status(folder)) if path.suffix == ".html"]


def show_end(folder: Path, console: Console) -> None:
    """What stands at the end of `run`: both tables, the report, and how to talk to the model."""
    show_status(folder, console)
    for page in report_pages(folder):
        console.print(f"report: {page}", markup=False)
    files = _files(folder, status(folder))
    if any(path.name == "config.json" and path.parent.name == "model" and _talks(path) for path in files):
        console.print(f"chat:   ikirere chat {_short(folder)}", markup=False)
        console.print(f"serve:  ikirere serve {_short(folder)}", markup=False)


def _talks(config: Path) -> bool:
    """Whether a model's config.json names a class that continues text."""
    named = json.loads(config.read_bytes()).get("architectures") or []
    return any(str(name).endswith("ForCausalLM") for name in named)
