"""Memory of generation: one independent slot per sequence, of different lengths, in every layer."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from ikirere.model.config import ModelConfig
from ikirere.model.layers.attention import KVState
from ikirere.model.layers.mixer import CacheStep
from ikirere.model.layers.mixers import mixers_of


class KVCache:
    """`batch` rows of at most `capacity` tokens, each with its own length.

    layers: the state of each layer, of the mixer's own kind.
    lengths: LongTensor [batch], tokens held by each row. It lives on the CPU whatever `device` is, so that
    planning a pass never waits for an accelerator.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.capacity, self.device = config, capacity, torch.device(device)
        self.layers = [m.new_state(config, batch, capacity, dtype, self.device) for m in mixers_of(config)]
        self.lengths = torch.zeros(batch, dtype=torch.long)

    @property
    def keys(self) -> list[Tensor]:
        """Keys of each attention layer, [batch, kv_heads, capacity, head_dim]."""
        return [state.keys for state in self.layers if isinstance(state, KVState)]

    @property
    def values(self) -> list[Tensor]:
        """Values of each attention layer, [batch, kv_heads, capacity, head_dim]."""
        return [state.values for state in self.layers if isinstance(state, KVState)]

    @property
    def bytes(self) -> int:
        """Memory held by all layers."""
        return sum(state.bytes for state in self.layers)

    def reset(self, row: int) -> None:
        """Empties a row for the next sequence."""
        for state in self.layers:
            state.reset(row)
        self.lengths[row] = 0

    def copy(self, source: int, target: int) -> None:
        """Makes row `target` a copy of row `source`, which can then go another way."""
        length = int(self.lengths[source])
        for state in self.layers:
            state.copy(source, target, length)
        self.lengths[target] = length

    def plan(self, shape: tuple[int, int], rows: Tensor | None, counts: Tensor | None) -> CacheStep:
        """The step that appends tokens of `shape` [B, T] to `rows` (default: all), of which `counts` [B] are real.

        Raises ValueError where rows and tokens do not match, a row is named twice or unknown, or one would overflow.
        """
        batch, length = shape
        picked = list(range(len(self.lengths))) if rows is None else rows.tolist()
        if (
            len(set(picked)) != batch
            or len(picked) != batch
            or not set(picked) <= set(range(len(self.lengths)))
        ):
            raise ValueError(f"{batch} sequences for the rows {picked} of a cache of {len(self.lengths)}")
        starts = self.lengths[picked]
        real = torch.full((batch,), length) if counts is None else counts.cpu()
        if batch == 0 or len(real) != batch or int(real.min()) < 1 or int(real.max()) > length:
            raise ValueError(f"each of {batch} rows takes 1 to {length} tokens, got {real.tolist()}")
        ends = starts + real
        end = int(ends.max())
        if end > self.capacity:
            raise ValueError(f"a row would hold {end} tokens; the cache's capacity is {self.capacity}")
        # Padding repeats the position of its row's last real token.
        cache_positions = torch.minimum(starts[:, None] + torch.arange(length), ends[:, None] - 1)
        neighbours = picked == list(range(picked[0], picked[0] + batch))
        column = torch.tensor(picked, device=self.device).unsqueeze(1)
        return CacheStep(
            picked=tuple(picked),
            rows=slice(picked[0], picked[0] + batch) if neighbours else column[:, 0],
            column=column,
            starts=starts.to(self.device),
            start=int(starts[0]) if bool((starts == starts[0]).all()) else None,
            ends=ends,
            end=end,
            cache_positions=cache_positions.to(self.device),
            counts=None if bool((real == length).all()) else real.to(self.device),
        )

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError, naming the first field, for a model of another shape than the one this was made for."""
        if self.config is config:
            return
        mine, other = asdict(self.config), asdict(config)
        # Phases of training change the base of RoPE; cached keys and values stay as they are.
        differing = [name for name in mine if mine[name] != other[name] and name != "rope_theta"]
        if differing:
            name = differing[0]
            raise ValueError(
                f"the cache was made for a model with {name} {mine[name]!r}; this one has {other[name]!r}"
            )

    def advance(self, step: CacheStep) -> None:
        """Counts the tokens of a step that every layer has stored."""
        self.lengths[list(step.picked)] = step.ends
