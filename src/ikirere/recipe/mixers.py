"""Layer patterns, and the settings of each mixer that a pattern may name.

A pattern is mixer names repeated to the model's depth: `full`, `kda*3 full`, `window*5 full`.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, field_validator

from ikirere.errors import UserError
from ikirere.recipe.renamed import old_key
from ikirere.recipe.sections import Fraction, Positive, Section


class Full(Section):
    """Causal attention over all tokens of the document."""

    rope: bool = Field(default=True, description="false: no positions (NoPE), as beside KDA layers")
    rope_theta: float | None = Field(
        default=None, gt=0, description="base of this kind of layer; default: the model's"
    )
    rope_scaling: Literal["none", "yarn", "ntk"] = "none"
    original_max_position_embeddings: Positive | None = Field(
        default=None, description="context before rope_scaling"
    )
    learned_sinks: bool = Field(
        default=False, description="one more logit per head, without a value (gpt-oss)"
    )


class Window(Full):
    """Causal attention over the last `window` tokens."""

    window: Positive = 8192
    sinks: int = Field(default=0, ge=0, description="first tokens that always stay visible")
    sink_positions: Literal["kept", "renumbered"] = Field(
        default="kept",
        description="renumbered: a sink is never farther away than its place in the cache, so rows may grow "
        "past max_position_embeddings (StreamingLLM)",
    )


class Hybrid(Section):
    """Local window, one learned summary per block, exact attention to the blocks the summaries select."""

    window: Positive = Field(default=8192, description="tokens of the local window")
    block_size: Positive = Field(default=1024, description="tokens per block and summary")
    top_k: Positive = Field(default=8, description="blocks attended exactly")
    selection_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the loss that teaches summaries which blocks exact attention would read",
    )
    rope: bool = Field(default=True, description="false: no positions (NoPE), as beside window layers")
    rope_scaling: Literal["none", "yarn", "ntk"] = "yarn"
    original_max_position_embeddings: Positive | None = Field(
        default=None, description="context before rope_scaling"
    )


class Kda(Section):
    """Kimi Delta Attention: gated delta rule with one decay per key channel."""

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


class MlaSizes(NamedTuple):
    """The widths of multi-head latent attention, defaults filled in; a query_rank of 0 is none."""

    rank: int
    query_rank: int
    nope: int
    shared: int
    value: int


class Mla(Section):
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


class Mlp(Section):
    """A gated network over all positions in place of attention, in `recursive` models of one sequence length."""

    intermediate_size: Positive | None = Field(
        default=None, description="default: 8/3 of the positions, rounded up to a multiple of 256"
    )

    def width(self, positions: int) -> int:
        """Width of the network between its matrices."""
        return self.intermediate_size or -(-round(positions * 8 / 3) // 256) * 256


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
        """Of what the state holds, and of its gate."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Of the convolution: the inputs, and the state's keys and queries."""
        return self.width + 2 * self.groups * self.state


class Mamba2(Section):
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


class RetentionSizes(NamedTuple):
    """The widths of a retention layer, defaults filled in."""

    heads: int
    key: int
    value: int
    chunk: int


class Retention(Section):
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


class Recursive(Section):
    """Recursion over depth of a `recursive` model (arXiv 2510.04871)."""

    inner_updates: Positive = Field(default=6, description="n: updates of the latent per cycle")
    cycles: Positive = Field(
        default=3, description="T: cycles per supervision step, the last one with gradient"
    )
    supervision_steps: Positive = 16
    halt_exploration: Fraction = 0.1
    puzzle_tokens: Positive = 16
    puzzles: int = Field(
        default=0, ge=0, description="rows of the table of puzzle embeddings; 0: no table, zeros in front"
    )
    ema: Fraction = 0.999
    bidirectional: bool = Field(default=True, description="causal mixers run forward and time-reversed")


MIXERS: dict[str, type[Section]] = {
    "full": Full,
    "window": Window,
    "hybrid": Hybrid,
    "kda": Kda,
    "mla": Mla,
    "mlp": Mlp,
    "mamba2": Mamba2,
    "retention": Retention,
}
SETTINGS: dict[str, type[Section]] = {**MIXERS, "recursive": Recursive}

_PART = re.compile(r"([a-z][a-z0-9_]*)(?:\*([1-9][0-9]{0,2}))?")


def period(pattern: str) -> tuple[str, ...]:
    """The mixers of one period: `kda*3 full` -> (kda, kda, kda, full). Raises ValueError."""
    names: list[str] = []
    for part in pattern.split():
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"layer pattern {pattern!r}: {part!r} is not NAME or NAME*COUNT")
        if match[1] not in MIXERS:
            raise ValueError(
                f"layer pattern {pattern!r}: no mixer {match[1]}; mixers are {', '.join(MIXERS)}"
            )
        names += [match[1]] * int(match[2] or 1)
    if not names:
        raise ValueError("layer pattern is empty; write 'full' for attention in every layer")
    return tuple(names)


def layers(pattern: str, depth: int) -> tuple[str, ...]:
    """The mixer of each layer. Raises ValueError."""
    one = period(pattern)
    return tuple(one[i % len(one)] for i in range(depth))


def settings(name: str, values: dict[str, Any]) -> Section:
    """The checked settings of a mixer. Raises ValueError naming the key and the accepted ones."""
    if name not in SETTINGS:
        raise ValueError(f"mixers.{name}: no such mixer; accepted: {', '.join(SETTINGS)}")
    try:
        return SETTINGS[name].model_validate(values)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in detail["loc"])
        if (answer := old_key((name, key))) is not None:
            raise ValueError(f"mixers.{name}.{key}: {answer}") from None
        accepted = ", ".join(SETTINGS[name].model_fields)
        raise ValueError(f"mixers.{name}.{key}: {detail['msg']}; accepted keys: {accepted}") from None
