"""A mixer is one class and one registry line: a recurrent one, made here, packs, decodes and mixes with attention."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub import why_no_public_class
from ikirere.model.layers.mixer import ForwardContext, Linear, Mixer
from ikirere.model.layers.mixers import MIXERS


class DecayState:
    """One running sum for each row."""

    def __init__(self, batch: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.sums = torch.zeros(batch, size, dtype=dtype, device=device)

    def reset(self, row: int) -> None:
        self.sums[row] = 0

    def copy(self, source: int, target: int, length: int) -> None:
        self.sums[target] = self.sums[source]

    @property
    def bytes(self) -> int:
        return self.sums.numel() * self.sums.element_size()


class Decay(Mixer):
    """s_t = a s_(t-1) + x_t, with one learned rate a per channel."""

    settings = ("rate",)

    def __init__(self, config: ModelConfig, settings: Mapping[str, Any]) -> None:
        super().__init__(config, settings)
        self.value = settings.get("rate", 0.5)
        self.rate = torch.nn.Parameter(torch.empty(config.hidden_size))
        self.o_proj = Linear(config.hidden_size, config.hidden_size)

    def init_weights(self, generator: torch.Generator) -> None:
        self.rate.fill_(self.value)

    def forward(self, x: Tensor, context: ForwardContext, state: DecayState | None = None) -> Tensor:
        step = context.step
        memory = state is not None and step is not None
        held = state.sums[step.column[:, 0]] if memory else torch.zeros_like(x[:, 0])
        kept, out = held, []
        for t in range(x.shape[1]):
            if context.document_ids is not None and t:
                same = context.document_ids[:, t] == context.document_ids[:, t - 1]
                held = held * same[:, None]
            held = held * self.rate + x[:, t]
            out.append(held)
            real = memory and step.counts is not None
            kept = torch.where((t < step.counts)[:, None], held, kept) if real else held
        if memory:
            state.sums[step.column[:, 0]] = kept.detach()
        return self.o_proj(torch.stack(out, 1))

    @classmethod
    def new_state(
        cls, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> DecayState:
        return DecayState(batch, config.hidden_size, dtype, device)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    monkeypatch.setitem(MIXERS, "decay", Decay)
    shape = ModelConfig(
        40, 16, 3, 2, 1, 24, 64, layer_pattern="decay*2 full", mixers={"decay": {"rate": 0.7}}
    )
    return Decoder(shape)


def test_pattern_settings_and_start(model: Decoder) -> None:
    assert [type(b.mixer).__name__ for b in model.blocks()] == ["Decay", "Decay", "FullAttention"]
    assert torch.equal(model.layers[0].mixer.rate, torch.full((16,), 0.7))
    assert "only 'full' layers" in str(why_no_public_class(model.config))


def test_packed_documents_stay_apart(model: Decoder) -> None:
    tokens = torch.randint(0, 40, (1, 12))
    documents = torch.tensor([[0] * 5 + [1] * 7])
    apart = torch.cat([model(tokens[:, :5]), model(tokens[:, 5:])], 1)
    torch.testing.assert_close(model(tokens, None, documents), apart)


def test_decoding_continues_a_prefill(model: Decoder) -> None:
    tokens = torch.randint(0, 40, (2, 10))
    with torch.no_grad():
        whole = model(tokens)
        cache = KVCache(model.config, 3, 10)
        rows = torch.tensor([2, 0])
        first = model(tokens[:, :6], cache=cache, rows=rows, counts=torch.tensor([6, 4]))
        torch.testing.assert_close(first[0], whole[0, :6])
        pieces = torch.stack([tokens[0, 6:8], tokens[1, 4:6]])
        second = model(pieces, cache=cache, rows=rows)
        torch.testing.assert_close(second, torch.stack([whole[0, 6:8], whole[1, 4:6]]))
        cache.copy(0, 1)
        third = model(tokens[1:, 6:7], cache=cache, rows=torch.tensor([1]))
        torch.testing.assert_close(third, whole[1:, 6:7])
    assert len(cache.keys) == 1
    cache.reset(1)
    assert not cache.layers[0].sums[1].any()
