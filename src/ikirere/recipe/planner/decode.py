"""The least time that a decoded token can take: what it must read, over the memory's bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from ikirere.recipe.planner import constants
from ikirere.recipe.planner.counts import Counts
from ikirere.recipe.planner.hardware import Device
from ikirere.recipe.schema import Recipe


@dataclass(frozen=True)
class Decode:
    """One decoding step of all requests at the served length. weights, states: bytes read; seconds: at least."""

    weights: float
    states: float
    seconds: float


def decode_floor(recipe: Recipe, counts: Counts, device: Device) -> Decode:
    """Weights in 16 bits are read once, and of each request's state what its mixers read; operations, kernels and
    transfers between devices come on top."""
    model, serve = recipe.model, recipe.serve
    context = serve.max_model_len or model.max_position_embeddings
    state = sum(model.mixer(name).read_bytes(model, context, serve.kv_cache_bits) for name in model.layers)
    weights, states = float(counts.total * constants.HALF), serve.max_num_seqs * state
    bandwidth = recipe.hardware.count * device.bandwidth
    return Decode(weights, states, (weights + states) / bandwidth)
