"""Kimi Delta Attention against transformers' KimiLinear (always), and against fla's recurrent form.

The second wants a folder made by `pip install --no-deps --target FOLDER fla-core einops`, named by
IKIRERE_FLA.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.layers.delta import chunked, delta_rule, recurrent
from ikirere.model.layers.mixer import ForwardContext

transformers = pytest.importorskip("transformers")
kimi = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
FLA = os.environ.get("IKIRERE_FLA")
LENGTHS = (1, 5, 63, 64, 65, 150)
CASES = [(seed, (0.05, 1.0, 16.0)[seed % 3]) for seed in range(6)] + [(3, 16.0), (5, 0.05)]


def shape(seed: int) -> tuple[int, int, int, int, int]:
    """Batch, length, heads, key width, value width."""
    r = random.Random(seed)
    return (
        r.randint(1, 3),
        LENGTHS[seed % len(LENGTHS)],
        r.randint(1, 3),
        r.choice([4, 16, 33]),
        r.choice([4, 20]),
    )


def tensors(seed: int, gate: float) -> list[Tensor]:
    batch, length, heads, keys, values = shape(seed)
    r = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, length, heads, keys, generator=r) for _ in range(2))
    v = torch.randn(batch, length, heads, values, generator=r)
    g, beta = -gate * torch.rand(q.shape, generator=r), torch.rand(batch, length, heads, generator=r)
    state = torch.randn(batch, heads, keys, values, generator=r)
    return [F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, g, beta, state]


def ours(form: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """With the oracles' scale of queries, 1 / sqrt(key width)."""
    return lambda q, *others: form(q * q.shape[-1] ** -0.5, *others)


def theirs(form: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda q, k, v, g, beta, state: form(
        q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True
    )


def run(form: Callable[..., tuple[Tensor, Tensor]], given: list[Tensor]) -> list[Tensor]:
    wanted = [t.clone().requires_grad_() for t in given]
    o, state = form(*wanted)
    r = torch.Generator().manual_seed(0)
    sum((t * torch.randn(t.shape, generator=r)).sum() for t in (o, state)).backward()
    return [o.detach(), state.detach(), *(t.grad for t in wanted)]


def compare(form: Callable[..., Any], oracle: Callable[..., Any], given: list[Tensor]) -> None:
    found, expected = run(ours(form), given), run(oracle, given)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.isfinite(a).all()
        bound = 1e-5 * max(1.0, float(b.abs().max())) if i < 2 else 1e-4 * float(b.abs().max())
        assert (a - b).abs().max() <= bound + 1e-12, i


@pytest.mark.parametrize(("seed", "gate"), CASES)
def test_forms_against_transformers_chunks(seed: int, gate: float) -> None:
    given, oracle = tensors(seed, gate), theirs(inspect.unwrap(kimi.chunk_kimi_delta_attention))
    compare(chunked, oracle, given)
    compare(recurrent, oracle, given)


@pytest.mark.parametrize("seed", range(6))
def test_forms_against_transformers_recurrence(seed: int) -> None:
    given, oracle = tensors(seed, 1.0), theirs(inspect.unwrap(kimi.recurrent_kimi_delta_attention))
    with torch.no_grad():  # it writes in place, so it has no gradient
        for form in (chunked, recurrent, delta_rule):
            for a, b in zip(ours(form)(*given), oracle(*given), strict=True):
                assert (a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max()))


@pytest.mark.skipif(FLA is None, reason="IKIRERE_FLA names no folder with fla-core")
@pytest.mark.parametrize(("seed", "gate"), CASES)
def test_forms_against_fla(seed: int, gate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(FLA)])
    spec = importlib.util.spec_from_file_location("fla_kda_naive", Path(str(FLA)) / "fla/ops/kda/naive.py")
    assert spec is not None
    assert spec.loader is not None
    naive = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(naive)
    given, oracle = tensors(seed, gate), theirs(naive.naive_recurrent_kda)
    compare(chunked, oracle, given)
    compare(recurrent, oracle, given)


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_and_its_gradients(seed: int) -> None:
    """Our layer with their weights: output, gradient of the input, gradient of every weight."""
    r = random.Random(seed)
    heads, head_dim, hidden, conv = (
        r.randint(1, 3),
        r.choice([8, 10, 16]),
        r.choice([12, 30]),
        r.choice([1, 2, 4]),
    )
    length = LENGTHS[-1 - seed]
    torch.manual_seed(seed)
    config = transformers.KimiLinearConfig(
        hidden_size=hidden,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_attn_config={"head_dim": head_dim, "num_heads": heads, "short_conv_kernel_size": conv},
    )
    their = kimi.KimiLinearDeltaAttention(config, 0)
    with torch.no_grad():
        for p in their.parameters():
            p.copy_(torch.randn(p.shape) * 0.3)
    settings = {"head_dim": head_dim, "num_heads": heads, "conv_size": conv, "chunk_size": 16}
    mixer = (
        Decoder(
            ModelConfig(9, hidden, 1, 1, 1, 9, 200, head_dim=2, layer_pattern="kda", mixers={"kda": settings})
        )
        .layers[0]
        .mixer
    )
    width, gate = heads * head_dim, their.forget_gate
    pairs = {
        **{n: getattr(their, n.split(".")[0]).weight for n in (
            "q_proj.weight", "k_proj.weight", "v_proj.weight", "b_proj.weight", "g_a_proj.weight", "g_b_proj.weight",
            "o_proj.weight", "o_norm.weight",
        )},
        "f_a_proj.weight": gate.f_a_proj.weight, "f_b_proj.weight": gate.f_b_proj.weight,
        "A_log": gate.A_log, "dt_bias": gate.dt_bias,
    }  # fmt: skip
    parameters = dict(mixer.named_parameters())
    with torch.no_grad():
        for name, p in pairs.items():
            parameters[name].copy_(p.view(parameters[name].shape))
        for i, name in enumerate(("q", "k", "v")):
            parameters[f"{name}_conv.weight"].copy_(
                their.conv1d.weight[i * width : (i + 1) * width].flatten()
            )
    x = torch.randn(2, length, hidden)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = mixer(one, ForwardContext(torch.arange(length)[None], (), None, None, causal=True)), their(two)
    assert (y - z).abs().max() <= 1e-5
    weight = torch.randn(y.shape)
    (y * weight).sum().backward()
    (z * weight).sum().backward()
    grads = {n: (parameters[n].grad, p.grad) for n, p in pairs.items()}
    for i, name in enumerate(("q", "k", "v")):
        of_conv = their.conv1d.weight.grad[i * width : (i + 1) * width]
        grads[name] = (parameters[f"{name}_conv.weight"].grad, of_conv)
    grads["input"] = (one.grad, two.grad)
    assert len(grads) == len(parameters) + 1
    for name, (a, b) in grads.items():
        assert (a.flatten() - b.flatten()).abs().max() <= 1e-4 * b.abs().max(), name
