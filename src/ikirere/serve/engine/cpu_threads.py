"""How many threads decode a model's steps fastest on this machine: one or all, by measurement.

A small model's matrices are too small to share, and on a busy machine threads that wait for each other cost many
times what they save; a large model wants them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from ikirere.model.cache import KVCache
from ikirere.model.decoder import Decoder

STEPS = 8
SECONDS = 0.5  # spent on each candidate at most
WORTH = 0.85  # more threads are taken where they need less than this share of the time


@torch.inference_mode()
def fit_threads(model: Decoder, rows: int = 1) -> int:
    """Set torch's threads to one or to what they were, whichever decodes `rows` rows faster; returns the number.

    Only for a model on the CPU; elsewhere nothing is changed. Takes about a second at most, beside one step.
    """
    most = torch.get_num_threads()
    if model.device.type != "cpu" or most == 1:
        return most
    tokens = torch.zeros(rows, 1, dtype=torch.long)
    length = min(model.config.max_position_embeddings, 2 * (STEPS + 2))
    cache = KVCache(model.config, rows, length, dtype=model.dtype)

    def step() -> None:
        if int(cache.lengths[0]) == length:
            for row in range(rows):
                cache.reset(row)
        model.hidden(tokens, cache=cache)

    timed = {}
    for threads in (1, most):
        torch.set_num_threads(threads)
        timed[threads] = _seconds(step)
    chosen = most if timed[most] < WORTH * timed[1] else 1
    torch.set_num_threads(chosen)
    return chosen


def _seconds(step: Callable[[], None]) -> float:
    """Median time of a step after a first one."""
    step()
    began = time.perf_counter()
    times: list[float] = []
    while len(times) < STEPS and (not times or time.perf_counter() - began < SECONDS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return median(times)
