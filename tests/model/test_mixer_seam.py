"""A mixer is a section that counts it and a layer that computes it, with one registry line each: one that is made here is
planned, rehearsed, built, trained and decoded, and neither planner nor rehearsal names a mixer."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub import why_no_public_class
from ikirere.model.layers.ffns import FFNS
from ikirere.model.layers.mixer import ForwardContext, Linear, Mixer
from ikirere.model.layers.mixers import MIXERS
from ikirere.recipe import ffns, mixers
from ikirere.recipe.load import load_recipe
from ikirere.recipe.planner import plan
from ikirere.recipe.planner.counts import count
from ikirere.recipe.rehearse import rehearse
from ikirere.recipe.shape import ModelShape, SmallShape

ROOT = Path(__file__).parents[2]


class DecaySection(mixers.MixerSection):
    """Settings and counts of `Decay`."""

    rate: float = 0.5
    period: int = 512

    def parameters(self, model: ModelShape) -> tuple[int, int]:
        return model.hidden_size**2, model.hidden_size

    def forward_flops(self, model: ModelShape, length: int) -> float:
        return self.product_flops(model) + 2.0 * model.hidden_size

    def activation_elements(self, model: ModelShape, length: int, packed: bool) -> tuple[float, float]:
        return 2.0 * model.hidden_size, 0.0

    def state_bytes(self, model: ModelShape, context: int, bits: int) -> float:
        return 4 * model.hidden_size

    def shrunk(self, model: ModelShape, small: SmallShape) -> Self:
        return self.model_copy(update=small.lengths(self, "period"))


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
def decay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mixers.MIXERS, "decay", DecaySection)
    monkeypatch.setitem(MIXERS, "decay", Decay)


@pytest.fixture
def model(decay: None) -> Decoder:
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


def test_it_is_planned_rehearsed_built_and_trained(decay: None) -> None:
    wide = ["model.layer_pattern=decay*2 full", "model.mixers={decay: {rate: 0.7}}", "model.hidden_size=1024"]
    full = load_recipe(ROOT / "tests" / "recipe" / "small.yaml", [*wide, "model.num_hidden_layers=9"])
    m = full.model
    made, attention_only = (plan(full.model_copy(update={"model": m.model_copy(update=c)})) for c in (
        {}, {"layer_pattern": "full", "mixers": {}},
    ))  # fmt: skip
    own, attention = m.mixer("decay").parameters(m), m.mixer("full").parameters(m)
    assert made.counts.total - attention_only.counts.total == 6 * (sum(own) - sum(attention))
    assert made.cache.per_sequence < attention_only.cache.per_sequence / 2
    assert made.training_flops != attention_only.training_flops
    assert made.peak_memory.activations != attention_only.peak_memory.activations

    small = rehearse(full)
    assert small.recipe.model.layers == ("decay", "decay", "full") * 2
    settings = small.recipe.model.mixers["decay"]
    assert settings["rate"] == 0.7
    assert settings["period"] < 512
    assert "model.mixers.decay.period" in {change.key for change in small.changes}

    built = Decoder(ModelConfig.from_recipe(small.recipe.model)).train()
    assert built.num_parameters() == count(small.recipe.model).total
    tokens, optimizer, losses = torch.arange(32).view(2, 16), torch.optim.AdamW(built.parameters(), 1e-2), []
    for _ in range(2):
        loss = F.cross_entropy(built(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[1] < losses[0]


def test_both_registries_hold_the_same_names() -> None:
    assert list(MIXERS) == list(mixers.MIXERS)
    assert list(FFNS) == list(ffns.FFNS)


def test_planner_and_rehearsal_name_no_mixer_feed_forward_or_family() -> None:
    names = {*mixers.MIXERS, *ffns.FFNS, *mixers.FAMILIES}
    parts = (mixers.MIXERS, ffns.FFNS, mixers.FAMILIES)
    classes = {kind.__name__ for part in parts for kind in part.values()} - {"Dense"}  # a word of its own
    said = re.compile(rf"""["'](?:{"|".join(names)})["']|\b(?:{"|".join(classes)})\b""")
    recipe = ROOT / "src" / "ikirere" / "recipe"
    for path in (*(recipe / "planner").glob("*.py"), *(recipe / "rehearse").glob("*.py")):
        assert said.findall(path.read_text(encoding="utf-8")) == [], path
