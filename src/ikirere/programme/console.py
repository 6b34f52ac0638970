"""The tables that people see: state of a run, gates, verdict, and what to do next."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ikirere.programme import result
from ikirere.programme.progress import amount, clock
from ikirere.programme.status import checkpoints_of, status
from ikirere.programme.verdict import ShipVerdict

COLOURS = {"PASS": "green", "MISS": "red", "INSIDE NOISE": "yellow", "NOT RUN": "dim"}


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _band(gate: dict[str, Any]) -> str:
    return "" if gate["low"] is None else f"{gate['low']:.4g} to {gate['high']:.4g}"


def stages_table(shown: dict[str, Any], folder: Path) -> Table:
    """Stage, state, step, time over all attempts, peak memory and remarks."""
    mark = " (rehearsal)" if shown.get("rehearsal") else ""
    table = Table(title=f"{shown['run']}{mark}", title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("step", justify="right")
    table.add_column("time", justify="right")
    table.add_column("peak memory", justify="right")
    table.add_column("remarks")
    for stage in shown["stages"]:
        memory = ""
        if stage["state"] == "done":
            memory = f"{result.read(folder / stage['name'])['peak_rss_bytes'] / 1e9:.2f} GB"
        step = "" if stage["step"] is None else f"{stage['step']:,}"
        spent = clock(stage["spent"]) if stage["spent"] else ""
        table.add_row(stage["name"], stage["state"], step, spent, memory, "; ".join(_remarks(stage)))
    table.add_section()
    table.add_row("all", "", "", clock(sum(stage["spent"] for stage in shown["stages"])), "", "")
    return table


def _remarks(stage: dict[str, Any]) -> list[str]:
    found = list(stage["marks"])
    if stage["stale_inputs"]:
        found.append(f"made from other outputs of {', '.join(stage['stale_inputs'])}")
    for event in stage["continued"]:
        found.append(f"continued from step {event['step']} with {', '.join(event['changes'])} changed")
    return found


def gates_table(shown: dict[str, Any]) -> Table | None:
    """All gates with measured value, noise band, verdict and what follows; None where the recipe has none."""
    rehearsal = bool(shown.get("rehearsal"))
    title = "gates (REHEARSAL: shrunk model, targets of the full one)" if rehearsal else "gates"
    table = Table(title=title, title_justify="left")
    for name in ("stage", "gate", "metric", "target"):
        table.add_column(name)
    table.add_column("measured", justify="right")
    table.add_column("noise band")
    table.add_column("verdict")
    table.add_column("on miss")
    for stage in shown["stages"]:
        for gate in stage["gates"]:
            verdict = gate["verdict"] + (" (rehearsal)" if rehearsal and gate["verdict"] != "NOT RUN" else "")
            if gate["stop_beyond"] is not None and gate["value"] is not None:
                verdict += f": {gate['decision']}"
            beyond = "" if gate["stop_beyond"] is None else f", stop beyond {gate['stop_beyond']:g}"
            table.add_row(
                stage["name"], gate["name"], gate["metric"], f"{gate['op']} {gate['target']:g}{beyond}",
                _number(gate["value"]), _band(gate), f"[{COLOURS[gate['verdict']]}]{verdict}", gate["on_miss"],
            )  # fmt: skip
    return table if table.row_count else None


def checkpoints_table(run_folder: Path) -> Table | None:
    """The checkpoints of all stages; None where there are none."""
    table = Table(title="checkpoints", title_justify="left")
    table.add_column("stage")
    for name in ("step", "tokens", "loss", "size"):
        table.add_column(name, justify="right")
    table.add_column("purpose")
    for stage, found in checkpoints_of(run_folder).items():
        for info in found:
            tokens = "" if info.tokens is None else f"{info.tokens:,}"
            loss = "" if info.loss is None else f"{info.loss:.4f}"
            table.add_row(stage, f"{info.step:,}", tokens, loss, amount(info.bytes, "B"), info.purpose)
    return table if table.row_count else None


def _notes(shown: dict[str, Any]) -> list[str]:
    """Below the tables: the verdict, what was set aside, what is planned and not built."""
    lines = ShipVerdict.of(shown["verdict"]).lines()
    for aside in shown["set_aside"]:
        step = "" if aside["step"] is None else f", step {aside['step']:,}"
        lines.append(f"set aside: {Path(aside['path']).name} ({amount(aside['bytes'], 'B')}{step})")
    if shown["set_aside"]:
        lines.append("           they come back with their settings; `ikirere clean` removes them")
    for stage, keys in shown["planned"].items():
        lines.append(f"planned, not built: {stage}: {', '.join(f'{k} {v}' for k, v in keys.items())}")
    return lines


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


def show_status(
    folder: Path, console: Console, modules: Mapping[str, str] | None = None, checkpoints: bool = False
) -> None:
    """Stages, gates and verdict of a run; with `checkpoints` each of its checkpoints."""
    shown = status(folder, modules)
    console.print(stages_table(shown, folder))
    if (gates := gates_table(shown)) is not None:
        console.print(gates)
    if checkpoints and (found := checkpoints_table(folder)) is not None:
        console.print(found)
    for line in _notes(shown):
        console.print(line, markup=False)


def report_pages(folder: Path) -> list[str]:
    """HTML pages that stages of the run made, as paths from here."""
    return [_short(path) for path in _files(folder, status(folder)) if path.suffix == ".html"]


def show_end(folder: Path, console: Console, modules: Mapping[str, str] | None = None) -> None:
    """What stands at the end of `run`: both tables, the report, and how to talk to the model."""
    show_status(folder, console, modules)
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
