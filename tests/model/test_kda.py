"""Kimi Delta Attention: the chunked rule against the rule as written, documents, decoding, precision,
settings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.layers import delta, delta_chunks
from ikirere.model.layers.conv import ShortConv, next_tail
from ikirere.model.layers.delta import chunked, delta_rule, recurrent
from ikirere.model.layers.kda import KimiDeltaAttention
from ikirere.model.layers.mixer import Context
from ikirere.recipe.load import load_recipe
from ikirere.recipe.planner.counts import count
from ikirere.recipe.schema import Model


def inputs(
    seed: int, length: int, gate: float = 1.0, batch: int = 2, heads: int = 2, keys: int = 8, values: int = 6
) -> list[Tensor]:
    """q, k, v, g, beta and a state, with decays down to e^-gate."""
    r = torch.Generator().manual_seed(seed)
    shape = (batch, length, heads)
    q, k = (F.normalize(torch.randn(*shape, keys, generator=r), dim=-1) for _ in range(2))
    v = torch.randn(*shape, values, generator=r)
    g, beta = -gate * torch.rand(*shape, keys, generator=r), torch.rand(*shape, generator=r)
    return [q, k, v, g, beta, torch.randn(batch, heads, keys, values, generator=r)]


def resets(seed: int, length: int, share: float, batch: int = 2) -> Tensor:
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < share


def gradients(rule: object, given: list[Tensor], starts: Tensor | None, *more: int) -> list[Tensor]:
    """Both results, and the gradients of a random sum of them with respect to all inputs."""
    wanted = [t.clone().requires_grad_() for t in given]
    o, state = rule(*wanted, starts, *more)  # type: ignore[operator]
    r = torch.Generator().manual_seed(1)
    total = sum((t * torch.randn(t.shape, generator=r)).sum() for t in (o, state))
    total.backward()
    return [o.detach(), state.detach(), *(t.grad for t in wanted if t.grad is not None)]


def close(ours: Tensor, expected: Tensor, bound: float) -> None:
    assert (ours - expected).abs().max() <= bound * expected.abs().max().clamp_min(1e-20)


# ---------------------------------------------------------------- the rule


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 150),
    chunk=st.sampled_from([1, 2, 16, 64]),
    gate=st.sampled_from([0.0, 0.01, 1.0, 16.0]),
    share=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
)
def test_chunks_equal_the_rule_as_written(
    seed: int, length: int, chunk: int, gate: float, share: float
) -> None:
    given_, starts = inputs(seed, length, gate), resets(seed, length, share) if share else None
    expected, ours = gradients(recurrent, given_, starts), gradients(chunked, given_, starts, chunk)
    assert len(ours) == 8
    for a, b in zip(ours, expected, strict=True):
        close(a, b, 2e-5)


def test_gradients_by_differences() -> None:
    given_ = [t.double().requires_grad_() for t in inputs(3, 7, batch=1, heads=1, keys=3, values=2)]
    starts = torch.zeros(1, 7, dtype=torch.bool)
    starts[0, [2, 3, 5]] = True
    assert torch.autograd.gradcheck(lambda *t: delta_rule(*t, starts, chunk=4), given_)


@pytest.mark.parametrize("gate", [4.0, 16.0, 300.0])
def test_strong_gates_lose_no_accuracy(gate: float) -> None:
    """Decays of all sizes side by side: what is weak must not be drowned by what is strong."""
    given_ = inputs(5, 200, 1.0)
    given_[3] = -gate * torch.rand(given_[3].shape, generator=torch.Generator().manual_seed(2)) ** 6
    exact = gradients(recurrent, [t.double() for t in given_], None)
    for ours, expected in zip(gradients(chunked, given_, None), exact, strict=True):
        assert torch.isfinite(ours).all()
        close(ours.double(), expected, 3e-6)
    # Each gradient of g for itself, not only beside the largest: no sum of terms that cancel.
    ours, expected = gradients(chunked, given_, None)[5].double(), exact[5]
    seen = expected.abs() > 1e-9 * expected.abs().max()
    assert ((ours - expected).abs()[seen] <= 2e-2 * expected.abs()[seen]).float().mean() > 0.995


def test_equal_keys_and_full_strength() -> None:
    """The hardest system of a chunk: every token overwrites what the one before it wrote."""
    given_ = inputs(7, 128, 0.0)
    given_[1] = given_[1][:, :1].expand_as(given_[1]).contiguous()
    given_[4] = torch.ones_like(given_[4])
    for ours, expected in zip(
        gradients(chunked, given_, None), gradients(recurrent, given_, None), strict=True
    ):
        close(ours, expected, 1e-4)


def test_very_long_rows_stay_finite() -> None:
    given_ = inputs(9, 65_536, 0.02, batch=1, heads=1, keys=4, values=4)
    ours = gradients(chunked, given_, None)
    assert all(torch.isfinite(t).all() for t in ours)
    with torch.no_grad():
        o, state = delta_rule(*given_)  # in pieces
    close(o, ours[0], 1e-5)
    close(state, ours[1], 1e-5)
    assert o.std() > 0.05


def test_places_without_decay_and_strength_change_nothing() -> None:
    q, k, v, g, beta, state = inputs(2, 40)
    _, before = delta_rule(q[:, :25], k[:, :25], v[:, :25], g[:, :25], beta[:, :25], state)
    g[:, 25:], beta[:, 25:] = 0.0, 0.0
    close(delta_rule(q, k, v, g, beta, state)[1], before, 1e-6)


def test_autocast_leaves_the_rule_alone() -> None:
    given_ = inputs(4, 70)
    plain = gradients(delta_rule, given_, None)

    def mixed(*given: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return delta_rule(*given)

    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(mixed, given_, None), strict=True))


def test_slabs_are_only_a_matter_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given_, starts = inputs(4, 130), resets(4, 130, 0.05)
    plain = gradients(chunked, given_, starts)
    monkeypatch.setattr(delta_chunks, "_SLAB", 600)
    monkeypatch.setattr(delta, "_PIECE", 64)
    for ours, expected in zip(gradients(chunked, given_, starts), plain, strict=True):
        close(ours, expected, 1e-6)
    with torch.no_grad():
        close(delta_rule(*given_, starts)[0], plain[0], 1e-6)


def test_chunks_are_powers_of_two() -> None:
    with pytest.raises(ValueError, match="48 tokens; a power of two"):
        delta_rule(*inputs(1, 50), chunk=48)


def test_a_kernel_for_a_kind_of_device_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(delta.KERNELS, "cpu", lambda q, k, v, g, beta, state, starts: (v * 2, state))
    given_ = inputs(1, 5)
    assert torch.equal(delta_rule(*given_)[0], given_[2] * 2)


# ---------------------------------------------------------------- the convolution


@pytest.mark.parametrize("size", [1, 2, 4])
def test_short_convolution_within_documents(size: int) -> None:
    r = torch.Generator().manual_seed(0)
    conv = ShortConv(5, size)
    conv.start(r)
    assert conv.weight.abs().max() <= size**-0.5
    lengths = [1, 2, 9, 1, 4]
    x = torch.randn(2, sum(lengths), 5, generator=r, requires_grad=True)
    weight = conv.weight.view(5, 1, size)

    def plain(piece: Tensor) -> Tensor:
        return F.silu(F.conv1d(F.pad(piece.mT, (size - 1, 0)), weight, groups=5)).mT

    places = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    cases = (
        (conv(x), plain(x)),
        (conv(x, None, places), torch.cat([plain(p) for p in x.split(lengths, 1)], 1)),
    )
    for ours, expected in cases:
        torch.testing.assert_close(ours, expected)
        grads = [torch.autograd.grad((y * y).sum(), (x, conv.weight)) for y in (ours, expected)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_short_convolution_with_a_tail_and_documents() -> None:
    r = torch.Generator().manual_seed(0)
    conv = ShortConv(5, 4)
    conv.start(r)
    x = torch.randn(1, 12, 5, generator=r)
    places = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1, 0, 1, 2]])
    whole = conv(x, None, places)
    torch.testing.assert_close(conv(x[:, 5:], x[:, 2:5], places[:, 5:]), whole[:, 5:])


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_short_convolution_continues(cut: int) -> None:
    r = torch.Generator().manual_seed(0)
    conv = ShortConv(5, 4)
    conv.start(r)
    x = torch.randn(2, 9, 5, generator=r)
    tail = next_tail(x[:, :cut], torch.zeros(2, 3, 5), None)
    torch.testing.assert_close(conv(x[:, cut:], tail), conv(x)[:, cut:])
    some = next_tail(x, tail, torch.tensor([2, 9]))
    assert torch.equal(some[0], torch.cat([tail[0], x[0, :2]])[-3:])
    assert torch.equal(some[1], x[1, -3:])


# ---------------------------------------------------------------- the layer

SHAPE = ModelConfig(
    50,
    24,
    3,
    2,
    2,
    40,
    200,
    head_dim=12,
    layer_pattern="kda",
    mixers={"kda": {"head_dim": 10, "chunk_size": 16}},
)


def scattered(config: ModelConfig = SHAPE, seed: int = 0) -> Decoder:
    """A decoder whose weights are far from their start, each kind within its own range."""
    model, r = Decoder(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=r) * 0.1)
    return model


def tokens(seed: int, batch: int, length: int) -> Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_start() -> None:
    first, second = (Decoder(SHAPE).layers[0].mixer for _ in range(2))
    assert isinstance(first, KimiDeltaAttention)
    assert torch.equal(first.A_log, second.A_log)
    assert first.A_log.shape == (2,)
    assert 0 <= first.A_log.min() <= first.A_log.max() <= math.log(16)
    step = F.softplus(first.dt_bias)
    assert 0.999e-3 <= step.min() < 3e-3 < 0.03 < step.max() <= 0.1001
    assert 0 < first.q_conv.weight.abs().max() <= 0.5
    assert not torch.equal(first.q_conv.weight, first.k_conv.weight)


def test_layers_see_the_past_only_and_all_of_it() -> None:
    model = scattered()
    t = tokens(1, 1, 40)
    other = t.clone()
    other[0, 20] = (t[0, 20] + 1) % 50
    with torch.no_grad():
        a, b = model(t), model(other)
    assert torch.equal(a[:, :20], b[:, :20])
    assert (a[:, 20:] - b[:, 20:]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("lengths", [[1, 1, 30, 5, 16, 17], [64, 6], [3, 2, 2, 1, 1, 1, 60]])
def test_packed_documents_equal_documents_apart(lengths: list[int]) -> None:
    model = scattered()
    t = tokens(2, 2, sum(lengths))
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    found = []
    for logits in (
        model(t, None, documents),
        torch.cat([model(piece) for piece in t.split(lengths, 1)], 1),
    ):
        model.zero_grad()
        (logits.square().mean() + logits[:, ::3].sum() / 100).backward()
        found.append((logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (ours, of_ours), (apart, of_apart) = found
    assert (ours - apart).abs().max() <= 1e-5
    for name, grad in of_apart.items():
        assert (of_ours[name] - grad).abs().max() <= 1e-4 * grad.abs().max(), name


def test_rows_of_a_batch_pack_differently() -> None:
    model = scattered()
    t = tokens(3, 2, 30)
    documents = torch.tensor([[0] * 11 + [1] * 19, [4] * 29 + [-1]])
    with torch.no_grad():
        packed = model(t, None, documents)
        alone = [model(t[i : i + 1], None, documents[i : i + 1]) for i in range(2)]
    assert (packed - torch.cat(alone)).abs().max() <= 1e-5


def test_decoding_continues_at_every_place() -> None:
    model = scattered()
    t = tokens(4, 2, 35)
    with torch.no_grad():
        whole = model(t)
        for cut in range(1, 35):
            cache = KVCache(SHAPE, 3, 35)
            rows = torch.tensor([2, 0])
            parts = [
                model(p, cache=cache, rows=rows)
                for p in (t[:, :cut], t[:, cut : cut + 1], t[:, cut + 1 :])
                if p.numel()
            ]
            assert (torch.cat(parts, 1) - whole).abs().max() <= 1e-5


def test_rows_of_different_lengths_and_padding() -> None:
    model = scattered()
    t = tokens(5, 3, 30)
    with torch.no_grad():
        whole = model(t)
        cache = KVCache(SHAPE, 4, 40)
        rows, counts = torch.tensor([3, 0, 1]), torch.tensor([20, 1, 7])
        first = model(t[:, :20], cache=cache, rows=rows, counts=counts)
        for i, n in enumerate(counts.tolist()):
            assert (first[i, :n] - whole[i, :n]).abs().max() <= 1e-5
        at = counts.unsqueeze(1) + torch.arange(2)
        second = model(t.gather(1, at), cache=cache, rows=rows)
        assert (second - whole[torch.arange(3).unsqueeze(1), at]).abs().max() <= 1e-5
        # A padded prefill leaves what an unpadded one leaves.
        alone = KVCache(SHAPE, 1, 40)
        model(t[1:2, :3], cache=alone)
        for padded, plain in zip(cache.layers, alone.layers, strict=True):
            torch.testing.assert_close(padded.memory[0], plain.memory[0])
            torch.testing.assert_close(padded.tails[:, 0], plain.tails[:, 0])
        assert not cache.layers[0].memory[2].any()


def test_rows_are_copied_and_forgotten() -> None:
    model = scattered()
    t = tokens(6, 1, 12)
    with torch.no_grad():
        whole = model(t)
        cache = KVCache(SHAPE, 2, 12)
        model(t[:, :7], cache=cache, rows=torch.tensor([0]))
        cache.copy(0, 1)
        copied = model(t[:, 7:], cache=cache, rows=torch.tensor([1]))
        cache.reset(0)
        again = model(t, cache=cache, rows=torch.tensor([0]))
    assert (copied - whole[:, 7:]).abs().max() <= 1e-5
    assert (again - whole).abs().max() <= 1e-5
    # Of fixed size: 3 layers x 2 rows x (3 tails of 3 x 20 and 2 heads of 10 x 10) numbers of 4 bytes.
    assert cache.bytes == KVCache(SHAPE, 2, 9000).bytes == 3 * 2 * (3 * 3 * 20 + 2 * 100) * 4


def test_a_pass_with_a_cache_may_have_a_gradient() -> None:
    model, cache = scattered(), KVCache(SHAPE, 1, 9)
    model(tokens(1, 1, 4), cache=cache)
    model(tokens(2, 1, 5), cache=cache).sum().backward()
    assert torch.isfinite(model.layers[0].mixer.A_log.grad).all()


def test_half_precision() -> None:
    """bf16 weights and activations: within 3% of fp32 in the mean, decays and state stay fp32."""
    config = ModelConfig(50, 64, 2, 2, 2, 96, 300, layer_pattern="kda", mixers={"kda": {"head_dim": 32}})
    model = Decoder(config)
    t = tokens(7, 2, 150)
    with torch.no_grad():
        whole = model(t)
        model.to(torch.bfloat16)
        kept = {n.split(".")[-1] for n, p in model.named_parameters() if p.dtype == torch.float32}
        assert kept == {"A_log", "dt_bias"}
        half = model(t)
        assert half.dtype == torch.bfloat16
        assert (half - whole).norm() <= 0.03 * whole.norm()
        cache = KVCache(config, 2, 150, torch.bfloat16)
        parts = torch.cat([model(p, cache=cache) for p in t.split([100, 1, 49], 1)], 1)
        assert cache.layers[0].memory.dtype == torch.float32
        assert cache.layers[0].tails.dtype == torch.bfloat16
        assert (parts - whole).norm() <= 0.03 * whole.norm()


def test_mixed_precision_trains() -> None:
    model, t = scattered(), tokens(8, 2, 40)
    with torch.no_grad():
        whole = model(t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(t[:, :-1]).float().flatten(0, 1), t[:, 1:].flatten())
    loss.backward()
    expected = F.cross_entropy(whole[:, :-1].flatten(0, 1), t[:, 1:].flatten())
    assert abs(loss.item() - expected.item()) <= 0.02 * expected.item()
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == p.dtype for p in model.parameters())


def test_weights_that_are_no_matrices_are_vectors() -> None:
    """So optimisers neither decay nor orthogonalise them."""
    mixer = Decoder(SHAPE).layers[0].mixer
    assert {n for n, p in mixer.named_parameters() if p.ndim != 2} == {
        "A_log", "dt_bias", "o_norm.weight", "q_conv.weight", "k_conv.weight", "v_conv.weight",
    }  # fmt: skip
    assert all(p.ndim <= 2 for p in mixer.parameters())


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"head_dm": 3}, r"model\.mixers\.kda\.head_dm"),
        ({"head_dim": 0}, r"model\.mixers\.kda\.head_dim"),
        ({"chunk_size": 48}, r"model\.mixers\.kda\.chunk_size: .*48 is not a power of two"),
    ],
)
def test_settings_that_cannot_be(settings_: dict, words: str) -> None:
    config = ModelConfig(50, 24, 1, 2, 2, 40, 64, layer_pattern="kda", mixers={"kda": settings_})
    with pytest.raises(UserError, match=words), torch.device("meta"):
        Decoder(config)


@settings(max_examples=15, deadline=None)
@given(
    hidden=st.integers(1, 60),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 40),
    own=st.sampled_from([None, 1, 3]),
    rank=st.sampled_from([None, 7]),
    conv=st.integers(1, 5),
)
def test_planner_counts_kda_exactly(
    hidden: int, heads: int, head_dim: int, own: int | None, rank: int | None, conv: int
) -> None:
    chosen = {"head_dim": head_dim, "num_heads": own, "gate_rank": rank, "conv_size": conv}
    model = Model(
        vocab_size=30, hidden_size=hidden, num_hidden_layers=3, num_attention_heads=heads, num_key_value_heads=heads,
        head_dim=4, intermediate_size=20, max_position_embeddings=64, layer_pattern="kda*2 full",
        mixers={"kda": chosen},
    )  # fmt: skip
    with torch.device("meta"):
        built = Decoder(ModelConfig.from_recipe(model))
    counted = count(model)
    assert counted.total == built.num_parameters()
    assert counted.hidden_2d == sum(p.numel() for p in built.layers.parameters() if p.ndim == 2)
    assert counted.not_built == ()


def test_the_100m_programme_is_counted_exactly() -> None:
    model = load_recipe(Path(__file__).parents[2] / "recipes" / "smol-100m-kda.yaml").model
    with torch.device("meta"):
        built = Decoder(ModelConfig.from_recipe(model))
    assert count(model).total == built.num_parameters()
    assert count(model).not_built == ()


def test_decay_of_a_fresh_layer_spans_short_and_long_memory() -> None:
    config = ModelConfig(50, 64, 1, 4, 4, 96, 64, layer_pattern="kda", mixers={"kda": {"head_dim": 32}})
    mixer = Decoder(config).layers[0].mixer
    x = torch.randn(1, 50, 64, generator=torch.Generator().manual_seed(0))
    decay = mixer.decay(x).exp()
    assert decay.shape == (1, 50, 4, 32)
    assert 0 < decay.min() < 0.6 < 0.99 < decay.max() < 1
    context = Context(torch.arange(50)[None], (), None, None, causal=True)
    assert mixer(x, context).shape == x.shape
