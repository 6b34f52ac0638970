"""Retention against the parallel form of the paper (arXiv 2307.08621, equations 1 to 5), and against fla's.

The second wants a folder made by `pip install --no-deps --target FOLDER fla-core einops`, named by
IKIRERE_FLA.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.layers.decay import chunked, decay_rule, recurrent
from ikirere.model.layers.mixer import ForwardContext
from ikirere.model.layers.retention import log_decay
from ikirere.model.layers.rope import Rope, RopeSpec

FLA = os.environ.get("IKIRERE_FLA")
SHAPES = [(1, 1, 1, 4, 4), (2, 5, 3, 8, 16), (2, 63, 2, 6, 6), (1, 65, 4, 16, 32), (2, 150, 8, 10, 5)]


def parallel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(Q K^T / sqrt(K) * D) V with D_nm = gamma^(n - m) for n >= m; q, k, v [B, heads, T, width]."""
    heads, length = q.shape[1:3]
    gamma = 1 - 2.0 ** (-5 - torch.arange(heads, dtype=torch.float64))
    place = torch.arange(length, dtype=torch.float64)
    apart = place[:, None] - place[None]
    d = torch.where(apart >= 0, gamma[:, None, None] ** apart.clamp_min(0), 0.0).to(q.dtype)
    return (q @ k.mT * q.shape[-1] ** -0.5 * d) @ v


def drawn(seed: int) -> list[Tensor]:
    batch, length, heads, keys, values = SHAPES[seed]
    r = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, heads, length, n, generator=r) for n in (keys, keys, values)]


def compared(oracle: object, seed: int) -> None:
    given = drawn(seed)
    weight = torch.randn(given[2].shape, generator=torch.Generator().manual_seed(9))

    def run(form: object) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in given]
        y = form(*leaves)  # type: ignore[operator]
        (y * weight).sum().backward()
        return [y.detach(), *(t.grad for t in leaves if t.grad is not None)]

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        g = log_decay(q.shape[2], q.device).expand(*q.shape[:2], -1)
        empty = q.new_zeros(len(q), q.shape[2], q.shape[3], v.shape[3])
        found = [
            form(q * q.shape[-1] ** -0.5, k, v, g, empty)[0] for form in (chunked, recurrent, decay_rule)
        ]
        assert (found[0] - found[1]).abs().max() <= 1e-5 * found[1].abs().max()
        return found[2].transpose(1, 2)

    for i, (a, b) in enumerate(zip(run(ours), run(oracle), strict=True)):
        assert (a - b).abs().max() <= (1e-4 if i else 1e-5) * b.abs().max().clamp_min(1), i


@pytest.mark.parametrize("seed", range(len(SHAPES)))
def test_retention_against_the_papers_formula(seed: int) -> None:
    compared(parallel, seed)


@pytest.mark.skipif(FLA is None, reason="IKIRERE_FLA names no folder with fla-core")
@pytest.mark.parametrize("seed", range(len(SHAPES)))
def test_retention_against_fla(seed: int) -> None:
    spec = importlib.util.spec_from_file_location(
        "fla_retention_naive", Path(str(FLA)) / "fla/ops/retention/naive.py"
    )
    assert spec is not None
    assert spec.loader is not None
    naive = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(naive)
    compared(naive.naive_retention, seed)


@pytest.mark.parametrize("length", [5, 40, 131])
def test_a_retention_layer_and_its_gradients(length: int) -> None:
    """Projections, rotations, norm of each head and gate, written out."""
    torch.manual_seed(length)
    settings = {"num_heads": 3, "head_dim": 8, "value_head_dim": 10, "chunk_size": 16}
    config = ModelConfig(
        9, 20, 1, 1, 1, 9, 200, head_dim=2, layer_pattern="retention", mixers={"retention": settings}
    )
    mixer = Decoder(config).layers[0].mixer
    with torch.no_grad():
        for p in mixer.parameters():
            p.copy_(torch.randn(p.shape) * 0.4)
    positions = torch.arange(length)[None]

    def written(x: Tensor) -> Tensor:
        q, k, v = (
            getattr(mixer, f"{n}_proj")(x).unflatten(-1, (3, -1)).transpose(1, 2) for n in ("q", "k", "v")
        )
        angle = positions.double().mT * 10_000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)

        def turned(t: Tensor) -> Tensor:
            a, b = t.chunk(2, -1)
            cos, sin = angle.cos().float(), angle.sin().float()
            return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

        o = parallel(turned(q), turned(k), v).transpose(1, 2)
        o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * mixer.o_norm.weight
        return mixer.o_proj(o.flatten(2) * F.silu(mixer.g_proj(x)))

    rope_tables = (Rope(RopeSpec(8), 200, 10_000.0)(positions),)
    x = torch.randn(2, length, 20)
    weight = torch.randn(x.shape)
    found = []
    for form in (
        lambda t: mixer(t, ForwardContext(positions, rope_tables, None, None, causal=True)),
        written,
    ):
        leaf = x.clone().requires_grad_()
        y = form(leaf)
        found.append([y, *torch.autograd.grad((y * weight).sum(), [leaf, *mixer.parameters()])])
    for i, (a, b) in enumerate(zip(*found, strict=True)):
        assert (a - b).abs().max() <= (1e-4 if i else 1e-5) * b.abs().max().clamp_min(1 if i == 0 else 0), i
