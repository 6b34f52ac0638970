"""Time and peak memory of a stage."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time

import psutil
import pytest

from ikirere.programme import gauge
from ikirere.programme.gauge import Gauge

MEGABYTE = 1 << 20


def test_a_short_peak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = psutil.Process().memory_info().rss
    # A mapping of its own: memory of the allocator's may be reused from, or kept for, other tests.
    with Gauge() as measured, mmap.mmap(-1, 400 * MEGABYTE) as block:
        for place in range(0, len(block), 4096):
            block[place] = 1
        time.sleep(gauge.INTERVAL + 0.2)
    # The system may take back pages of the large test process meanwhile.
    assert 300 * MEGABYTE < measured.peak_rss_bytes - before < 600 * MEGABYTE
    assert gauge.INTERVAL < measured.seconds < 10
    with Gauge() as after:
        pass
    assert after.peak_rss_bytes < measured.peak_rss_bytes - 200 * MEGABYTE, "each stage has its own peak"


def test_children_count() -> None:
    hold = f"import sys; b = b'x' * {300 * MEGABYTE}; print('ready', flush=True); sys.stdin.read()"
    with Gauge() as alone:
        pass
    with Gauge() as measured:
        child = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(gauge.INTERVAL + 0.2)
        child.communicate()
    assert measured.peak_rss_bytes - alone.peak_rss_bytes > 200 * MEGABYTE
