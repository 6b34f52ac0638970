"""Permutations without tables: where a keyed shuffle puts one index, computed for that index alone."""

from __future__ import annotations

import numpy as np

from ikirere.common.splitmix import GOLDEN, splitmix

_HALF = np.uint64(32)
_ROUNDS = 12  # with fewer, some orders of half a dozen elements come far more often than others


def keyed(*numbers: int | np.ndarray) -> np.ndarray:
    """A uint64 key of each combination of integers, which may be arrays."""
    key = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        key = splitmix(key + GOLDEN + np.asarray(number).astype(np.uint64))
    return key


def permuted(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The image of `index` under a keyed permutation of range(size); all int64 [n] (key uint64), element by element.

    A Feistel network on the smallest near-square a x b >= size, walked until it lands below size (Black and Rogaway
    2002, "Ciphers with Arbitrary Finite Domains"); fewer than a of a x b values are beyond, so walks are short.
    """
    image, bound = index.astype(np.uint64), np.maximum(size, 1).astype(np.uint64)
    a = np.ceil(np.sqrt(bound.astype(np.float64))).astype(np.uint64)
    b = (bound + a - np.uint64(1)) // a
    walking = np.arange(len(image))
    while len(walking):
        width, secret = b[walking], key[walking]
        halves = np.divmod(image[walking], width)
        sizes = a[walking], width
        for number in range(_ROUNDS):
            secret += GOLDEN
            moved, limit, other = halves[number % 2], sizes[number % 2], halves[1 - number % 2]
            drawn = splitmix(np.bitwise_xor(secret, other))
            drawn >>= _HALF
            drawn *= limit
            drawn >>= _HALF  # a number below the limit, which is below 2^32
            moved += drawn
            np.subtract(moved, limit, out=moved, where=moved >= limit)
        found = halves[0] * width + halves[1]
        image[walking] = found
        walking = walking[found >= bound[walking]]
    return image.astype(np.int64)
