"""The shape of a network: what `Decoder` is built from and what `hub` writes into config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from ikirere.errors import UserError
from ikirere.recipe import ffns, mixers
from ikirere.recipe.renamed import translated
from ikirere.recipe.schema import Model

T = TypeVar("T")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder, field for field that of `recipe.schema.Model`; `head_dim` is always resolved.

    Sizes count elements; `max_position_embeddings` is in tokens. Raises UserError, naming the field,
    for shapes that cannot exist.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    max_position_embeddings: int
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    qk_norm: bool = False
    qk_norm_width: str = "head"
    norm_order: str = "pre"
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    layer_pattern: str = "full"
    mixers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    ffn_pattern: str = "dense"
    ffns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    family: str = "decoder"

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if name == "head_dim" and not value:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"model.{name} is {value!r}; a whole number of at least 1 is needed")
        if not self.head_dim:
            if self.hidden_size % self.num_attention_heads:
                raise UserError(
                    f"model.hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                    f"{self.num_attention_heads}; give head_dim or change one of them"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise UserError(f"model.{name} is {value!r}; a number above 0 is needed")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"model.num_attention_heads {self.num_attention_heads} is not divisible by "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim {self.head_dim} is odd; RoPE rotates pairs, so it must be even")
        for name, accepted in (("qk_norm_width", ("head", "full")), ("norm_order", ("pre", "post"))):
            if getattr(self, name) not in accepted:
                raise UserError(
                    f"model.{name} is {getattr(self, name)!r}; accepted are {', '.join(accepted)}"
                )

    @classmethod
    def from_recipe(cls, model: Model) -> ModelConfig:
        """The shape a recipe's `model` section describes."""
        return cls(**{**model.model_dump(), "head_dim": model.head_size})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`. Unknown and missing keys raise UserError."""
        accepted = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - accepted):
            raise UserError(
                f"model: unknown key {', '.join(unknown)}; accepted are {', '.join(sorted(accepted))}"
            )
        required = {name for name in _SIZES if name != "head_dim"}
        if missing := sorted(required - set(values)):
            raise UserError(f"model: missing key {', '.join(missing)}")
        given = {name: translated(name, old) for name, old in values.get("mixers", {}).items()}
        return cls(**{**values, "mixers": given, "head_dim": values.get("head_dim") or 0})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        settings = {part: {n: dict(v) for n, v in getattr(self, part).items()} for part in ("mixers", "ffns")}
        return {**asdict(self), **settings}

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The mixer's name of each layer, `num_hidden_layers` long. Raises UserError."""
        return self.run_as(self.layer_pattern)

    def run_as(self, pattern: str) -> tuple[str, ...]:
        """The mixer's name of each layer under another pattern. Raises UserError."""
        return _or_user_error(lambda: mixers.layers(pattern, self.num_hidden_layers, self.family))

    @property
    def ffn_kinds(self) -> tuple[str, ...]:
        """The feed-forward kind of each layer, `num_hidden_layers` long. Raises UserError."""
        return _or_user_error(lambda: ffns.layers(self.ffn_pattern, self.num_hidden_layers))

    def check_settings(self) -> None:
        """Raises UserError for settings that no mixer or feed-forward of the family takes, naming the key."""
        _or_user_error(lambda: mixers.check(self.mixers, self.family))
        _or_user_error(lambda: [ffns.settings(name, given) for name, given in self.ffns.items()])


def _or_user_error(read: Callable[[], T]) -> T:
    """A recipe's ValueError as the model's error."""
    try:
        return read()
    except ValueError as error:
        raise UserError(f"model.{error}") from None
