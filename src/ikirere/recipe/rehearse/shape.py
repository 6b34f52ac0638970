"""The model of a rehearsal: layer pattern, head ratio, tying and norms are kept, every width shrinks."""

from __future__ import annotations

from ikirere.recipe.mixers import family_of, period
from ikirere.recipe.rehearse.changes import RecipeDraft
from ikirere.recipe.schema import Model, Recipe
from ikirere.recipe.section import Section
from ikirere.recipe.shape import SmallShape

HEADS = 4  # at least so many query heads, so that grouping still means something
PLAIN_LAYERS = 4  # depth where the pattern is one mixer
PERIODS = 2  # of a longer pattern, where the model has so many
WIDE_HEAD, NARROW_HEAD = 32, 16  # head size with fewer than 8 heads, and with more
VOCABULARY = 2048  # ids, special tokens and bytes included
IN_PROPORTION = "in proportion to heads and lengths"


def small_shape(m: Model, patterns: tuple[str, ...], length_ratio: float) -> SmallShape:
    """The rules, applied to any model; one that is small already keeps its shape."""
    group = m.num_attention_heads // m.num_key_value_heads
    kv_heads = -(-HEADS // group)
    heads = kv_heads * group
    head_dim = NARROW_HEAD if heads >= 8 else WIDE_HEAD
    of_heads = m.hidden_size / (m.num_attention_heads * m.head_size)
    hidden = SmallShape.multiple(heads * head_dim * of_heads)
    intermediate = SmallShape.multiple(hidden * (m.intermediate_size / m.hidden_size))
    longest = max(len(period(p, m.family)) for p in (m.layer_pattern, *patterns))
    layers = min(PLAIN_LAYERS if longest == 1 else longest * PERIODS, m.num_hidden_layers)
    if layers * hidden * hidden >= m.num_hidden_layers * m.hidden_size * m.hidden_size:
        kept = (m.num_attention_heads, m.num_key_value_heads, m.head_size, m.hidden_size)
        return SmallShape(*kept, m.intermediate_size, m.num_hidden_layers, length_ratio)
    return SmallShape(heads, kv_heads, head_dim, hidden, intermediate, layers, length_ratio)


def shrink_model(
    draft: RecipeDraft, recipe: Recipe, vocabulary: int, positions: int, length_ratio: float
) -> None:
    """Shrink `model`. `length_ratio`: new over old lengths."""
    m = recipe.model
    patterns = (m.layer_pattern, *(p.attention for p in recipe.pretrain.phases if p.attention))
    draft.set("model.vocab_size", vocabulary, "as many rows as the tokenizer has ids")
    draft.set("model.max_position_embeddings", positions, "the longest sequence that is used")
    s = small_shape(m, patterns, length_ratio)
    if s.hidden != m.hidden_size or s.layers != m.num_hidden_layers:
        ratio = f"{m.num_attention_heads // m.num_key_value_heads} query heads per key head stay"
        widening = f"{m.intermediate_size / m.hidden_size:.3g} x hidden stays"
        draft.set("model.num_attention_heads", s.heads, ratio)
        draft.set("model.num_key_value_heads", s.kv_heads, ratio)
        draft.set("model.head_dim", s.head_dim, "small heads")
        draft.set("model.hidden_size", s.hidden, "heads x head size, in the same proportion")
        draft.set("model.intermediate_size", s.intermediate, widening)
        draft.set(
            "model.num_hidden_layers", s.layers, f"pattern '{m.layer_pattern}' repeated as far as it fits"
        )
    for name in {**m.mixers, **dict.fromkeys(name for p in patterns for name in period(p, m.family))}:
        if name != m.family:
            mixer = m.mixer(name)
            set_section(draft, f"mixers.{name}", mixer, mixer.shrunk(m, s), IN_PROPORTION)
    for name in {**m.ffns, **dict.fromkeys(m.ffn_kinds)}:
        ffn = m.ffn(name)
        set_section(draft, f"ffns.{name}", ffn, ffn.shrunk(m, s), IN_PROPORTION)
    family = family_of(m)
    set_section(draft, f"mixers.{m.family}", family, family.shrunk(), "few calls of the core")


def set_section(draft: RecipeDraft, key: str, before: Section, after: Section, rule: str) -> None:
    """Changes the settings below `model.KEY` that differ; a default that changes is written out first."""
    part, name = key.split(".")
    for setting, value in after:
        if value != getattr(before, setting):
            draft.values["model"][part].setdefault(name, {}).setdefault(setting, getattr(before, setting))
            draft.set(f"model.{key}.{setting}", value, rule)


def width_ratio(before: Model, after: Model) -> float:
    """How many times wider the full model is."""
    return before.hidden_size / after.hidden_size
