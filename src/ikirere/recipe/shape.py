"""What the sections of mixers, feed-forwards and families may ask of the model that they are part of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ikirere.recipe.section import Section

MULTIPLE = 16  # widths of a rehearsal are rounded to it


class ModelShape(Protocol):
    """The keys of `schema.Model` that counts depend on."""

    @property
    def family(self) -> str: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def qk_norm_width(self) -> str: ...
    @property
    def mixers(self) -> Mapping[str, Mapping[str, Any]]: ...


@dataclass(frozen=True)
class SmallShape:
    """Sizes of a rehearsal's model, and how its sections scale with them. length_ratio: new over old lengths."""

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    layers: int
    length_ratio: float
    chunk: ClassVar[int] = 16  # tokens of a chunk and width of a state, at most

    def lengths(self, section: Section, *keys: str) -> dict[str, int]:
        """The section's given lengths in tokens, scaled."""
        given = {key: getattr(section, key) for key in keys}
        return {key: max(4, round(n * self.length_ratio)) for key, n in given.items() if n}

    @staticmethod
    def multiple(width: float) -> int:
        """The width as a multiple of 16, at least 16."""
        return max(MULTIPLE, round(width / MULTIPLE) * MULTIPLE)
