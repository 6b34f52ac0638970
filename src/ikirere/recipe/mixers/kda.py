"""Kimi Delta Attention (Kimi Team 2025, arXiv 2510.26692; fla-core `fla/layers/kda.py`, without biases).

Kept activations of the chunked form were counted with saved_tensors_hooks over 8 shapes of whole chunks (largest error 2%).
"""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, field_validator

from ikirere.recipe.mixers.base import STATE_BYTES, MixerSection
from ikirere.recipe.section import Positive
from ikirere.recipe.shape import ModelShape, SmallShape

# fp32 head widths: inputs and outputs of the convolutions, decays, what chunks read, erase and write, values, gate, norm.
COPIES = 22
SQUARES = 4  # of one chunk, per head
PER_HEAD = 5  # scales


class Kda(MixerSection):
    """Kimi Delta Attention: gated delta rule with one decay per key channel."""

    families: ClassVar[tuple[str, ...]] = ("decoder", "recursive")
    one_direction: ClassVar[bool] = True

    head_dim: Positive = 128
    num_heads: Positive | None = Field(default=None, description="default: the model's num_attention_heads")
    conv_size: Positive = 4
    gate_rank: Positive | None = Field(default=None, description="default: head_dim")
    chunk_size: Positive = Field(default=64, description="tokens worked on at once; a power of two")

    @field_validator("chunk_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"{value} is not a power of two; accepted are 16, 32, 64, 128 and so on")
        return value

    def sizes(self, model: ModelShape) -> tuple[int, int, int]:
        """(heads, width of all heads, rank of the gates)."""
        heads = self.num_heads or model.num_attention_heads
        return heads, heads * self.head_dim, self.gate_rank or self.head_dim

    def parameters(self, model: ModelShape) -> tuple[int, int]:
        heads, width, rank = self.sizes(model)
        projections = 4 * model.hidden_size * width  # query, key, value, output
        gates = 2 * rank * (model.hidden_size + width)  # decay and output gate, each down then up
        write_strength = model.hidden_size * heads
        vectors = 3 * width * self.conv_size + heads + width + self.head_dim  # A_log, dt_bias, head norm
        return projections + gates + write_strength, vectors

    def forward_flops(self, model: ModelShape, length: int) -> float:
        """For each entry of the state: decay 1, read S^T k 2, write k (..)^T 2, output S^T q 2."""
        return self.product_flops(model) + 7.0 * self.sizes(model)[1] * self.head_dim

    def activation_elements(self, model: ModelShape, length: int, packed: bool) -> tuple[float, float]:
        heads, width, rank = self.sizes(model)
        single = width * self.head_dim / self.chunk_size  # a state per chunk
        single += COPIES * width + heads * (SQUARES * self.chunk_size + PER_HEAD)
        if packed:  # which pairs are of one document, and one square that it masks
            single += (heads + 1) * self.chunk_size
        return single, width + 2 * rank

    def state_bytes(self, model: ModelShape, context: int, bits: int) -> float:
        """State of each head, and last inputs of the three convolutions."""
        return self.sizes(model)[1] * (self.head_dim + 3 * (self.conv_size - 1)) * STATE_BYTES

    def shrunk(self, model: ModelShape, small: SmallShape) -> Self:
        return self.model_copy(
            update={
                "head_dim": small.head_dim,
                "num_heads": self.num_heads and small.heads,
                "gate_rank": self.gate_rank and small.head_dim,
                "chunk_size": min(self.chunk_size, small.chunk),
            }
        )
