"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

from __future__ import annotations

from typing import NamedTuple, Self

from pydantic import Field

from ikirere.recipe.mixers.attention import MASK_PER_PAIR, PER_HEAD, mean_context
from ikirere.recipe.mixers.base import MixerSection
from ikirere.recipe.section import Positive
from ikirere.recipe.shape import ModelShape, SmallShape


class MlaSizes(NamedTuple):
    """The widths of multi-head latent attention, defaults filled in; a query_rank of 0 is none."""

    rank: int
    query_rank: int
    nope: int
    shared: int
    value: int


class Mla(MixerSection):
    """Multi-head latent attention without positions (NoPE): all keys and values come from one vector per token."""

    kv_lora_rank: Positive | None = Field(default=None, description="latent width; default: 4 * head_dim")
    q_lora_rank: Positive | None = Field(
        default=None, description="width that queries pass through; default: none, straight from the input"
    )
    qk_nope_head_dim: Positive | None = Field(
        default=None, description="key channels of each head; default: head_dim"
    )
    qk_rope_head_dim: Positive | None = Field(
        default=None, description="key channels that all heads share, not turned here; default: head_dim / 2"
    )
    v_head_dim: Positive | None = Field(default=None, description="default: head_dim")

    def sizes(self, head_size: int) -> MlaSizes:
        """All widths for a model whose heads are `head_size` wide."""
        return MlaSizes(
            rank=self.kv_lora_rank or 4 * head_size,
            query_rank=self.q_lora_rank or 0,
            nope=self.qk_nope_head_dim or head_size,
            shared=self.qk_rope_head_dim or head_size // 2,
            value=self.v_head_dim or head_size,
        )

    def parameters(self, model: ModelShape) -> tuple[int, int]:
        s, heads, d = self.sizes(model.head_size), model.num_attention_heads, model.hidden_size
        query = heads * (s.nope + s.shared)
        queries = s.query_rank * (d + query) if s.query_rank else d * query
        keys_values = d * (s.rank + s.shared) + s.rank * heads * (s.nope + s.value)
        return queries + keys_values + heads * s.value * d, s.rank + s.query_rank

    def forward_flops(self, model: ModelShape, length: int) -> float:
        s = self.sizes(model.head_size)
        attention = 2.0 * model.num_attention_heads * (s.nope + s.shared + s.value) * mean_context(length)
        return self.product_flops(model) + attention

    def activation_elements(self, model: ModelShape, length: int, packed: bool) -> tuple[float, float]:
        s, heads = self.sizes(model.head_size), model.num_attention_heads
        key = s.nope + s.shared
        single = float(PER_HEAD * heads + 1 + s.rank + s.shared + MASK_PER_PAIR * length * packed)
        # Query, key and output at the kernel's width; value, padded or as a view of the projection that holds the keys too; the latent.
        working = heads * (3 * max(key, s.value) + s.value + (key if s.value < key else s.nope))
        return single, working + s.rank + s.shared + 2 * s.query_rank

    def state_bytes(self, model: ModelShape, context: int, bits: int) -> float:
        """One latent and one shared key per token."""
        s = self.sizes(model.head_size)
        return (s.rank + s.shared) * bits / 8 * context

    def shrunk(self, model: ModelShape, small: SmallShape) -> Self:
        """Widths that are given stay in proportion to the heads'."""
        given = {key: value for key, value in self if value}
        return self.model_copy(
            update={k: max(2, round(v * small.head_dim / model.head_size)) for k, v in given.items()}
        )
