"""Rotary frequencies against transformers and the scalings' definitions; tables against direct evaluation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.layers.rope import FAST, SLOW, Rope, RopeSpec, rope_table, rotate

CPU = torch.device("cpu")


def directly(positions: list[int], frequencies: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    angles = torch.tensor(positions, dtype=torch.float64)[:, None] * frequencies.double()
    return (angles.cos() * scale).float(), (angles.sin() * scale).float()


@pytest.mark.parametrize(("dim", "theta"), [(2, 10_000.0), (8, 500.0), (64, 1e6)])
def test_plain_frequencies(dim: int, theta: float) -> None:
    """theta_i = theta^(-2i / D): section 3.2.2 of the paper."""
    found, scale = RopeSpec(dim).frequencies(theta, CPU)
    assert found.tolist() == pytest.approx([theta ** (-2 * i / dim) for i in range(dim // 2)], rel=1e-5)
    assert scale == 1.0 and found.dtype == torch.float32


@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("dim", [4, 8, 64])
def test_ntk_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor(dim: int, factor: float) -> None:
    """That is what its base is chosen for; between the two the frequencies stay a geometric series."""
    plain, _ = RopeSpec(dim).frequencies(10_000.0, CPU)
    found, scale = RopeSpec(dim, None, "ntk", factor, 4096).frequencies(10_000.0, CPU)
    last = dim // 2 - 1
    expected = [float(plain[i]) / factor ** (i / last) for i in range(dim // 2)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert scale == 1.0


def test_ntk_of_a_single_pair_has_nothing_to_slow() -> None:
    assert RopeSpec(2, None, "ntk", 4.0, 64).frequencies(10_000.0, CPU)[0].tolist() == [1.0]


@pytest.mark.parametrize(
    ("dim", "theta", "original", "factor"),
    [(64, 10_000.0, 4096, 8.0), (128, 5e5, 8192, 4.0), (16, 10_000.0, 32, 4.0), (8, 100.0, 2048, 2.0), (32, 1e6, 64, 16.0)],
)  # fmt: skip
def test_yarn_is_that_of_transformers(dim: int, theta: float, original: int, factor: float) -> None:
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    config = SimpleNamespace(
        head_dim=dim,
        hidden_size=dim,
        num_attention_heads=1,
        max_position_embeddings=int(original * factor),
        rope_parameters={
            "rope_type": "yarn", "rope_theta": theta, "factor": factor, "original_max_position_embeddings": original,
            "partial_rotary_factor": 1.0,
        },
        standardize_rope_params=lambda: None,
    )  # fmt: skip
    expected, scale = utils.ROPE_INIT_FUNCTIONS["yarn"](config, CPU)
    found, ours = RopeSpec(dim, None, "yarn", factor, original).frequencies(theta, CPU)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert ours == pytest.approx(scale, rel=1e-6)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    """Section 3.2 of the paper: kept from FAST = 32 turns over the original context, interpolated below SLOW = 1."""
    dim, theta, original, factor = 128, 10_000.0, 4096, 4.0
    plain, _ = RopeSpec(dim).frequencies(theta, CPU)
    found, scale = RopeSpec(dim, None, "yarn", factor, original).frequencies(theta, CPU)
    turns = original * plain / (2 * math.pi)
    assert (FAST, SLOW) == (32, 1)
    assert torch.equal(found[turns > 33], plain[turns > 33]) and (turns > 33).sum() > 10
    torch.testing.assert_close(found[turns < 0.9], plain[turns < 0.9] / factor)
    assert (turns < 0.9).sum() > 10 and bool((found.diff() < 0).all())
    assert scale == pytest.approx(0.1 * math.log(factor) + 1)


def test_yarn_of_an_unchanged_context_changes_nothing() -> None:
    plain, _ = RopeSpec(16).frequencies(1e4, CPU)
    found, scale = RopeSpec(16, None, "yarn", 1.0, 1).frequencies(1e4, CPU)
    assert torch.equal(found, plain) and scale == 1.0


@pytest.mark.parametrize(
    ("scaling", "factor", "original", "message"),
    [
        ("linear", 2.0, 8, "'linear': accepted are none, yarn, ntk"),
        ("yarn", 0.5, 8, "original 8, factor 0.5"),
        ("ntk", 2.0, 0, "original 0, factor 2"),
    ],
)
def test_impossible_scalings_are_refused(scaling: str, factor: float, original: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RopeSpec(8, None, scaling, factor, original)


def test_bounds_of_scaling_are_included_and_there_is_no_original_context_by_default() -> None:
    assert RopeSpec(8, None, "ntk", 1.0, 1).frequencies(100.0, CPU)[1] == 1.0
    assert RopeSpec(8, None, "none", 0.0, 0).frequencies(100.0, CPU)[1] == 1.0
    with pytest.raises(UserError, match="original 0, factor 2"):
        RopeSpec(8, scaling="yarn", factor=2.0)


def test_a_table_holds_scaled_cosines_and_sines_of_each_position() -> None:
    spec = RopeSpec(8, None, "yarn", 4.0, 16)
    frequencies, scale = spec.frequencies(100.0, CPU)
    cos, sin = rope_table(spec, 64, 100.0, CPU)
    expected = directly(list(range(64)), frequencies, scale)
    torch.testing.assert_close((cos, sin), expected, atol=1e-5, rtol=0)
    assert scale > 1.1 and cos.shape == (64, 4)


def test_rotation_is_multiplication_of_complex_numbers() -> None:
    """Pair (x[i], x[i + D/2]) is a number that is multiplied with exp(i angle)."""
    rope = Rope(RopeSpec(8), 50, 100.0)
    positions = torch.tensor([[3, 49], [0, 20]])
    x = torch.randn(2, 2, 3, 8)
    y = rotate(x, *rope(positions))
    angles = positions.double()[..., None, None] * 100.0 ** (-torch.arange(4).double() / 4)
    rotated = torch.complex(x[..., :4].double(), x[..., 4:].double()) * torch.exp(1j * angles)
    torch.testing.assert_close(y.double(), torch.cat((rotated.real, rotated.imag), -1), atol=1e-5, rtol=0)


def test_without_a_bound_each_position_is_turned_twice() -> None:
    spec = RopeSpec(6, None, "yarn", 2.0, 8, last=12)
    rope = Rope(spec, 16, 50.0)
    assert rope.cos.numel() == 0, "there is no table"
    positions = [0, 5, 12, 13, 1_000_003]
    cos, sin = rope(torch.tensor([positions]))
    frequencies, scale = spec.frequencies(50.0, CPU)
    for kind, at in enumerate((positions, [min(p, 12) for p in positions])):
        c, s = directly(at, frequencies, scale)
        torch.testing.assert_close(cos[0, :, kind], torch.cat((c, c), -1), atol=1e-6, rtol=0)
        torch.testing.assert_close(sin[0, :, kind], torch.cat((-s, s), -1), atol=1e-6, rtol=0)
    assert cos.shape == (1, 5, 2, 6) and cos.dtype == sin.dtype == torch.float32


def test_the_models_base_may_change_and_a_specs_own_stays() -> None:
    rope, own = Rope(RopeSpec(8), 20, 100.0), Rope(RopeSpec(8, theta=7.0), 20, 100.0)
    before = own.cos.clone()
    for module in (rope, own):
        module.set_theta(900.0)
    assert (rope.theta, own.theta) == (900.0, 7.0)
    assert torch.equal(rope.cos, rope_table(RopeSpec(8), 20, 900.0, CPU)[0])
    assert torch.equal(own.cos, before) and torch.equal(before, rope_table(RopeSpec(8), 20, 7.0, CPU)[0])


def test_the_table_is_never_saved_and_never_rounded() -> None:
    rope = Rope(RopeSpec(8), 20, 100.0)
    cos = rope.cos.clone()
    assert not rope.state_dict()
    assert torch.equal(rope.to(torch.bfloat16).cos, cos) and rope.to(torch.float64).sin.dtype == torch.float32


def test_on_the_meta_device_there_are_shapes_and_off_it_the_table() -> None:
    with torch.device("meta"):
        rope = Rope(RopeSpec(8), 20, 100.0)
    assert rope.cos.is_meta and rope.sin.is_meta and rope.cos.shape == rope.sin.shape == (20, 4)
    rope.to_empty(device="cpu")
    cos, sin = rope_table(RopeSpec(8), 20, 100.0, CPU)
    assert torch.equal(rope.cos, cos) and torch.equal(rope.sin, sin)


def test_moving_an_intact_table_does_not_compute_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = Rope(RopeSpec(8), 20, 100.0)
    monkeypatch.setattr(rope, "fill", lambda: pytest.fail("filled again"))
    assert rope.to("cpu") is rope
