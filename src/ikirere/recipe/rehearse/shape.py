"""The model of a rehearsal: layer pattern, head ratio, tying and norms stay, every width shrinks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ikirere.recipe.mixers import Mamba2, period
from ikirere.recipe.rehearse.changes import RecipeDraft
from ikirere.recipe.schema import Model, Recipe

HEADS = 4  # at least so many query heads, so that grouping still means something
PLAIN_LAYERS = 4  # depth where the pattern is one mixer
PERIODS = 2  # of a longer pattern, where the model has so many
WIDE_HEAD, NARROW_HEAD = 32, 16  # head size with fewer than 8 heads, and with more
MULTIPLE = 16  # widths are rounded to it
STATE = 16  # of a state space
VOCABULARY = 2048  # ids, special tokens and bytes included
# Calls of a recursive core, at most: two cycles keep one without gradient before the one with.
RECURSION = {"inner_updates": 1, "cycles": 2, "supervision_steps": 3, "puzzle_tokens": 4}


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    layers: int


def small_shape(m: Model, patterns: tuple[str, ...]) -> Shape:
    """The rules, applied to any model."""
    group = m.num_attention_heads // m.num_key_value_heads
    kv_heads = -(-HEADS // group)
    heads = kv_heads * group
    head_dim = NARROW_HEAD if heads >= 8 else WIDE_HEAD
    of_heads = m.hidden_size / (m.num_attention_heads * m.head_size)
    hidden = max(MULTIPLE, round(heads * head_dim * of_heads / MULTIPLE) * MULTIPLE)
    widening = m.intermediate_size / m.hidden_size
    intermediate = max(MULTIPLE, round(hidden * widening / MULTIPLE) * MULTIPLE)
    longest = max(len(period(p)) for p in (m.layer_pattern, *patterns))
    layers = PLAIN_LAYERS if longest == 1 else longest * PERIODS
    return Shape(heads, kv_heads, head_dim, hidden, intermediate, min(layers, m.num_hidden_layers))


def shrink_model(
    draft: RecipeDraft, recipe: Recipe, vocabulary: int, positions: int, length_ratio: float
) -> None:
    """Shrink `model`; a model that is small already keeps its shape. `length_ratio`: new over old lengths."""
    m = recipe.model
    patterns = tuple(p.attention for p in recipe.pretrain.phases if p.attention)
    draft.set("model.vocab_size", vocabulary, "as many rows as the tokenizer has ids")
    draft.set("model.max_position_embeddings", positions, "the longest sequence that is used")
    s = small_shape(m, patterns)
    _shrink_mixers(draft, m, s, length_ratio)
    if s.layers * s.hidden * s.hidden >= m.num_hidden_layers * m.hidden_size * m.hidden_size:
        return
    group = m.num_attention_heads // m.num_key_value_heads
    ratio = f"{group} query heads per key head stay"
    draft.set("model.num_attention_heads", s.heads, ratio)
    draft.set("model.num_key_value_heads", s.kv_heads, ratio)
    draft.set("model.head_dim", s.head_dim, "small heads")
    draft.set("model.hidden_size", s.hidden, "heads x head size, in the same proportion")
    draft.set(
        "model.intermediate_size", s.intermediate, f"{m.intermediate_size / m.hidden_size:.3g} x hidden stays"
    )
    draft.set("model.num_hidden_layers", s.layers, f"pattern '{m.layer_pattern}' repeated as far as it fits")
    if any("mamba2" in period(p) for p in (m.layer_pattern, *patterns)):
        _shrink_mamba2(draft, m, s)


def _shrink_mixers(draft: RecipeDraft, m: Model, s: Shape, length_ratio: float) -> None:
    def scaled(tokens: int) -> int:
        return max(4, round(tokens * length_ratio))

    lengths = {
        "window": ("window",),
        "hybrid": ("window", "block_size", "original_max_position_embeddings"),
    }
    for name, values in m.mixers.items():
        new: dict[str, Any] = {}
        if name == "kda":
            new = {"head_dim": s.head_dim, "gate_rank": s.head_dim, "chunk_size": 16}
        elif name == "retention":
            new = {
                "head_dim": s.head_dim,
                "value_head_dim": 2 * s.head_dim,
                "num_heads": s.heads,
                "chunk_size": 16,
            }
        if name == "recursive":
            few = {key: min(value, values[key]) for key, value in RECURSION.items() if key in values}
            for key, value in few.items():
                draft.set(f"model.mixers.{name}.{key}", value, "few calls of the core")
        for key in lengths.get(name, ()):
            if values.get(key):
                new[key] = scaled(values[key])
        for key, value in new.items():
            if key in values:
                draft.set(f"model.mixers.{name}.{key}", value, "in proportion to heads and lengths")


def _shrink_mamba2(draft: RecipeDraft, m: Model, s: Shape) -> None:
    """Heads must fill the new inner width and groups divide the heads, so defaults are written out too."""
    settings = m.mixer("mamba2")
    assert isinstance(settings, Mamba2)
    before = settings.sizes(m.hidden_size)
    inner = max(MULTIPLE, round(before.width / m.hidden_size * s.hidden / MULTIPLE) * MULTIPLE)
    head_dim = math.gcd(inner, s.head_dim)
    heads = inner // head_dim
    new = {
        "head_dim": head_dim,
        "state_size": min(before.state, STATE),
        "n_groups": math.gcd(before.groups, heads),
        "chunk_size": min(before.chunk, 16),
    }
    if settings.num_heads:
        new["num_heads"] = heads
    values = draft.values["model"]["mixers"].setdefault("mamba2", {})
    for key, value in new.items():
        values.setdefault(key, getattr(settings, key))
        draft.set(f"model.mixers.mamba2.{key}", value, "in proportion to heads and lengths")


def width_ratio(before: Model, after: Model) -> float:
    """How many times wider the full model is."""
    return before.hidden_size / after.hidden_size
