"""The scalar-decay rule: chunks against the rule as written, documents, strong decays, precision, length."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from rule_helpers import close, gradients, nothing_is_drowned, resets

from ikirere.model.layers import decay
from ikirere.model.layers.conv import ShortConv
from ikirere.model.layers.decay import chunked, decay_rule, recurrent


def made(
    seed: int, length: int, gate: float = 1.0, batch: int = 2, groups: int = 2, shared: int = 1, keys: int = 8
) -> list[Tensor]:
    """q, k, v, g with decays down to e^-gate, and a state."""
    r, heads = torch.Generator().manual_seed(seed), groups * shared
    q, k = (torch.randn(batch, length, groups, keys, generator=r) * keys**-0.5 for _ in range(2))
    v, g = torch.randn(batch, length, heads, 6, generator=r), torch.rand(batch, length, heads, generator=r)
    return [q, k, v, -gate * g, torch.randn(batch, heads, keys, 6, generator=r)]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(1, 150),
    chunk=st.sampled_from([1, 7, 16, 64, 200]),
    gate=st.sampled_from([0.0, 0.01, 1.0, 16.0]),
    share=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    groups=st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1)]),
)
def test_decay_chunks_equal_the_rule_as_written(
    seed: int, length: int, chunk: int, gate: float, share: float, groups: tuple[int, int]
) -> None:
    given_ = made(seed, length, gate, groups=groups[0], shared=groups[1])
    starts = resets(seed, length, share) if share else None
    expected, ours = gradients(recurrent, given_, starts), gradients(chunked, given_, starts, chunk)
    assert len(ours) == 7
    for a, b in zip(ours, expected, strict=True):
        close(a, b, 2e-5)


def test_decay_gradients_by_differences() -> None:
    given_ = [t.double().requires_grad_() for t in made(3, 7, batch=1, groups=1, shared=2, keys=2)]
    starts = torch.zeros(1, 7, dtype=torch.bool)
    starts[0, [2, 3, 5]] = True
    assert torch.autograd.gradcheck(lambda *t: decay_rule(*t, starts, chunk=4), given_)


@pytest.mark.parametrize("gate", [16.0, 300.0, 1e6])
def test_extreme_decays_lose_no_accuracy(gate: float) -> None:
    nothing_is_drowned(recurrent, chunked, made(5, 200), gate, 0.99)


def test_a_decay_to_nothing_has_finite_gradients() -> None:
    given_ = made(5, 70)
    given_[3][:, ::9] = float("-inf")
    for ours, expected in zip(
        gradients(chunked, given_, None), gradients(recurrent, given_, None), strict=True
    ):
        assert torch.isfinite(ours).all()
        close(ours, expected.nan_to_num(), 1e-5)


@pytest.mark.parametrize("gate", [0.0, 0.02])
def test_a_decaying_state_stays_finite_over_65536_tokens(gate: float) -> None:
    given_ = made(9, 65_536, gate, batch=1, groups=1)
    ours = gradients(chunked, given_, None)
    assert all(torch.isfinite(t).all() for t in ours)
    with torch.no_grad():
        o, state = decay_rule(*given_)  # in pieces
    close(o, ours[0], 1e-5)
    close(state, ours[1], 1e-5)
    assert o.std() > 0.05


def test_what_is_kept_grows_with_length_only_linearly() -> None:
    kept = []
    for length in (256, 1024):
        given_ = [t.requires_grad_() for t in made(1, length)]
        sizes: dict[int, int] = {}

        def keep(t: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            decay_rule(*given_)
        kept.append(sum(sizes.values()))
    assert kept[1] <= 4.01 * kept[0]


def test_places_that_neither_decay_nor_write_change_nothing() -> None:
    q, k, v, g, state = made(2, 40)
    _, before = decay_rule(q[:, :25], k[:, :25], v[:, :25], g[:, :25], state)
    g[:, 25:], v[:, 25:] = 0.0, 0.0
    close(decay_rule(q, k, v, g, state)[1], before, 1e-6)


def test_autocast_leaves_the_decay_rule_alone() -> None:
    given_ = made(4, 70)

    def mixed(*given: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return decay_rule(*given)

    plain, other = gradients(decay_rule, given_, None), gradients(mixed, given_, None)
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    half = [t.bfloat16() for t in given_]
    assert {t.dtype for t in decay_rule(*half)} == {torch.float32}


def test_decay_pieces_and_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    given_, starts = made(4, 130), resets(4, 130, 0.05)
    plain = chunked(*given_, starts)[0]
    monkeypatch.setattr(decay, "_PIECE", 50)
    with torch.no_grad():
        close(decay_rule(*given_, starts)[0], plain, 1e-6)
    monkeypatch.setitem(decay.KERNELS, "cpu", lambda q, k, v, g, state, starts: (v * 2, state))
    assert torch.equal(decay_rule(*given_)[0], given_[2] * 2)


def test_decay_rule_refuses_what_cannot_be() -> None:
    q, k, v, g, state = made(1, 5, groups=2)
    with pytest.raises(ValueError, match="chunk of 0 tokens"):
        decay_rule(q, k, v, g, state, chunk=0)
    with pytest.raises(ValueError, match="2 groups do not divide 1 heads"):
        decay_rule(q, k, v[:, :, :1], g[:, :, :1])


@pytest.mark.parametrize("length", [1, 9])
def test_a_short_convolution_may_have_a_bias(length: int) -> None:
    r = torch.Generator().manual_seed(0)
    conv = ShortConv(5, 4, bias=True)
    conv.init_weights(r)
    assert conv.bias is not None and 0 < conv.bias.abs().max() <= 0.5
    x, tail = torch.randn(2, length, 5, generator=r), torch.randn(2, 3, 5, generator=r)
    joined = torch.cat((tail, x), 1).mT
    plain = torch.nn.functional.conv1d(joined, conv.weight.view(5, 1, 4), conv.bias, groups=5).mT
    torch.testing.assert_close(conv(x, tail), torch.nn.functional.silu(plain))
