"""SplitMix64 (Steele, Lea and Flood 2014): a fast mixing of 64-bit numbers, made with NumPy for many at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: the stream's increment
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def splitmix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The mixed values, uint64 of the same shape; a bijection. The argument is left as it is."""
    mixed = values.copy()
    mixed ^= mixed >> np.uint64(30)
    mixed *= _FIRST
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SECOND
    mixed ^= mixed >> np.uint64(31)
    return mixed
