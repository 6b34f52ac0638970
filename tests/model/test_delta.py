"""The delta rule by chunks against the rule as written, and the short convolution."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from rule_helpers import close, gradients, nothing_is_drowned, resets

from ikirere.model.layers import delta, delta_chunks
from ikirere.model.layers.conv import ShortConv, next_tail
from ikirere.model.layers.delta import chunked, delta_rule, recurrent


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
    nothing_is_drowned(recurrent, chunked, inputs(5, 200, 1.0), gate, 0.995)


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
    conv.init_weights(r)
    assert conv.weight.abs().max() <= size**-0.5
    lengths = [1, 2, 9, 1, 4]
    x = torch.randn(2, sum(lengths), 5, generator=r, requires_grad=True)
    weight = conv.weight.view(5, 1, size)

    def plain(piece: Tensor) -> Tensor:
        return F.silu(F.conv1d(F.pad(piece.mT, (size - 1, 0)), weight, groups=5)).mT

    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    cases = (
        (conv(x), plain(x)),
        (conv(x, None, positions), torch.cat([plain(p) for p in x.split(lengths, 1)], 1)),
    )
    for ours, expected in cases:
        torch.testing.assert_close(ours, expected)
        grads = [torch.autograd.grad((y * y).sum(), (x, conv.weight)) for y in (ours, expected)]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_short_convolution_with_a_tail_and_documents() -> None:
    r = torch.Generator().manual_seed(0)
    conv = ShortConv(5, 4)
    conv.init_weights(r)
    x = torch.randn(1, 12, 5, generator=r)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1, 0, 1, 2]])
    whole = conv(x, None, positions)
    torch.testing.assert_close(conv(x[:, 5:], x[:, 2:5], positions[:, 5:]), whole[:, 5:])


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_short_convolution_continues(cut: int) -> None:
    r = torch.Generator().manual_seed(0)
    conv = ShortConv(5, 4)
    conv.init_weights(r)
    x = torch.randn(2, 9, 5, generator=r)
    tail = next_tail(x[:, :cut], torch.zeros(2, 3, 5), None)
    torch.testing.assert_close(conv(x[:, cut:], tail), conv(x)[:, cut:])
    some = next_tail(x, tail, torch.tensor([2, 9]))
    assert torch.equal(some[0], torch.cat([tail[0], x[0, :2]])[-3:])
    assert torch.equal(some[1], x[1, -3:])
