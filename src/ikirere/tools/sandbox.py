"""Runs untrusted Python in a confined child process, with as much protection as the machine has.

Always: `python -I -S` (no site packages, no environment, no user files), an empty environment, a fresh
folder that is removed afterwards, limits on CPU time, wall time, memory per process, file size, open files,
processes (Linux) and output.

By the machine, the first of these that works (tried once per process):

| mode | files | network | processes |
|---|---|---|---|
| namespaces | own root: interpreter and system libraries read-only, 16 MB of /tmp | none | own PID space, all killed at the end |
| landlock | kernel rules: reads interpreter and libraries, writes its folder | TCP refused, UDP is not | not killed if they leave their group |
| limits | as the user who runs it | open | as above |

Root becomes an unprivileged user, another one in each run, in every mode where the interpreter can then
still be reached.

Not covered: faults of the kernel itself (there is no system-call filter); side channels; memory of all
processes together, which may reach `processes` times the limit; in the last two modes also what the table
lists. It is made for code that a model wrote, not for an attacker with a kernel exploit. On Windows there is
no such child and `run` reports it.
"""

from __future__ import annotations

import itertools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ikirere.tools.result import ToolResult

MODES = ("namespaces", "landlock", "limits")
_LAUNCHER = Path(__file__).with_name("confine.py")
_FAILED = 113
_FIRST_USER = 2**30  # far above any account; a number of its own keeps the process counts of runs separate
_RUNS = itertools.count()
_ABSENT = {
    "landlock": "no namespaces here: UDP is reachable, processes that leave their group are not killed",
    "limits": "no namespaces and no Landlock here: network and the user's files are reachable",
}


@dataclass(frozen=True)
class Limits:
    """Bounds of one run. Wall time is several times the CPU time, so that a busy machine changes no result."""

    cpu_ms: int = 1500  # per process
    wall_ms: int = 6000
    memory_bytes: int = 256 * 2**20  # address space per process
    file_bytes: int = 4 * 2**20  # each file
    tmp_bytes: int = 16 * 2**20  # all files together; mode namespaces only
    processes: int = 8
    output_bytes: int = 4000  # of each output stream
    code_bytes: int = 60_000


@dataclass(frozen=True)
class Protection:
    """What this machine offers. `absent` is one line, empty where nothing is missing."""

    mode: str
    drop_root: bool
    absent: str


@dataclass
class _Ended:
    status: int
    output: str
    error: str
    cut: bool
    late: bool


def _python() -> str:
    base = getattr(sys, "_base_executable", None) or sys.executable
    return os.path.realpath(base)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()


def _collect(process: subprocess.Popen[bytes], limits: Limits) -> _Ended:
    """Read both streams up to the cap and the deadline; end the process at either."""
    streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
    held = {id(stream): bytearray() for stream in streams}
    deadline = time.monotonic() + limits.wall_ms / 1000
    cut = late = False
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and not (cut or late):
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                block = os.read(key.fd, 65536)
                if not block:
                    selector.unregister(key.fileobj)
                held[id(key.fileobj)] += block
                cut = cut or len(held[id(key.fileobj)]) > limits.output_bytes
            late = time.monotonic() >= deadline and bool(selector.get_map())
    if not (cut or late):
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            late = True
    _kill(process)
    status = process.wait()
    texts = [bytes(held[id(s)][: limits.output_bytes]).decode("utf-8", "replace") for s in streams]
    return _Ended(status, texts[0], texts[1], cut, late)


def _start(code: str, limits: Limits, mode: str, drop_root: bool) -> _Ended:
    folder = tempfile.mkdtemp(prefix="ikirere-sandbox-")
    spec = {
        "mode": mode,
        "drop_root": drop_root,
        "user": _FIRST_USER + os.getpid() % 2**22 * 64 + next(_RUNS) % 64,
        "python": _python(),
        "folder": folder,
        "code": code,
        **{
            name: getattr(limits, name)
            for name in ("cpu_ms", "memory_bytes", "file_bytes", "tmp_bytes", "processes")
        },
    }
    try:
        process = subprocess.Popen(
            [_python(), "-I", "-S", str(_LAUNCHER), json.dumps(spec)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        with process:
            return _collect(process, limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=1)
def protection() -> Protection | None:
    """The strongest mode that works here, found by trying; None where no child can be confined at all."""
    if sys.platform == "win32":
        return None
    modes = MODES if sys.platform == "linux" else ("limits",)
    root = os.geteuid() == 0
    patient = replace(Limits(), cpu_ms=10_000, wall_ms=30_000)
    for mode in modes:
        for drop_root in (True, False) if root and mode != "namespaces" else (True,):
            ended = _start("6*7", patient, mode, drop_root)
            if ended.status == 0 and ended.output.strip() == "42":
                absent = _ABSENT.get(mode, "")
                if root and not drop_root:
                    absent += "; the code runs as root and the number of processes is not bounded"
                return Protection(mode, drop_root, absent)
    return None


def describe() -> str:
    """One line that names the protection that is absent; empty where none is."""
    found = protection()
    if found is None:
        return "python_exec: no confined child process can be started on this machine, so the tool is off"
    return f"python_exec: {found.absent}" if found.absent else ""


def _message(ended: _Ended, limits: Limits) -> ToolResult:
    if ended.status == _FAILED and ended.error.startswith("cannot confine"):
        return ToolResult(False, f"error: {ended.error}")
    if ended.cut:
        return ToolResult(
            False, f"error: more than {limits.output_bytes} bytes of output: {ended.output[:200]}"
        )
    if ended.late:
        return ToolResult(False, f"error: ran longer than {limits.wall_ms} ms")
    if ended.status in (128 + signal.SIGPROF, 128 + signal.SIGXCPU, -signal.SIGPROF, -signal.SIGXCPU):
        return ToolResult(False, f"error: used more than {limits.cpu_ms} ms of processor time")
    if ended.status != 0:
        reason = ended.error.strip() or f"ended with status {ended.status}"
        if reason.startswith("MemoryError"):
            reason = f"MemoryError: more than {limits.memory_bytes // 2**20} MB of memory"
        return ToolResult(False, f"error: {reason[:300]}")
    return ToolResult(True, ended.output.rstrip("\n"))


def run(code: str, limits: Limits | None = None) -> ToolResult:
    """Run code in a confined child; the result is what it printed, then the value of a last expression.

    Never raises for anything that the code does.
    """
    limits = limits or Limits()
    if len(code.encode("utf-8", "surrogatepass")) > limits.code_bytes or "\0" in code:
        return ToolResult(False, f"error: code is longer than {limits.code_bytes} bytes or holds a zero byte")
    found = protection()
    if found is None:
        return ToolResult(False, "error: python_exec is off: no confined child process can be started here")
    return _message(_start(code, limits, found.mode, found.drop_root), limits)
