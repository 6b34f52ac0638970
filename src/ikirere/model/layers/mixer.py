"""What every token mixer (attention and its relatives) is given, gives back and remembers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.layers.rope import RopeSpec
from ikirere.recipe.section import Section, checked


class Linear(nn.Linear):
    """A matrix without bias, uninitialised: `Decoder.reset_parameters` or `hub` fills it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: drawing here would cost time and disturb the global random state."""


@dataclass(frozen=True)
class CacheStep:
    """Where a forward pass with a cache reads and writes. B is the number of rows given, T the tokens of each row.

    picked: the cache's slots. rows: the same to index with, a slice where they are neighbours, else LongTensor [B].
    column: the same as LongTensor [B, 1], to index together with `cache_positions`.
    starts: LongTensor [B], tokens each row held before this pass. start: their value where all are equal.
    ends: LongTensor [B] on the CPU, tokens each row holds after this pass. end: the longest of them.
    cache_positions: LongTensor [B, T], the position of each token within its cache row.
    counts: LongTensor [B], real tokens per row where the rest is padding on the right; None where all are real.
    """

    picked: tuple[int, ...]
    rows: slice | Tensor
    column: Tensor
    starts: Tensor
    start: int | None
    ends: Tensor
    end: int
    cache_positions: Tensor
    counts: Tensor | None


@dataclass(frozen=True)
class ForwardContext:
    """What all layers of one forward pass share; built once per pass.

    positions: LongTensor [B, T], restarting at 0 with each document.
    rope_tables: for each `RopeSpec` of the model what `rope.rotate` takes: cos, sin, fp32 [B, T, 1, head_dim].
    document_ids: LongTensor [B, T] where rows hold several documents, else None.
    mask: bool [B, 1, T, S], True where a token may look at one of the S held; None where `causal` is enough.
    causal: no token before this pass is looked at, and each sees those up to itself; a mask already holds that.
    step: the cache's side of this pass, None without a cache.
    """

    positions: Tensor
    rope_tables: tuple[tuple[Tensor, Tensor], ...]
    document_ids: Tensor | None
    mask: Tensor | None
    causal: bool
    step: CacheStep | None = None


class MixerCache(Protocol):
    """What one layer remembers between passes, for `batch` independent rows."""

    def reset(self, row: int) -> None:
        """Forgets a row."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Makes row `target` equal to row `source`, which holds `length` tokens."""

    @property
    def bytes(self) -> int:
        """Memory held."""


class Mixer(nn.Module):
    """Base of all mixers: x [B, T, hidden_size] -> the same shape, mixing along T.

    A mixer must honour `context.document_ids` (nothing passes from one document to the next), and with a
    state must continue what earlier passes left there, so that splitting a sequence changes nothing.
    """

    residual_projections: ClassVar[tuple[str, ...]] = ("o_proj",)
    """Matrices that write into the residual stream; they start smaller."""
    keep_fp32: ClassVar[tuple[str, ...]] = ()
    """Parameters that stay fp32, also after `.to(bfloat16)`: decays, whose rounding would add up over every token."""
    rope_index: int = 0
    """Which of `context.rope_tables` is this layer's; the decoder sets it."""
    runs_as: ClassVar[tuple[str, ...]] = ()
    """Names of other mixers as which its weights can also run, while training, without a cache."""
    mode: str = ""
    """As which mixer it runs: its own name or one of `runs_as`; the decoder sets it."""
    auxiliary: Tensor | None = None
    """What the last forward pass in training adds to the loss."""
    auxiliary_name: ClassVar[str] = "auxiliary_loss"
    """The name of `auxiliary` in the log."""

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__()

    @classmethod
    def rope(cls, config: ModelConfig, settings: Mapping[str, Any]) -> RopeSpec | None:
        """The rotary positions that the layer uses; None for none."""
        return None

    @classmethod
    def rope_as(cls, mode: str, config: ModelConfig, settings: Mapping[str, Any]) -> RopeSpec | None:
        """The rotary positions that the layer uses as one of `runs_as`."""
        return cls.rope(config, settings)

    @property
    def needs_mask(self) -> bool:
        """Whether it reads `context.mask`, whose size is the square of the length."""
        return True

    @classmethod
    def unbounded(cls, config: ModelConfig, settings: Mapping[str, Any]) -> bool:
        """Whether rows may grow past `max_position_embeddings`: no distance is ever larger than those of shorter rows,
        and the memory of a row does not grow."""
        return False

    def forward(self, x: Tensor, context: ForwardContext, state: Any = None) -> Tensor:
        raise TypeError(f"{type(self).__name__} mixes nothing; write its forward")

    def init_weights(self, generator: torch.Generator) -> None:
        """Sets what is neither a normal matrix nor a norm (decay rates, biases), after all else is drawn."""

    @classmethod
    def new_state(
        cls, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> MixerCache:
        """An empty memory for `batch` rows of at most `capacity` tokens."""
        raise TypeError(f"{cls.__name__} remembers nothing; write its new_state")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: getattr(self, name).data for name in self.keep_fp32}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            parameter = getattr(self, name)
            if parameter.dtype.itemsize < before.dtype.itemsize:
                parameter.data = before.to(parameter.device)
        return self


S = TypeVar("S", bound=Section)


def settings_of(kind: type[S], name: str, given: Mapping[str, Any], key: str = "mixers") -> S:
    """The checked settings of the part `name` below `model.KEY`, of the class `kind`, defaults filled in. Raises UserError
    naming the key of one that cannot be."""
    try:
        return checked(key, {name: kind}, name, given)
    except ValueError as error:
        raise UserError(f"model.{error}") from None
