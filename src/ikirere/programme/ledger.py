"""The ledger of a run: one JSON event per line, appended, fsynced, chained by hash.

Each event carries `chain`, the sha256 of the chain value before it and of its own content, so a changed
or missing line in the middle is found by `broken_at`. Lines cut off at the very end are not: the ledger
then is a true, shorter history.

A process killed in the middle of a write leaves a torn last line. Readers pass over it; the next writer
(there is one at a time, see lock.py) removes it. Another line that is not an event is passed over too and
named: each stage's folder describes itself (identity.json), so nothing is lost with the line.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ikirere.common.files import canonical_json
from ikirere.errors import UserError

NAME = "ledger.jsonl"
Event = dict[str, Any]


def now() -> str:
    """The time in UTC, to the millisecond, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _chain(previous: str, event: Event) -> str:
    content = {key: value for key, value in event.items() if key != "chain"}
    return hashlib.sha256((previous + canonical_json(content)).encode()).hexdigest()


def _split(data: bytes) -> tuple[list[bytes], int]:
    """Whole lines, and the number of bytes that they take."""
    whole = data.rfind(b"\n") + 1
    return data[:whole].splitlines(), whole


def _parse(lines: list[bytes]) -> tuple[list[Event], list[int]]:
    """The events, and the numbers (from 1) of the lines that are none."""
    events: list[Event] = []
    damaged = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and "event" in event:
            events.append(event)
        else:
            damaged.append(number)
    return events, damaged


def _lines(path: Path) -> list[bytes]:
    try:
        return _split(path.read_bytes())[0]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_events(path: Path) -> list[Event]:
    """All events of a ledger; [] where there is none. Lines that are not events are passed over.

    Raises UserError where the file cannot be read.
    """
    return _parse(_lines(path))[0]


def damaged_lines(path: Path) -> list[int]:
    """Numbers (from 1) of the lines that are not events, without a torn last one."""
    lines = _lines(path)
    return [number for number in _parse(lines)[1] if number < len(lines)]


def broken_at(events: list[Event]) -> int | None:
    """Number (from 1) of the first event whose chain value does not follow, or None."""
    previous = ""
    for number, event in enumerate(events, 1):
        if event.get("chain") != _chain(previous, event):
            return number
        previous = event["chain"]
    return None


class Ledger:
    """The writing end. Open it only while holding the run's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = read_events(path)
        self.repaired = self._repair()

    def _repair(self) -> bool:
        """Remove a torn tail; True where there was one."""
        if not self.path.exists():
            return False
        size = self.path.stat().st_size
        lines, whole = _split(self.path.read_bytes())
        if lines and len(lines) in _parse(lines)[1]:
            whole -= len(lines[-1]) + 1
        if whole == size:
            return False
        with self.path.open("r+b") as handle:
            handle.truncate(whole)
            os.fsync(handle.fileno())
        return True

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event and return it. On a full disk nothing of it stays; OSError is passed on."""
        row: Event = {"event": event, "time": now(), "pid": os.getpid(), **fields}
        # What is hashed is what a reader will get back, so tuples become lists first.
        row = json.loads(json.dumps(row, ensure_ascii=False))
        row["chain"] = _chain(self.events[-1]["chain"] if self.events else "", row)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as handle:
                handle.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                handle.flush()
                os.fsync(handle.fileno())
        except OSError:
            if self.path.exists():
                os.truncate(self.path, size)
            raise
        self.events.append(row)
        return row


def last(events: list[Event], stage: str, *kinds: str) -> tuple[int, Event] | None:
    """(index, event) of the newest event of one of `kinds` about `stage`, or None."""
    for index in range(len(events) - 1, -1, -1):
        if events[index].get("stage") == stage and events[index]["event"] in kinds:
            return index, events[index]
    return None


ENDINGS = ("stage-finished", "stage-failed", "stage-interrupted", "stage-stopped", "stage-killed")


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def newest_change(folder: Path) -> float | None:
    """When a file of the folder was last written (POSIX seconds); None where there is none."""
    times = [path.stat().st_mtime for path in folder.rglob("*") if path.is_file()]
    return max(times, default=None)


def unended(events: list[Event], stage: str) -> Event | None:
    """The start of an attempt that has no end in the ledger: it runs, or was killed."""
    newest = last(events, stage, "stage-started", *ENDINGS, "stage-set-aside", "stage-restored")
    return newest[1] if newest and newest[1]["event"] == "stage-started" else None


def spent_seconds(events: list[Event], stage: str, folder: Path) -> float:
    """Seconds that all attempts at what is in the stage's folder took, killed ones up to their last written file."""
    total, began = 0.0, None
    for event in events:
        if event.get("stage") != stage:
            continue
        kind = event["event"]
        if kind == "stage-set-aside":
            total, began = 0.0, None
        elif kind == "stage-restored":
            total, began = float(event.get("spent", 0.0)), None
        elif kind == "stage-started":
            total, began = (0.0 if event.get("fresh") else total), _seconds(event["time"])
        elif kind in ENDINGS and began is not None:
            total += max(0.0, _seconds(str(event.get("ended") or event["time"])) - began)
            began = None
    if began is not None and folder.is_dir():
        total += max(0.0, (newest_change(folder) or began) - began)
    return total
