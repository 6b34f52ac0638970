"""Time and peak memory of a stage."""

from __future__ import annotations

import json
import subprocess
import sys

from ikirere.programme.resources import INTERVAL

MEGABYTE = 1 << 20

# In a process of its own: one that ran other tests gives hundreds of megabytes back at any moment.
SHORT_PEAK = """
import json, mmap, time
import psutil
from ikirere.programme import resources as gauge

before = psutil.Process().memory_info().rss
with gauge.ResourceMeter() as measured, mmap.mmap(-1, 400 << 20) as block:
    for offset in range(0, len(block), 4096):
        block[offset] = 1
    time.sleep(gauge.INTERVAL + 0.2)
with gauge.ResourceMeter() as after:
    pass
print(json.dumps([before, measured.peak_rss_bytes, after.peak_rss_bytes, measured.seconds]))
"""


def test_a_short_peak_is_seen() -> None:
    done = subprocess.run([sys.executable, "-c", SHORT_PEAK], capture_output=True, text=True, check=True)
    before, peak, after, seconds = json.loads(done.stdout)
    assert 380 * MEGABYTE < peak - before < 500 * MEGABYTE
    assert INTERVAL < seconds < 30
    assert after < peak - 300 * MEGABYTE, "each stage has its own peak"


WITH_CHILD = """
import json, subprocess, sys, time
from ikirere.programme import resources as gauge

hold = "import sys; b = b'x' * (300 << 20); print('ready', flush=True); sys.stdin.read()"
with gauge.ResourceMeter() as alone:
    pass
with gauge.ResourceMeter() as measured:
    child = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    time.sleep(gauge.INTERVAL + 0.2)
    child.communicate()
print(json.dumps([alone.peak_rss_bytes, measured.peak_rss_bytes]))
"""


def test_children_count() -> None:
    done = subprocess.run([sys.executable, "-c", WITH_CHILD], capture_output=True, text=True, check=True)
    alone, with_child = json.loads(done.stdout)
    assert 250 * MEGABYTE < with_child - alone < 500 * MEGABYTE
