"""Mamba-2 against transformers' `Mamba2Mixer` and `Mamba2ForCausalLM`: outputs, gradients, states, decoding."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.layers.decay import chunked, recurrent
from ikirere.model.layers.mixer import ForwardContext, Mixer

transformers = pytest.importorskip("transformers")
theirs = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
LENGTHS = (1, 5, 63, 64, 65, 150)


def pair(seed: int, depth: int = 1) -> tuple[ModelConfig, object]:
    """The same random shape for us and for them."""
    r = random.Random(seed)
    groups, head_dim, state = r.choice([1, 2]), r.choice([4, 6, 16]), r.choice([3, 8, 20])
    expand, conv = r.choice([1, 2]), r.choice([2, 3, 4])
    hidden = head_dim * groups * r.randint(1, 3)
    config = transformers.Mamba2Config(
        num_heads=expand * hidden // head_dim, head_dim=head_dim, hidden_size=hidden, state_size=state,
        expand=expand, conv_kernel=conv, n_groups=groups, chunk_size=r.choice([8, 32]), num_hidden_layers=depth,
        vocab_size=20, layer_norm_epsilon=1e-5,
    )  # fmt: skip
    settings = {
        "head_dim": head_dim, "state_size": state, "n_groups": groups, "conv_size": conv, "expand": expand,
        "chunk_size": r.choice([8, 64, 100]),
    }  # fmt: skip
    ours = ModelConfig(20, hidden, depth, 1, 1, 8, 200, head_dim=2, rms_norm_eps=1e-5, layer_pattern="mamba2",
                       mixers={"mamba2": settings})  # fmt: skip
    return ours, config


def named(mixer: Mixer, their: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Our parameters and theirs, all of both."""
    ours, other = dict(mixer.named_parameters()), dict(their.named_parameters())
    renamed = {"conv.weight": "conv1d.weight", "conv.bias": "conv1d.bias"}
    assert {renamed.get(n, n) for n in ours} == set(other)
    return {n: (p, other[renamed.get(n, n)]) for n, p in ours.items()}


def alike(mixer: Mixer, their: nn.Module) -> None:
    with torch.no_grad():
        for name, (p, other) in named(mixer, their).items():
            if name not in ("A_log", "dt_bias"):
                other.copy_(torch.randn(other.shape) * 0.4)
            p.copy_(other.view(p.shape))


@pytest.mark.parametrize("seed", range(12))
def test_a_mamba2_layer_and_its_gradients(seed: int) -> None:
    torch.manual_seed(seed)
    shape, config = pair(seed)
    their, mixer, length = theirs.Mamba2Mixer(config, 0), Decoder(shape).layers[0].mixer, LENGTHS[seed % 6]
    alike(mixer, their)
    x = torch.randn(2, length, shape.hidden_size)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = mixer(one, ForwardContext(torch.arange(length)[None], (), None, None, causal=True))
    z = their(two)
    assert (y - z).abs().max() <= 1e-5 * z.abs().max().clamp_min(1)
    weight = torch.randn(y.shape)
    (y * weight).sum().backward()
    (z * weight).sum().backward()
    grads = {n: (p.grad, other.grad) for n, (p, other) in named(mixer, their).items()}
    grads["input"] = (one.grad, two.grad)
    for name, (a, b) in grads.items():
        # A single head's single token is normed, so that almost nothing reaches what only scales it.
        assert (a.flatten() - b.flatten()).abs().max() <= 1e-4 * b.abs().max() + 1e-9, name


@pytest.mark.parametrize("seed", range(4))
def test_forms_against_transformers_chunk_scan(seed: int) -> None:
    """State in, state out, and both forms of ours."""
    r = torch.Generator().manual_seed(seed)
    length, heads, groups = LENGTHS[2 + seed], 4, (1, 2, 4, 1)[seed]
    x, dt = torch.randn(2, length, heads, 6, generator=r), torch.rand(2, length, heads, generator=r)
    b, c = (torch.randn(2, length, groups, 5, generator=r) for _ in range(2))
    rate, state = -16 * torch.rand(heads, generator=r), torch.randn(2, heads, 6, 5, generator=r)
    y, last = theirs.mamba2_chunk_scan(
        x, dt, rate, b, c, chunk_size=16, initial_states=state, return_final_states=True
    )
    for form in (chunked, recurrent):
        ours, kept = form(c, b, x * dt.unsqueeze(-1), dt * rate, state.mT.contiguous())
        assert (ours - y).abs().max() <= 1e-5 * y.abs().max()
        assert (kept.mT - last).abs().max() <= 1e-5 * last.abs().max()


@pytest.mark.parametrize("seed", [0, 3])
def test_decoding_against_mamba2_for_causal_lm(seed: int) -> None:
    """Their whole model against our mixers in their frame, prompt and then token by token."""
    torch.manual_seed(seed)
    shape, config = pair(seed, depth=2)
    model, ours = transformers.Mamba2ForCausalLM(config).eval(), Decoder(shape)
    for block, layer in zip(ours.blocks(), model.backbone.layers, strict=True):
        alike(block.mixer, layer.mixer)
    tokens, cache = torch.randint(0, 20, (2, 40)), KVCache(shape, 2, 40)

    def framed(t: Tensor, begin: int) -> Tensor:
        x = model.backbone.embeddings(t)
        step = cache.plan((2, t.shape[1]), None, None)
        context = ForwardContext(
            torch.arange(begin, begin + t.shape[1])[None], (), None, None, begin == 0, step
        )
        for block, layer, state in zip(ours.blocks(), model.backbone.layers, cache.layers, strict=True):
            x = x + block.mixer(layer.norm(x), context, state)
        cache.advance(step)
        return F.linear(model.backbone.norm_f(x), model.lm_head.weight)

    with torch.no_grad():
        out = model(tokens[:, :33], use_cache=True)
        assert (framed(tokens[:, :33], 0) - out.logits).abs().max() <= 1e-4
        for i in range(33, 40):
            out = model(tokens[:, i : i + 1], cache_params=out.cache_params, use_cache=True)
            assert (framed(tokens[:, i : i + 1], i) - out.logits).abs().max() <= 1e-4
