"""Windowed attention: equal to a dense mask, linear in memory, exact from its ring."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.layers.attention import attend
from ikirere.model.layers.window import window_attend
from ikirere.recipe.planner.counts import count
from ikirere.recipe.schema import Model


def config(**settings: object) -> ModelConfig:
    return ModelConfig(
        50, 32, 3, 4, 2, 48, 512, layer_pattern="window*2 full", mixers={"window": {"window": 9, **settings}}
    )


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, logits: Tensor | None) -> Tensor:
    """Scores of all pairs, masked, with the sink as one more column: the definition."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~seen, float("-inf"))
    if logits is not None:
        scores = torch.cat((scores, logits.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)), -1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    return (weights @ v).transpose(1, 2)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    ("length", "window", "sinks"), [(300, 70, 0), (257, 200, 3), (50, 9, 2), (300, 1, 4), (7, 64, 0)]
)
def test_windows_equal_a_dense_mask(length: int, window: int, sinks: int, learned: bool) -> None:
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, h, length, 16, requires_grad=True) for h in (4, 2, 2))
    logits = torch.randn(4, requires_grad=True) if learned else None
    documents = torch.zeros(2, length, dtype=torch.long)
    documents[1, length // 3 :] = 1
    positions = torch.arange(length).repeat(2, 1)
    positions[1, length // 3 :] -= length // 3
    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    first = (positions < sinks)[:, None, :]
    seen = (
        (j <= i)[None] & ((i - j < window)[None] | first) & (documents[:, :, None] == documents[:, None, :])
    )
    got = window_attend(q, k, v, positions, documents, window, sinks, logits)
    expected = dense(q, k, v, seen[:, None], logits)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    leaves = [q, k, v] + ([logits] if logits is not None else [])
    weight = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_sink_takes_the_share_of_its_logit() -> None:
    """out * sigmoid(LSE - sink), as gpt-oss defines it."""
    q, k, v, logits = (
        torch.randn(1, 4, 140, 16),
        torch.randn(1, 2, 140, 16),
        torch.randn(1, 2, 140, 16),
        torch.randn(4),
    )
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) / 4
    lse = scores.masked_fill(~torch.ones(140, 140, dtype=torch.bool).tril(), float("-inf")).logsumexp(-1)
    share = torch.sigmoid(lse - logits.view(1, 4, 1)).transpose(1, 2).unsqueeze(-1)
    torch.testing.assert_close(attend(q, k, v, None, True, logits), attend(q, k, v, None, True) * share)


@pytest.mark.parametrize("settings", [{}, {"sinks": 3}, {"sinks": 2, "learned_sinks": True}, {"rope": False}])
def test_decoding_continues_a_prefill_at_every_split(settings: dict[str, object]) -> None:
    model = Decoder(config(**settings))
    for block in model.blocks():
        if getattr(block.mixer, "sink_logits", None) is not None:
            torch.nn.init.normal_(block.mixer.sink_logits)
    tokens = torch.randint(0, 50, (1, 40))
    with torch.no_grad():
        whole = model(tokens)
        for split in (1, 5, 8, 9, 10, 17, 39):
            cache = KVCache(model.config, 1, 40)
            parts = [model(tokens[:, :split], cache=cache)]
            parts += [model(tokens[:, t : t + 1], cache=cache) for t in range(split, 40)]
            torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_rows_of_unequal_length_and_padding() -> None:
    model = Decoder(config(sinks=2))
    tokens = torch.randint(0, 50, (2, 30))
    with torch.no_grad():
        whole = model(tokens)
        cache = KVCache(model.config, 4, 30)
        rows = torch.tensor([3, 1])
        model(tokens[:, :14], cache=cache, rows=rows, counts=torch.tensor([14, 6]))
        pieces = torch.stack((tokens[0, 14:26], tokens[1, 6:18]))
        second = model(pieces, cache=cache, rows=rows, counts=torch.tensor([3, 12]))
        torch.testing.assert_close(second[0, :3], whole[0, 14:17], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(second[1], whole[1, 6:18], rtol=1e-4, atol=1e-5)
        cache.copy(3, 0)
        third = model(tokens[:1, 17:30], cache=cache, rows=torch.tensor([0]))
        torch.testing.assert_close(third, whole[:1, 17:], rtol=1e-4, atol=1e-5)


def test_packed_documents_stay_apart() -> None:
    model = Decoder(config(sinks=2))
    tokens = torch.randint(0, 50, (1, 60))
    documents = torch.tensor([[0] * 23 + [1] * 37])
    apart = torch.cat([model(tokens[:, :23]), model(tokens[:, 23:])], 1)
    torch.testing.assert_close(model(tokens, None, documents), apart, rtol=1e-4, atol=1e-5)


def test_the_ring_does_not_grow_with_the_row() -> None:
    shape = config(sinks=2)
    short, long = (KVCache(shape, 1, n).layers[0].bytes for n in (64, 512))
    assert short == long == 2 * 2 * (9 + 2) * 8 * 4


def test_parameters_are_counted_and_settings_checked() -> None:
    model = Model(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, layer_pattern="window*2 full", qk_norm=True,
        mixers={"window": {"window": 9, "learned_sinks": True}},
    )  # fmt: skip
    for width in ("head", "full"):
        shape = model.model_copy(update={"qk_norm_width": width})
        assert Decoder(ModelConfig.from_recipe(shape)).num_parameters() == count(shape).total
    with pytest.raises(
        UserError, match=r"model\.mixers\.window\.window: got 0; input should be greater than 0"
    ):
        Decoder(config(window=0))
    with pytest.raises(UserError, match=r"model\.mixers\.window\.size: 'window' has no such setting"):
        Decoder(config(size=3))
