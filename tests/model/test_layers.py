"""Layers against their formulas, gradients included."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.model.layers.attention import attend
from ikirere.model.layers.norm import RMSNorm
from ikirere.model.layers.rope import Rope, RopeSpec, rotate


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Networks this small only wait for a second thread.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def formula(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    size=st.integers(1, 70),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_rms_norm_and_its_gradients(shape: list[int], size: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm = RMSNorm(size, 1e-5)
    x = (torch.randn(*shape, size, generator=generator) * scale).requires_grad_()
    grad = torch.randn(*shape, size, generator=generator)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(size, generator=generator))
    y = norm(x)
    y.backward(grad)
    exact, weight = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    expected = formula(exact, weight, 1e-5)
    expected.backward(grad.double())
    for ours, theirs in ((y, expected), (x.grad, exact.grad), (norm.weight.grad, weight.grad)):
        bound = 2e-5 * max(theirs.abs().max().item(), 1e-6)
        if ours is x.grad:
            # Its parts cancel: the bound is that of the largest one, |grad * weight| / rms(x).
            rms = (exact.detach() ** 2).mean(-1).add(1e-5).sqrt().min().item()
            bound = 2e-5 * (grad.double() * weight).detach().abs().max().item() / rms
        assert (ours.double() - theirs).abs().max() <= bound


def test_rms_norm_of_a_transposed_gradient_and_a_frozen_weight() -> None:
    norm = RMSNorm(6, 1e-5)
    norm.weight.requires_grad_(False)
    x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    norm(x).transpose(0, 1).square().sum().backward()
    other = x.detach().clone().requires_grad_()
    formula(other, norm.weight, 1e-5).square().sum().backward()
    assert norm.weight.grad is None
    torch.testing.assert_close(x.grad, other.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("weight", "dtype"), [("float32", "bfloat16"), ("bfloat16", "bfloat16")])
def test_rms_norm_keeps_the_input_dtype(weight: str, dtype: str) -> None:
    norm = RMSNorm(32, 1e-5).to(getattr(torch, weight))
    x = torch.randn(5, 32).to(getattr(torch, dtype))
    y = norm(x)
    assert y.dtype == x.dtype
    torch.testing.assert_close(y.float(), formula(x.float(), norm.weight.float(), 1e-5), atol=0.03, rtol=0.02)


def test_rope_rotates_each_pair_by_its_angle() -> None:
    rope = Rope(RopeSpec(8), 100, 1000.0)
    x = torch.randn(1, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 7, 99]])
    y = rotate(x, *rope(positions))
    for t, position in enumerate((0, 7, 99)):
        for i in range(4):
            angle = position * 1000.0 ** (-2 * i / 8)
            a, b = x[0, t, :, i], x[0, t, :, i + 4]
            torch.testing.assert_close(y[0, t, :, i], a * math.cos(angle) - b * math.sin(angle))
            torch.testing.assert_close(y[0, t, :, i + 4], b * math.cos(angle) + a * math.sin(angle))


@settings(max_examples=25, deadline=None)
@given(
    kv=st.integers(1, 3),
    group=st.integers(1, 3),
    queries=st.sampled_from([1, 2, 31, 129, 300]),
    earlier=st.sampled_from([0, 5]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_is_softmax_of_scores(
    kv: int, group: int, queries: int, earlier: int, masked: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    causal = earlier == 0
    keys = queries + earlier
    q = torch.randn(2, kv * group, queries, 8, generator=generator)
    k, v = (torch.randn(2, kv, keys, 8, generator=generator) for _ in range(2))
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if causal or masked:
        seen = seen.tril(earlier)
    seen = seen.expand(2, 1, queries, keys)
    if masked:
        seen = seen & (torch.rand(2, 1, queries, keys, generator=generator) < 0.5)
        seen = seen | torch.eye(queries, keys, dtype=torch.bool).roll(earlier, 1)
    scores = q @ k.repeat_interleave(group, 1).transpose(2, 3) / math.sqrt(8)
    expected = scores.masked_fill(~seen, -math.inf).softmax(-1) @ v.repeat_interleave(group, 1)
    y = attend(q, k, v, seen if masked else None, causal)
    torch.testing.assert_close(y.transpose(1, 2), expected, atol=2e-6, rtol=1e-4)
