"""Progress for people: bars with rate and time left on a terminal, plain lines on a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from ikirere.programme.stage import Progress

LINE_EVERY = 10.0  # seconds between two lines on a pipe
BYTE_UNITS = {"B", "byte", "bytes"}
SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def console() -> Console:
    """Standard output; on a pipe lines are not broken."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, soft_wrap=True, width=160)


def amount(value: float, unit: str) -> str:
    """12345678, 'bytes' -> '12.3 MB'; 3, 'steps' -> '3 steps'."""
    size = abs(value)
    name = "B" if unit in BYTE_UNITS else unit
    for scale, letter in SCALES:
        if size >= scale and (unit in BYTE_UNITS or size >= 1e4):
            return (
                f"{value / scale:.1f} {letter}{name}"
                if name == "B"
                else f"{value / scale:.1f}{letter} {name}".rstrip()
            )
    number = f"{value:.0f}" if size >= 100 or value == int(value) else f"{value:.2g}"
    return f"{number} {name}".rstrip()


def of(done: float, total: float, unit: str) -> str:
    """'26 of 30 steps', '1.0 MB of 2.0 MB'."""
    return f"{amount(done, unit if unit in BYTE_UNITS else '')} of {amount(total, unit)}"


def clock(seconds: float) -> str:
    """75 -> '1:15'; 3700 -> '1:01:40'."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _shown(values: dict[str, object]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


class _Facts(ProgressColumn):
    """Done, rate, time left and the short values of a task."""

    def render(self, task: Task) -> Text:
        unit = str(task.fields["unit"])
        rate = task.finished_speed or task.speed or 0.0
        parts = [of(task.completed, task.total or 0, unit)]
        if rate:
            parts.append(f"{amount(rate, unit)}/s")
        if task.time_remaining is not None and not task.finished:
            parts.append(f"{clock(task.time_remaining)} left")
        if task.fields["shown"]:
            parts.append(_shown(task.fields["shown"]))
        return Text("  ".join(parts))


class _TerminalBar:
    def __init__(self, bars: RichProgress, label: str, total: float, unit: str) -> None:
        self._bars = bars
        self.task = bars.add_task(label, total=total, unit=unit, shown={})
        self._values: dict[str, object] = {}

    def advance(self, amount: float = 1, **shown: object) -> None:
        self._values.update(shown)
        self._bars.update(self.task, advance=amount, shown=dict(self._values))


class _PlainBar:
    def __init__(self, reporter: Reporter, label: str, total: float, unit: str) -> None:
        self._reporter, self._label, self._total, self._unit = reporter, label, total, unit
        self._done = 0.0
        self._start = time.monotonic()
        self._values: dict[str, object] = {}
        self._spoke = False
        self._lock = threading.Lock()

    def line(self) -> str:
        seconds = time.monotonic() - self._start
        rate = self._done / seconds if seconds > 0 else 0.0
        parts = [f"{self._label}: {of(self._done, self._total, self._unit)}"]
        if self._done >= self._total:
            parts.append(f"in {clock(seconds)}")
        elif rate:
            parts.append(f"{clock((self._total - self._done) / rate)} left")
        if rate:
            parts.append(f"{amount(rate, self._unit)}/s")
        if self._values:
            parts.append(_shown(self._values))
        return "  ".join(parts)

    def advance(self, amount: float = 1, **shown: object) -> None:
        with self._lock:
            self._done += amount
            self._values.update(shown)
            if self._reporter.due():
                self._spoke = True
                self._reporter.say(self.line())

    def close(self) -> None:
        # A short bar prints nothing; one that printed also reports how it ended.
        if self._spoke:
            self._reporter.say(self.line())


class Reporter:
    """Where the lines and bars of a run go. One per process."""

    def __init__(self, to: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = to or console()
        self._clock = clock
        self._last = clock()
        self._bars: RichProgress | None = None
        self._open = 0

    def say(self, text: str) -> None:
        """One line, above the bars where there are any."""
        self._last = self._clock()
        self.console.print(text, markup=False)

    def due(self) -> bool:
        """True where the last line on a pipe is old enough for another."""
        return self._clock() - self._last >= LINE_EVERY

    @contextmanager
    def progress(self, label: str, total: float, unit: str) -> Iterator[Progress]:
        """A bar for one long step; several may be open at a time."""
        if not self.console.is_terminal:
            plain = _PlainBar(self, label, total, unit)
            try:
                yield plain
            finally:
                plain.close()
            return
        if self._bars is None:
            self._bars = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(16),
                _Facts(Column(no_wrap=True, overflow="ellipsis")),
                console=self.console,
            )
            self._bars.start()
        self._open += 1
        bar = _TerminalBar(self._bars, label, total, unit)
        try:
            yield bar
        finally:
            self._open -= 1
            if self._open == 0:
                self._bars.stop()
                self._bars = None
