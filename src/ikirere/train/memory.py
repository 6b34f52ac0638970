"""Memory of this process."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def peak_rss() -> int:
    """Bytes of physical memory at the highest, since the process began or `reset_peak` was called."""
    if (value := _status("VmHWM")) is not None:
        return value
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rss() -> int:
    """Bytes of physical memory now; where the system does not report it, the peak."""
    value = _status("VmRSS")
    return peak_rss() if value is None else value


def reset_peak() -> bool:
    """Resets `peak_rss` to what is held now, where the system allows it (Linux); returns whether it did."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def keep_pages() -> bool:
    """Asks the C library to keep freed memory instead of giving it back and asking again at every step.

    Otherwise each large tensor is mapped, zeroed page by page and unmapped in each step (3% of the time of a
    small model). Returns whether the library accepted it (glibc does). `give_pages` ends it.
    """
    library = _libc()
    if library is None:
        return False
    # Older versions refuse more than 32 MiB.
    mapped = any(library.mallopt(_M_MMAP_THRESHOLD, size) for size in (1 << 30, 1 << 25))
    return mapped and bool(library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def give_pages() -> None:
    """Back to the C library's usual thresholds; what is free now goes to the system."""
    if (library := _libc()) is not None:
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 25)
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 26)
        library.malloc_trim(0)


def _libc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        return library if library.mallopt and library.malloc_trim else None
    except (OSError, AttributeError, TypeError):
        return None


def _status(key: str) -> int | None:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
