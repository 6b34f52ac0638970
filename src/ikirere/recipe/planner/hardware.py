"""Devices: memory, peak rates by precision, memory bandwidth. Dense rates (no sparsity), from data sheets."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass

from ikirere.errors import UserError

GB = 10**9
TERA = 10**12


@dataclass(frozen=True)
class Device:
    """One device. `peak` is operations per second by precision; a precision that is absent does not run."""

    name: str
    memory: float  # bytes
    peak: dict[str, float]
    bandwidth: float  # bytes per second

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"


def _card(
    name: str, gb: float, bandwidth_gb: float, fp32: float, fp16: float, bf16: float = 0, fp8: float = 0
) -> Device:
    rates = {"fp32": fp32, "fp16": fp16, "bf16": bf16, "fp8": fp8}
    return Device(name, gb * GB, {p: r * TERA for p, r in rates.items() if r}, bandwidth_gb * GB)


# NVIDIA data sheets. fp16 and bf16 are tensor-core rates with fp32 accumulation; fp32 is the plain rate.
# Consumer cards run fp32 accumulation at half the advertised tensor rate.
_CARDS = (
    #     name             GB   GB/s   fp32  fp16  bf16   fp8   TFLOP/s
    _card("t4", 16, 320, 8.1, 65),
    _card("v100-32gb", 32, 900, 15.7, 125),
    _card("rtx3060-12gb", 12.9, 360, 12.7, 25.5, 25.5),  # 12 GiB
    _card("rtx3090", 25.8, 936, 35.6, 71, 71),  # 24 GiB
    _card("rtx4090", 25.8, 1008, 82.6, 165, 165, 330),
    _card("a10g", 24, 600, 31.2, 70, 70),
    _card("l4", 24, 300, 30.3, 121, 121, 242),
    _card("l40s", 48, 864, 91.6, 362, 362, 733),
    _card("a100-40gb", 40, 1555, 19.5, 312, 312),
    _card("a100-80gb", 80, 2039, 19.5, 312, 312),
    _card("h100-pcie-80gb", 80, 2000, 51, 756, 756, 1513),
    _card("h100-80gb", 80, 3350, 67, 989, 989, 1979),
    _card("h200", 141, 4800, 67, 989, 989, 1979),
    _card("b200", 180, 8000, 80, 2250, 2250, 4500),
)

# Two cores of a server with AVX2 and no bf16 units: large fp32 products reach about 75 GFLOP/s on each.
# Memory is this machine's.
CPU_PEAK = 150e9
CPU_BANDWIDTH = 10 * GB


def _cpu() -> Device:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("cpu", memory, {"fp32": CPU_PEAK}, CPU_BANDWIDTH)


def device_names() -> list[str]:
    return ["cpu", *(card.name for card in _CARDS)]


def find_device(name: str) -> Device:
    """Raises UserError naming the known devices."""
    if name == "cpu":
        return _cpu()
    for card in _CARDS:
        if card.name == name:
            return card
    begins = [known for known in device_names() if name and known.startswith(name.lower())]
    close = begins or difflib.get_close_matches(name, device_names(), n=1)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise UserError(f"hardware.device: no device {name!r}{hint}; known: {', '.join(device_names())}")
