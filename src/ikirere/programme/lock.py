"""One process per run folder.

The lock is `flock` on `.lock`, which the kernel frees when its holder ends, however it ends. A worker that
outlived a killed holder may still have the file open; then the pid written in it is of a dead process and
the lock is taken over with a new file. Processes on other machines that share the folder are distinguished by
host name and never judged dead.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from ikirere.errors import Refused, UserError

NAME = ".lock"


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "born": psutil.Process().create_time()}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) and "pid" in holder else None


def _alive(holder: dict[str, Any]) -> bool:
    """False only where the holder is known to be dead: same machine, and no such process any more."""
    if holder.get("host") != socket.gethostname():
        return True
    try:
        process = psutil.Process(int(holder["pid"]))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(process.create_time() - float(holder.get("born", 0.0))) < 2.0
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def holder_of(run_folder: Path) -> int | None:
    """Pid of the live process that works on the run folder, or None."""
    path = run_folder / NAME
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        holder = _read(path)
        return int(holder["pid"]) if holder and _alive(holder) else None
    finally:
        os.close(handle)


class RunLock:
    """`with RunLock(folder):` holds the folder. Raises Refused naming the pid of another holder."""

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / NAME
        self._handle: int | None = None

    def _try(self) -> bool:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = self.path.stat().st_ino == os.fstat(handle).st_ino
        except (BlockingIOError, FileNotFoundError):
            current = False
        except OSError as error:
            os.close(handle)
            raise UserError(
                f"{self.path}: this file system cannot lock files ({error.strerror}); put the run folder on another"
            ) from None
        if not current:
            os.close(handle)
            return False
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_me()).encode(), 0)
        self._handle = handle
        return True

    def __enter__(self) -> RunLock:
        # Several tries: a status command may hold the file for an instant, a new holder may be
        # about to write its pid.
        for _ in range(10):
            if self._try():
                return self
            holder = _read(self.path)
            if holder is not None and not _alive(holder):
                self.path.unlink(missing_ok=True)
                continue
            time.sleep(0.05)
        pid = holder["pid"] if (holder := _read(self.path)) else "unknown"
        raise Refused(
            f"{self.path.parent}: held by process {pid}; wait for it or end it, then give the command again"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            # The file stays: removing it would let a waiting process lock a file that has no name.
            # Unlocked by name, since a worker forked meanwhile keeps the closed file open.
            os.ftruncate(self._handle, 0)
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)
            self._handle = None
