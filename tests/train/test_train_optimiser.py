"""Schedules at known points, Muon's orthogonality, who is decayed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from train_helpers import Numbers, one_thread, small_model

from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.recipe.sections import Optimizer, Schedule
from ikirere.tokens.batch import Batch
from ikirere.train.objective import CrossEntropy
from ikirere.train.optimiser import build_optimizer, sort_weights
from ikirere.train.orthogonal import Muon, orthogonalise
from ikirere.train.schedule import lr_factor


@pytest.fixture(autouse=True)
def _thread() -> Iterator[None]:
    with one_thread():
        yield


# ---------------------------------------------------------------- schedules


def test_wsd_at_known_points() -> None:
    config = Schedule(name="wsd", warmup=0.1, decay=20, min_ratio=0.1)
    at = [lr_factor(config, step, 100) for step in range(100)]
    assert at[0] == pytest.approx(0.1) and at[9] == 1.0 and at[10:80] == [1.0] * 70
    assert at[80] == pytest.approx(1 - 0.9 / 20)
    assert at[89] == pytest.approx(0.55) and at[99] == pytest.approx(0.1)


def test_cosine_at_known_points() -> None:
    config = Schedule(name="cosine", warmup=10, min_ratio=0.2)
    assert lr_factor(config, 4, 110) == pytest.approx(0.5)
    assert lr_factor(config, 9, 110) == 1.0
    assert lr_factor(config, 59, 110) == pytest.approx(0.6)
    assert lr_factor(config, 109, 110) == pytest.approx(0.2)


def test_constant_stays_after_warm_up() -> None:
    config = Schedule(name="constant", warmup=0)
    assert [lr_factor(config, step, 7) for step in range(7)] == [1.0] * 7


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["wsd", "cosine", "constant"]),
    st.integers(1, 300),
    st.one_of(st.floats(0, 1), st.integers(0, 400)),
    st.one_of(st.floats(0, 1), st.integers(0, 400)),
    st.floats(0, 1),
)
def test_no_step_is_wasted(name: str, total: int, warmup: float, decay: float, ratio: float) -> None:
    config = Schedule(name=name, warmup=warmup, decay=decay, min_ratio=ratio)
    factors = [lr_factor(config, step, total) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    peak = factors.index(max(factors))
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


# ---------------------------------------------------------------- Muon


@pytest.mark.parametrize("shape", [(16, 16), (16, 20), (16, 64), (5, 3, 40)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    # Conditioned as gradients are not: what is far below the largest value needs more iterations.
    u, _, v = torch.linalg.svd(torch.randn(*shape), full_matrices=False)
    x = u @ torch.diag_embed(torch.linspace(0.1, 1.0, shape[-2]).expand(*shape[:-2], -1)) @ v
    values = torch.linalg.svdvals(orthogonalise(37.0 * x))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.25


def test_wide_and_direct_forms_agree() -> None:
    from ikirere.train import orthogonal

    x = torch.randn(3, 16, 40)
    x /= x.norm(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(orthogonal._by_products(x, 5), orthogonal._directly(x, 5), atol=1e-4, rtol=0)


def test_muon_is_torchs_muon_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.float())  # torch's own products
    shapes = [(8, 8), (24, 8), (8, 24), (24, 8)]
    ours = [nn.Parameter(torch.randn(s)) for s in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    a = Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1)
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(4, 8, 24), (4, 24, 8), (3, 8, 8)])
def test_a_stack_of_experts_is_updated_expert_by_expert(shape: tuple[int, ...]) -> None:
    stack = nn.Parameter(torch.randn(shape))
    apart = [nn.Parameter(m.clone()) for m in stack.detach()]
    beside = nn.Parameter(torch.randn(shape[1:]))
    again = nn.Parameter(beside.detach().clone())
    together, single = (Muon(ps, lr=0.02, weight_decay=0.1) for ps in ([stack, beside], [*apart, again]))
    for _ in range(3):
        stack.grad, beside.grad = torch.randn(shape), torch.randn(shape[1:])
        for p, g in zip(apart, stack.grad, strict=True):
            p.grad = g.clone()
        again.grad = beside.grad.clone()
        together.step()
        single.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in apart]))
    torch.testing.assert_close(beside, again)


def test_muon_trains_experts() -> None:
    experts = {"num_experts": 4, "top_k": 2}
    model = Decoder(ModelConfig(64, 16, 2, 2, 2, 24, 64, ffn_pattern="dense moe", ffns={"moe": experts}))
    optimizers = build_optimizer(model, Optimizer(name="muon", lr=1e-3, muon_lr=0.02))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens = torch.randint(0, 64, (2, 16))
    batch = Batch(tokens, tokens.roll(-1, 1), torch.arange(16).expand(2, -1))
    CrossEntropy()(model, batch)[0].backward()
    optimizers.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


# ---------------------------------------------------------------- who goes where


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_sorted(tied: bool) -> None:
    model = Decoder(ModelConfig(61, 32, 2, 4, 2, 48, 64, qk_norm=True, tie_word_embeddings=tied))
    matrices, head, rest = sort_weights(model)
    assert len(matrices) == 2 * 7 and all(p.ndim == 2 for p in matrices)
    assert [id(p) for p in head] == ([] if tied else [id(model.output_weight)])
    assert any(p is model.embed_tokens.weight for p in rest)
    assert len(matrices) + len(head) + len(rest) == len(list(model.parameters()))


def test_decay_falls_on_matrices_only() -> None:
    model = small_model()
    optimizers = build_optimizer(model, Optimizer(lr=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizers.step()
    for name, p in model.named_parameters():
        factor = 1.0 if p.ndim < 2 or "embed" in name else 0.95
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_filled_state_is_what_adamw_makes_itself() -> None:
    model, other = small_model(), small_model()
    ours = build_optimizer(model, Optimizer(lr=0.01, weight_decay=0.0))
    theirs = torch.optim.AdamW(other.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    source = Numbers()
    for _ in range(3):
        batch = source.next()
        for m in (model, other):
            CrossEntropy()(m, batch)[0].backward()
        ours.step()
        theirs.step()
        ours.zero_grad()
        theirs.zero_grad()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=0)


def test_clipping() -> None:
    model = small_model()
    optimizers = build_optimizer(model, Optimizer(lr=0.01, grad_clip=0.5))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    count = sum(p.numel() for p in model.parameters())
    assert float(optimizers.clip()) == pytest.approx(count**0.5, rel=1e-5)
    assert float(optimizers.clip()) == pytest.approx(0.5, rel=1e-4)
    assert float(optimizers.clip()) == pytest.approx(0.5, rel=1e-4)
