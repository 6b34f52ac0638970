"""Renumbered sinks: equal to explicit rotations of every pair, exact from their cache, beyond the trained length."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub.windowed import GraniteSWA, Olmo3
from ikirere.model.layers.attention import attend
from ikirere.model.layers.mixer import ForwardContext
from ikirere.model.layers.mixers import MIXERS
from ikirere.model.layers.rope import Rope, RopeSpec, rotate
from ikirere.model.layers.window import WindowAttention, meeting_sinks, window_attend
from ikirere.recipe.mixers import settings as checked


def streaming(pattern: str = "window", longest: int = 64, depth: int = 2, **settings: Any) -> ModelConfig:
    own = {"window": 9, "sinks": 3, "sink_positions": "renumbered", **settings}
    return ModelConfig(50, 32, depth, 4, 2, 48, longest, layer_pattern=pattern, mixers={"window": own})


def lively(config: ModelConfig) -> Decoder:
    """Weights large enough that attention is far from even."""
    model, r = Decoder(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=r) * 0.15)
    return model


def ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(length))


def rotated(x: Tensor, position: Tensor) -> Tensor:
    """x [..., D] rotated by positions of the shape [...], fp64."""
    half = x.shape[-1] // 2
    angle = position.double()[..., None] * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    a, b = x.double().split(half, -1)
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1)


def oracle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    documents: Tensor,
    window: int,
    sinks: int,
    logits: Any,
) -> Tensor:
    """Every pair by itself, with the positions that its query and key have in the cache of the query's time."""
    length = q.shape[2]
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    i, j = positions[:, :, None], positions[:, None, :]
    order = torch.arange(length)
    seen = (order[None, :] <= order[:, None])[None] & (documents[:, :, None] == documents[:, None, :])
    seen = seen & ((i - j < window) | (j < sinks))
    # The cache of query i: sinks at 0 .. sinks - 1, then the window's tokens; all in order while nothing was dropped.
    dropped = (i - (sinks + window - 1)).clamp_min(0)
    place_of_query, place_of_key = (i - dropped).expand_as(seen), torch.where(j < sinks, j, j - dropped)
    a = rotated(
        q[:, :, :, None].expand(-1, -1, -1, length, -1),
        place_of_query[:, None].expand(-1, q.shape[1], -1, -1),
    )
    b = rotated(
        k[:, :, None].expand(-1, -1, length, -1, -1), place_of_key[:, None].expand(-1, q.shape[1], -1, -1)
    )
    scores = (a * b).sum(-1) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~seen[:, None], float("-inf"))
    if logits is not None:
        scores = torch.cat((scores, logits.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)), -1)
    return (scores.softmax(-1)[..., :length] @ v.double()).transpose(1, 2).to(q.dtype)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    ("length", "window", "sinks"), [(150, 20, 3), (140, 130, 4), (60, 1, 2), (40, 9, 12), (9, 9, 2)]
)
def test_renumbered_sinks_equal_rotations_of_every_pair(
    length: int, window: int, sinks: int, learned: bool
) -> None:
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, h, length, 8, requires_grad=True) for h in (4, 2, 2))
    logits = torch.randn(4, requires_grad=True) if learned else None
    documents = torch.zeros(2, length, dtype=torch.long)
    documents[1, length // 4 :] = 1
    positions = torch.arange(length).repeat(2, 1)
    positions[1, length // 4 :] -= length // 4
    rope = Rope(RopeSpec(8, last=window + sinks - 1), 1, 10_000.0)
    cos, sin = rope(positions)

    def ours(*leaves: Tensor) -> Tensor:
        near = [rotate(t.transpose(1, 2), cos[:, :, :1], sin[:, :, :1]).transpose(1, 2) for t in leaves[:2]]
        far = rotate(leaves[0].transpose(1, 2), cos[:, :, 1:], sin[:, :, 1:]).transpose(1, 2)
        more = leaves[3] if learned else None
        return window_attend(near[0], near[1], leaves[2], positions, documents, window, sinks, more, far)

    leaves = [q, k, v] + ([logits] if logits is not None else [])
    got, expected = ours(*leaves), oracle(q, k, v, positions, documents, window, sinks, logits)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_renumbered_layer_equals_rotations_of_every_pair() -> None:
    model = lively(streaming())
    mixer = model.layers[0].mixer
    assert isinstance(mixer, WindowAttention)
    x, positions = torch.randn(2, 70, 32), torch.arange(70).expand(2, -1)
    rope_tables = tuple(rope(positions) for rope in model.ropes)
    with torch.no_grad():
        q, k, v = (t.transpose(1, 2) for t in mixer.heads_of(x))
        y = oracle(q, k, v, positions, torch.zeros_like(positions), 9, 3, None)
        got = mixer(x, ForwardContext(positions, rope_tables, None, None, causal=True))
    torch.testing.assert_close(got, mixer.o_proj(y.flatten(2)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "settings"),
    [
        ("window", {}),
        ("window", {"learned_sinks": True}),
        ("window", {"sinks": 0}),
        ("window", {"sinks": 12}),
        ("window kda", {}),
    ],
)
def test_streaming_continues_at_every_split(pattern: str, settings: dict[str, Any]) -> None:
    model = lively(streaming(pattern, 32, **settings))
    tokens = ids(1, 36)  # more than max_position_embeddings
    with torch.no_grad():
        whole = model(tokens)
        for split in range(1, 36):
            cache = KVCache(model.config, 1, 36)
            pieces = (tokens[:, :split], tokens[:, split : split + 1], tokens[:, split + 1 :])
            parts = [model(p, cache=cache) for p in pieces if p.numel()]
            torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=2e-5)


def test_streaming_rows_of_unequal_length() -> None:
    model = lively(streaming())
    tokens = ids(2, 60)
    with torch.no_grad():
        whole = model(tokens)
        cache = KVCache(model.config, 4, 60)
        rows = torch.tensor([3, 1])
        model(tokens[:, :24], cache=cache, rows=rows, counts=torch.tensor([24, 2]))
        pieces = torch.stack((tokens[0, 24:44], tokens[1, 2:22]))
        second = model(pieces, cache=cache, rows=rows, counts=torch.tensor([3, 20]))
        torch.testing.assert_close(second[0, :3], whole[0, 24:27], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(second[1], whole[1, 2:22], rtol=1e-4, atol=2e-5)
        cache.copy(3, 0)
        third = model(tokens[:1, 27:], cache=cache, rows=torch.tensor([0]))
        torch.testing.assert_close(third, whole[:1, 27:], rtol=1e-4, atol=2e-5)


def test_streaming_keeps_packed_documents_apart() -> None:
    model, tokens = lively(streaming()), ids(1, 60)
    documents = torch.tensor([[0] * 23 + [1] * 2 + [2] * 35])
    apart = torch.cat([model(t) for t in tokens.split([23, 2, 35], 1)], 1)
    torch.testing.assert_close(model(tokens, None, documents), apart, rtol=1e-4, atol=2e-5)


def test_kept_and_renumbered_differ_only_behind_a_full_cache() -> None:
    one, two = (lively(streaming("window", 128, sink_positions=word)) for word in ("kept", "renumbered"))
    tokens = ids(1, 40)
    with torch.no_grad():
        a, b = one(tokens), two(tokens)
    torch.testing.assert_close(a[:, :12], b[:, :12], rtol=1e-5, atol=1e-5)
    assert (a - b)[:, 12:].abs().amax(-1).min() > 1e-5


def test_far_streams_repeat_what_near_ones_say() -> None:
    """A cache that is full looks the same wherever the row stands: a million tokens on, the same answer."""
    mixer = lively(streaming()).layers[0].mixer
    x, far = torch.randn(1, 12, 32), 10**6
    found = []
    for shift in (0, far):
        positions = torch.arange(12)[None] + torch.where(torch.arange(12) < 3, 0, shift)
        rope_tables = (Rope(RopeSpec(8, last=11), 1, 10_000.0)(positions),)
        q, k, v, last = mixer.project_twice(
            x, ForwardContext(positions, rope_tables, None, None, causal=True)
        )
        context = torch.cat((positions[:, :0], positions), 1)
        found.append(mixer._continue(q[:, :, -1:], k, v, context[:, :-1], context[:, -1:], last[:, :, -1:]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_streaming_in_half_precision() -> None:
    model = lively(streaming())
    tokens = ids(2, 60)
    with torch.no_grad():
        whole = model(tokens)
        half = model.to(torch.bfloat16)(tokens)
    assert half.dtype == torch.bfloat16
    assert (half - whole).norm() <= 0.03 * whole.norm()


def test_half_precision_does_not_round_what_sinks_weigh() -> None:
    """Products with sinks are as exact beside bf16 queries as those that attention forms itself."""
    torch.manual_seed(0)
    q, far, k, v = (2.5 * torch.randn(1, h, 64, 16) for h in (4, 4, 2, 2))
    q, far, k, v = (t.bfloat16() for t in (q, far, k, v))
    positions = torch.arange(64)[None]
    seen = torch.ones(1, 64, 64, dtype=torch.bool).tril()

    def answer(dtype: torch.dtype) -> Tensor:
        block = meeting_sinks(*(t.to(dtype) for t in (q, k, v, far)), seen, positions, 8)
        return attend(*block, seen[:, None], False)[..., :16].float()

    exact = answer(torch.float32)
    assert (answer(torch.bfloat16) - exact).norm() <= 0.0036 * exact.norm()  # one rounded part alone: 0.0045


def test_streaming_trains_in_mixed_precision() -> None:
    model = lively(streaming())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids(2, 60)).float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("pattern", "settings", "beyond"),
    [
        ("window", {}, True),
        ("window*2 kda", {}, True),
        ("mamba2 window", {}, True),
        ("window", {"sink_positions": "kept"}, False),
        ("window", {"sink_positions": "kept", "rope": False}, True),
        ("window", {"window": 30, "sinks": 4}, False),  # distances that 32 positions do not have
        ("window*2 full", {}, False),
        ("window mla", {}, False),
        ("window retention", {}, False),
    ],
)
def test_rows_beyond_the_trained_length(pattern: str, settings: dict[str, Any], beyond: bool) -> None:
    config = streaming(pattern, 32, 3, **settings)
    if "mamba2" in pattern:
        config = ModelConfig.from_dict(
            {**config.to_dict(), "mixers": {**config.mixers, "mamba2": {"head_dim": 16}}}
        )
    model, tokens = Decoder(config), ids(1, 33)
    cache = KVCache(config, 1, 40)
    with torch.no_grad():
        model(tokens[:, :32], cache=cache)
        for call in (lambda: model(tokens), lambda: model(tokens[:, 32:], cache=cache)):
            if beyond:
                assert call().isfinite().all()
            else:
                with pytest.raises(UserError, match=r"33 tokens; model\.max_position_embeddings allows 32"):
                    call()


def test_only_mixers_of_fixed_memory_are_unbounded() -> None:
    config = streaming()
    assert {n for n, m in MIXERS.items() if m.unbounded(config, {})} == {"kda", "mamba2"}
    assert MIXERS["retention"].unbounded(config, {"rope": False})


def test_changing_the_base_reaches_renumbered_layers() -> None:
    model, tokens = lively(streaming()), ids(1, 60)
    with torch.no_grad():
        before = model(tokens)
        model.set_rope_theta(500.0)
        other = model(tokens)
        model.set_rope_theta(10_000.0)
        torch.testing.assert_close(model(tokens), before)
    assert (other - before).abs().max() > 1e-4


def test_exports_refuse_renumbered_sinks() -> None:
    for format_, sinks in itertools.product((GraniteSWA(), Olmo3()), (0, 3)):
        reason = format_.refuses(streaming(sinks=sinks))
        assert reason is not None
        assert "model.mixers.window.sink_positions: 'renumbered'" in reason


def test_words_for_sink_positions() -> None:
    with pytest.raises(UserError, match=r"window\.sink_positions: got 'moved'; input should be 'kept'"):
        Decoder(streaming(sink_positions="moved"))
    with pytest.raises(ValueError, match=r"mixers\.window\.sink_positions"):
        checked("window", {"sink_positions": "moved"})
