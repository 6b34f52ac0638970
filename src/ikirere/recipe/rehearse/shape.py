"""The model of a rehearsal: layer pattern, head ratio, tying and norms stay, every width shrinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ikirere.recipe.mixers import period
from ikirere.recipe.rehearse.changes import Draft
from ikirere.recipe.schema import Model, Recipe

HEADS = 4  # at least so many query heads, so that grouping still means something
PLAIN_LAYERS = 4  # depth where the pattern is one mixer
PERIODS = 2  # of a longer pattern, where the model has so many
WIDE_HEAD, NARROW_HEAD = 32, 16  # head size with fewer than 8 heads, and with more
MULTIPLE = 16  # widths are rounded to it
VOCABULARY = 2048  # ids, special tokens and bytes included


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


def shrink_model(draft: Draft, recipe: Recipe, vocabulary: int, positions: int, length_ratio: float) -> None:
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


def _shrink_mixers(draft: Draft, m: Model, s: Shape, length_ratio: float) -> None:
    def scaled(tokens: int) -> int:
        return max(4, round(tokens * length_ratio))

    lengths = {
        "window": ("window",),
        "hybrid": ("local_chunk", "global_stride", "original_max_position_embeddings"),
    }
    for name, values in m.mixers.items():
        new: dict[str, Any] = {}
        if name == "kda":
            new = {"head_dim": s.head_dim, "gate_rank": s.head_dim, "chunk_size": 16}
        for key in lengths.get(name, ()):
            if values.get(key):
                new[key] = scaled(values[key])
        for key, value in new.items():
            if key in values:
                draft.set(f"model.mixers.{name}.{key}", value, "in proportion to heads and lengths")


def width_ratio(before: Model, after: Model) -> float:
    """How many times wider the full model is."""
    return before.hidden_size / after.hidden_size
