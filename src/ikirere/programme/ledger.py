"""The ledger of a run: one JSON event per line, appended, fsynced, chained by hash.

Each event carries `chain`, the sha256 of the chain value before it and of its own content, so a changed
or missing line in the middle is found by `broken_at`. Lines cut off at the very end are not: the ledger
then is a true, shorter history.

A process killed in the middle of a write leaves a torn last line. Readers pass over it; the next writer
(there is one at a time, see lock.py) removes it.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ikirere.errors import UserError

NAME = "ledger.jsonl"
Event = dict[str, Any]


def now() -> str:
    """The time in UTC, to the millisecond, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _chain(previous: str, event: Event) -> str:
    content = {key: value for key, value in event.items() if key != "chain"}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256((previous + text).encode()).hexdigest()


def _split(data: bytes) -> tuple[list[bytes], int]:
    """Whole lines, and the number of bytes that they take."""
    whole = data.rfind(b"\n") + 1
    return data[:whole].splitlines(), whole


def read_events(path: Path) -> list[Event]:
    """All events of a ledger; [] where there is none. A torn last line is passed over.

    Raises UserError naming the line where another one is not JSON.
    """
    try:
        lines, _ = _split(path.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    events = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or "event" not in event:
            if number == len(lines):
                break
            raise UserError(
                f"{path}:{number}: not an event; the ledger was altered, restore it or remove the run"
            )
        events.append(event)
    return events


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
        if len(lines) > len(self.events):
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
    """(place, event) of the newest event of one of `kinds` about `stage`, or None."""
    for place in range(len(events) - 1, -1, -1):
        if events[place].get("stage") == stage and events[place]["event"] in kinds:
            return place, events[place]
    return None
