"""Which number format and which execution are fastest here, found by measuring.

A processor without bf16 instructions runs bf16 a hundred times slower than fp32, without a warning.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from ikirere.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WORTH = 1.2  # a narrower format must be this much faster: it also costs accuracy
# Expected before anything is compiled; measured on two AVX2 cores (gain about 0) and published for cards.
COMPILE_SECONDS, COMPILE_GAIN = 90.0, {"cpu": 0.05, "cuda": 0.25}


@dataclass(frozen=True)
class Precision:
    """The format of matrix products; weights, their gradients and the optimiser's state stay as they are (fp32)."""

    name: str
    device: torch.device
    line: str  # what was chosen and why, for the user

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]

    def context(self) -> AbstractContextManager[object]:
        """Autocast for the forward pass; a null context for fp32."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def choose(precision: str, device: torch.device) -> Precision:
    """The format for a recipe's `precision` (auto, fp32, bf16, fp16) on a device.

    auto: bf16, else (on cards) fp16, where a matrix product is at least 1.2 times as fast as in fp32.
    Raises UserError for fp8.
    """
    if precision == "auto":
        return _measured(device)
    check_precision(precision, "precision")
    return Precision(precision, device, f"precision {precision}, as the recipe sets it")


def check_precision(precision: str, key: str) -> None:
    """Raises UserError, naming the key, for fp8, which no device that this loop drives can train in."""
    if precision not in ("auto", *DTYPES):
        raise UserError(
            f"{key}: {precision!r} is not built; accepted are auto, {', '.join(DTYPES)} (auto measures)"
        )


@lru_cache
def _measured(device: torch.device) -> Precision:
    single = _product_seconds(torch.float32, device)
    tried = []
    for name in ("bf16", "fp16") if device.type == "cuda" else ("bf16",):
        ratio = single / _product_seconds(DTYPES[name], device)
        tried.append(f"{name} {_times(ratio)}")
        if ratio >= WORTH:
            return Precision(
                name, device, f"precision {name}: measured {_times(ratio)} than fp32 on {device}"
            )
    return Precision("fp32", device, f"precision fp32: measured {', '.join(tried)} on {device}")


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times faster" if ratio >= 1 else f"{1 / ratio:.1f} times slower"


def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Best of a few matrix products."""
    size = 4096 if device.type == "cuda" else 256
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


# ---------------------------------------------------------------- compile


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on the CPU."""
    named = os.environ.get("CXX")
    return next((c for c in (named, "g++", "clang++") if c and shutil.which(c)), None)


def decide_compile(
    setting: str, model: nn.Module, device: torch.device, steps: int, probe: Callable[[], None]
) -> tuple[bool, str]:
    """Whether the model's blocks shall run compiled, and a line that gives the reason; then they are compiled when it
    returns.

    setting: a recipe's `compile`. probe: one training step's forward and backward pass, without effect.
    auto: only where a compiler is there and what is expected to be saved over `steps` exceeds what compiling
    costs; then it is compiled and measured, and kept only where it is faster.
    Raises UserError for `on` without a compiler.
    """
    missing = device.type == "cpu" and compiler() is None
    if setting == "on":
        if missing:
            raise UserError(
                "compile: on needs a C++ compiler (g++ or clang++), none is on PATH; use auto or off"
            )
        compile_blocks(model)
        return True, "compile on, as the recipe sets it"
    if setting == "off":
        return False, "compile off, as the recipe sets it"
    if missing:
        return False, "compile off: no C++ compiler on PATH"
    if steps < 100:
        return False, f"compile off: {steps} steps cannot repay it"
    eager = _seconds(probe, device)
    saving = eager * steps * COMPILE_GAIN.get(device.type, 0.0)
    if saving < COMPILE_SECONDS:
        return False, (
            f"compile off: {eager:.2f} s per step, so it could save about {saving:.0f} s over {steps} steps and "
            f"costs about {COMPILE_SECONDS:.0f} s"
        )
    compile_blocks(model)
    compiled = _seconds(probe, device)
    gain = f"{eager:.3f} s per step without, {compiled:.3f} s with"
    if compiled > 0.97 * eager:
        compile_blocks(model, False)
        return False, f"compile off: tried, no faster ({gain})"
    return True, f"compile on: measured {gain}"


def compile_blocks(model: nn.Module, on: bool = True) -> None:
    """Compiles the layers one by one, so that equal ones share the code; or undoes it."""
    for block in getattr(model, "layers", [model]):
        if on:
            block.compile(dynamic=False)
        else:
            block._compiled_call_impl = None


def _seconds(probe: Callable[[], None], device: torch.device) -> float:
    """Best of two, after one for warming up."""
    best = float("inf")
    for attempt in range(3):
        start = time.perf_counter()
        probe()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if attempt:
            best = min(best, time.perf_counter() - start)
    return best
