"""States that decay by one number per head: Mamba-2 (arXiv 2405.21060) and retention (arXiv 2307.08621).

Kept activations were counted with saved_tensors_hooks over 12 shapes of whole chunks (largest error 1%).
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

from pydantic import Field

from ikirere.errors import UserError
from ikirere.recipe.mixers.base import STATE_BYTES, MixerSection
from ikirere.recipe.section import Positive
from ikirere.recipe.shape import ModelShape, SmallShape

STATE_FLOPS = 5.0  # of each entry of the state: decay 1, write 2, output 2
MAMBA2_COPIES = 10  # of the inner width: what is convolved, written, read, gated and normed
MAMBA2_STATE_COPIES = 6  # of the keys and queries of each group
MAMBA2_PER_HEAD = 5  # scales
RETENTION_VALUE_COPIES = 6
RETENTION_PER_HEAD = 4
DOCUMENT_STARTS = 2  # packed rows: where documents begin


class Mamba2Sizes(NamedTuple):
    """The widths of a Mamba-2 layer, defaults filled in."""

    heads: int
    head_dim: int
    groups: int
    state: int
    conv_size: int
    chunk: int

    @property
    def width(self) -> int:
        """Width of what the state holds, and of its gate."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: the inputs, and the state's keys and queries."""
        return self.width + 2 * self.groups * self.state


class Mamba2(MixerSection):
    """Mamba-2: a state that decays by one number per head and token, set by the token."""

    state_size: Positive = Field(default=128, description="numbers that each channel remembers")
    expand: Positive | None = Field(
        default=None, description="inner width over hidden_size; default: 2, or what num_heads makes"
    )
    head_dim: Positive = 64
    num_heads: Positive | None = Field(
        default=None, description="default: expand * hidden_size / head_dim; given, it sets the inner width"
    )
    n_groups: Positive = Field(default=1, description="sets of keys and queries that heads share")
    conv_size: Positive = 4
    chunk_size: Positive = Field(default=64, description="tokens worked on at once")

    def sizes(self, hidden: int) -> Mamba2Sizes:
        """All widths for a model of `hidden` channels. Raises UserError naming the key that does not fit."""
        key, inner = "model.mixers.mamba2", (self.expand or 2) * hidden
        if self.num_heads and self.expand and self.num_heads * self.head_dim != inner:
            raise UserError(
                f"{key}.num_heads {self.num_heads} x head_dim {self.head_dim} is not expand {self.expand} x "
                f"hidden_size {hidden}; leave one of num_heads and expand out"
            )
        if not self.num_heads and inner % self.head_dim:
            raise UserError(
                f"{key}.head_dim {self.head_dim} does not divide the inner width {inner} (expand x hidden_size)"
            )
        heads = self.num_heads or inner // self.head_dim
        if heads % self.n_groups:
            raise UserError(f"{key}.n_groups {self.n_groups} does not divide the {heads} heads")
        return Mamba2Sizes(
            heads, self.head_dim, self.n_groups, self.state_size, self.conv_size, self.chunk_size
        )

    def parameters(self, model: ModelShape) -> tuple[int, int]:
        """Section 7.1 of the paper."""
        s = self.sizes(model.hidden_size)
        matrices = model.hidden_size * (2 * s.width + s.channels + s.heads)
        return matrices, s.channels * (s.conv_size + 1) + 3 * s.heads + s.width

    def forward_flops(self, model: ModelShape, length: int) -> float:
        s = self.sizes(model.hidden_size)
        return self.product_flops(model) + STATE_FLOPS * s.width * s.state

    def activation_elements(self, model: ModelShape, length: int, packed: bool) -> tuple[float, float]:
        s = self.sizes(model.hidden_size)
        single = MAMBA2_COPIES * s.width + s.heads * (MAMBA2_PER_HEAD + s.chunk) + s.groups
        single += MAMBA2_STATE_COPIES * s.groups * s.state + s.width * (s.groups > 1)
        return (
            single + s.width * s.state / s.chunk + DOCUMENT_STARTS * packed,
            s.width + s.channels + s.heads,
        )

    def state_bytes(self, model: ModelShape, context: int, bits: int) -> float:
        """State of each head, and last inputs of the convolution."""
        s = self.sizes(model.hidden_size)
        return (s.width * s.state + s.channels * (s.conv_size - 1)) * STATE_BYTES

    def shrunk(self, model: ModelShape, small: SmallShape) -> Self:
        """Heads fill the new inner width, and groups divide the heads."""
        s = self.sizes(model.hidden_size)
        inner = small.multiple(s.width / model.hidden_size * small.hidden)
        head_dim = math.gcd(inner, small.head_dim)
        heads = inner // head_dim
        return self.model_copy(
            update={
                "head_dim": head_dim,
                "num_heads": self.num_heads and heads,
                "state_size": min(s.state, small.chunk),
                "n_groups": math.gcd(s.groups, heads),
                "chunk_size": min(s.chunk, small.chunk),
            }
        )


class RetentionSizes(NamedTuple):
    """The widths of a retention layer, defaults filled in."""

    heads: int
    key: int
    value: int
    chunk: int


class Retention(MixerSection):
    """Retention (RetNet): a state that decays by one fixed number per head."""

    num_heads: Positive | None = Field(default=None, description="default: the model's num_attention_heads")
    head_dim: Positive | None = Field(default=None, description="of keys; default: the model's head_dim")
    value_head_dim: Positive | None = Field(default=None, description="default: 2 * head_dim")
    rope: bool = Field(default=True, description="false: no positions but the decay's")
    rope_theta: float | None = Field(default=None, gt=0, description="default: the model's")
    chunk_size: Positive = Field(default=64, description="tokens worked on at once")

    def sizes(self, heads: int, head_size: int) -> RetentionSizes:
        """All widths for a model of `heads` heads of `head_size`. Raises UserError for an odd width with rope."""
        key = self.head_dim or head_size
        if self.rope and key % 2:
            raise UserError(
                f"model.mixers.retention.head_dim {key} is odd; rope turns pairs, so it must be even"
            )
        return RetentionSizes(self.num_heads or heads, key, self.value_head_dim or 2 * key, self.chunk_size)

    def _sizes(self, model: ModelShape) -> RetentionSizes:
        return self.sizes(model.num_attention_heads, model.head_size)

    def parameters(self, model: ModelShape) -> tuple[int, int]:
        """Section 2.2 of the paper."""
        s = self._sizes(model)
        return model.hidden_size * s.heads * (2 * s.key + 3 * s.value), s.value

    def forward_flops(self, model: ModelShape, length: int) -> float:
        s = self._sizes(model)
        return self.product_flops(model) + STATE_FLOPS * s.heads * s.key * s.value

    def activation_elements(self, model: ModelShape, length: int, packed: bool) -> tuple[float, float]:
        s = self._sizes(model)
        per_head = RETENTION_VALUE_COPIES * s.value + 2 * s.key + RETENTION_PER_HEAD + s.chunk
        state = s.key * s.value / s.chunk
        return s.heads * (per_head + state) + DOCUMENT_STARTS * packed, 2 * s.heads * s.value

    def state_bytes(self, model: ModelShape, context: int, bits: int) -> float:
        s = self._sizes(model)
        return s.heads * s.key * s.value * STATE_BYTES

    def shrunk(self, model: ModelShape, small: SmallShape) -> Self:
        return self.model_copy(
            update={
                "num_heads": self.num_heads and small.heads,
                "head_dim": self.head_dim and small.head_dim,
                "value_head_dim": self.value_head_dim and 2 * small.head_dim,
                "chunk_size": min(self.chunk_size, small.chunk),
            }
        )
