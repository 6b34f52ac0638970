"""Formats and compilation are chosen by measuring, and said; memory is counted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from ikirere.errors import UserError
from ikirere.train import precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    precision._measured.cache_clear()


@pytest.mark.parametrize(("ratio", "chosen"), [(0.01, "fp32"), (1.1, "fp32"), (1.9, "bf16")])
def test_auto_takes_what_is_faster(monkeypatch: pytest.MonkeyPatch, ratio: float, chosen: str) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: 1 / ratio}
    monkeypatch.setattr(precision, "_product_seconds", lambda dtype, device: seconds[dtype])
    found = precision.choose("auto", CPU)
    assert found.name == chosen and "bf16" in found.line and "times" in found.line
    assert precision.choose("auto", CPU) is found


def test_auto_measures_here() -> None:
    found = precision.choose("auto", CPU)
    assert found.name in ("fp32", "bf16") and "\n" not in found.line
    a = torch.ones(4, 4)
    with found.context():
        assert (a @ a).dtype == found.dtype


def test_formats_that_are_not_built_are_refused() -> None:
    with pytest.raises(UserError, match=r"precision.*fp8.*fp32"):
        precision.choose("fp8", CPU)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))


def compiled(model: Blocks) -> bool:
    return all(block._compiled_call_impl is not None for block in model.layers)


def decide(
    monkeypatch: pytest.MonkeyPatch, setting: str, steps: int, times: list[float]
) -> tuple[bool, str, Blocks]:
    measured = iter(times)
    monkeypatch.setattr(precision, "_seconds", lambda probe, device: next(measured))
    model = Blocks()
    on, line = precision.decide_compile(setting, model, CPU, steps, lambda: None)
    assert compiled(model) is on and "\n" not in line
    return on, line, model


def test_compile_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "compiler", lambda: "g++")
    assert not decide(monkeypatch, "off", 10**6, [])[0]
    assert not decide(monkeypatch, "auto", 50, [])[0]
    assert not decide(monkeypatch, "auto", 1000, [1.0])[0]  # would save 50 s
    assert decide(monkeypatch, "auto", 10_000, [1.0, 0.8])[0]
    on, line, model = decide(monkeypatch, "auto", 10_000, [1.0, 1.0])
    assert not on and "no faster" in line
    precision.compile_blocks(model)
    assert compiled(model)


def test_compile_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C++ compiler" in decide(monkeypatch, "auto", 10**6, [])[1]
    with pytest.raises(UserError, match=r"compile: on needs a C\+\+ compiler"):
        decide(monkeypatch, "on", 10**6, [])


# In a process of its own: one that ran other tests gives hundreds of megabytes back at any moment.
PEAK_ANEW = """
import json, mmap
from ikirere.train import memory

if not memory.reset_peak():
    print("null")
    raise SystemExit
before = memory.peak_rss()
with mmap.mmap(-1, 64_000_000) as held:
    for place in range(0, len(held), 4096):
        held[place] = 1
    peak = memory.peak_rss()
now = memory.rss()
memory.reset_peak()
print(json.dumps([before, peak, now, memory.peak_rss()]))
"""


def test_peak_memory_is_counted_anew() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK_ANEW], capture_output=True, text=True, check=True)
    if (values := json.loads(done.stdout)) is None:
        pytest.skip("this system does not let a process forget its peak")
    before, peak, now, anew = values
    assert peak >= before + 50e6 and peak >= now
    assert anew < peak - 50e6
