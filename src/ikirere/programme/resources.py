"""Time and peak memory of a stage, children included.

Sampled twice a second: resident bytes of this process plus those of its children. Pages shared between
processes count in each of them, so the sum is an upper bound where workers are forked. Where Linux keeps
a high-water mark that may be reset, peaks of this process between two samples are caught as well.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

INTERVAL = 0.5  # seconds


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _high_water() -> int:
    """Peak resident bytes of this process since the reset; 0 where the system does not report it."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def give_back_memory() -> None:
    """Return what the stage before freed to the system, so that its peak is not charged to the next."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


class ResourceMeter:
    """`with ResourceMeter() as gauge:` then `gauge.seconds`, `gauge.peak_rss_bytes`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.peak_rss_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-gauge", daemon=True)

    def _sample(self) -> None:
        process = psutil.Process()
        total = process.memory_info().rss
        for child in process.children(recursive=True):
            try:
                total += child.memory_info().rss
            except psutil.Error:
                continue
        self.peak_rss_bytes = max(self.peak_rss_bytes, total)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._sample()

    def __enter__(self) -> ResourceMeter:
        give_back_memory()
        self._exact = _reset_high_water()
        self._start = time.perf_counter()
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._thread.join()
        self._sample()
        if self._exact:
            self.peak_rss_bytes = max(self.peak_rss_bytes, _high_water())
