"""Mixtures of experts equal transformers' Qwen3Moe, OLMoE and Mixtral, forward, gradients and both ways; routing,
balance and capacity by definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub import load_config, load_pretrained, save_pretrained
from ikirere.model.layers.moe import MixtureOfExperts
from ikirere.recipe.planner.counts import count
from ikirere.recipe.schema import Model
from ikirere.tokens.batch import Batch
from ikirere.train.objective import CrossEntropy

transformers = pytest.importorskip("transformers")

BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 128,
    "ffn_pattern": "moe",
}
FULL = {"qk_norm": True, "qk_norm_width": "full"}
CASES = [
    pytest.param({"qk_norm": True, "ffn_pattern": "dense moe*2"}, {"num_experts": 5, "top_k": 2, "expert_size": 24}, "Qwen3MoeForCausalLM", id="qwen3 with a dense layer"),
    pytest.param({"qk_norm": True, "tie_word_embeddings": False}, {"num_experts": 4, "top_k": 1, "normalise_top_k": False, "expert_size": 16}, "Qwen3MoeForCausalLM", id="qwen3 top-1"),
    pytest.param(FULL, {"num_experts": 6, "top_k": 3, "normalise_top_k": False}, "OlmoeForCausalLM", id="olmoe"),
    pytest.param({"tie_word_embeddings": False}, {"num_experts": 4, "top_k": 2}, "MixtralForCausalLM", id="mixtral"),
]  # fmt: skip


def made(shape: dict[str, Any], moe: dict[str, Any]) -> Decoder:
    model = Decoder(ModelConfig(**(BASE | shape), ffns={"moe": moe}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.15 if p.ndim > 1 else 0.3) + (p.ndim == 1))
    return model.eval()


@pytest.mark.parametrize(("shape", "moe", "name"), CASES)
def test_logits_and_gradients_both_ways(
    shape: dict[str, Any], moe: dict[str, Any], name: str, tmp_path: Path
) -> None:
    model = made(shape, moe)
    save_pretrained(model, tmp_path, {"eos_token_id": 1, "pad_token_id": 0})
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [name]
    other = getattr(transformers, name).from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    )
    tokens = torch.randint(0, 61, (2, 29))
    ours, reference = model(tokens), other(tokens).logits
    assert (ours - reference).abs().max() <= 1e-5 * max(1.0, float(reference.detach().abs().max()))
    ours.square().sum().backward()
    reference.square().sum().backward()
    theirs = dict(other.named_parameters())
    for i, block in enumerate(model.blocks()):
        if isinstance(block.ffn, MixtureOfExperts):
            place = f"model.layers.{i}.mlp"
            gate, up = theirs[f"{place}.experts.gate_up_proj"].grad.chunk(2, dim=1)
            pairs = [
                (block.ffn.gate_proj, gate),
                (block.ffn.up_proj, up),
                (block.ffn.down_proj, theirs[f"{place}.experts.down_proj"].grad),
                (block.ffn.router, theirs[f"{place}.gate.weight"].grad),
            ]
            for part, expected in pairs:
                assert (part.weight.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-6
    other.save_pretrained(tmp_path / "back")
    again = load_pretrained(tmp_path / "back")
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(tokens), ours.detach(), rtol=0, atol=1e-5)
    assert load_config(tmp_path).ffn_kinds == model.config.ffn_kinds


@pytest.mark.parametrize(("shape", "moe", "name"), CASES)
def test_decoding_and_packing_change_nothing(shape: dict[str, Any], moe: dict[str, Any], name: str) -> None:
    model = made(shape, moe)
    tokens = torch.randint(0, 61, (1, 20))
    with torch.no_grad():
        whole = model(tokens)
        cache = KVCache(model.config, 1, 20)
        parts = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 20))]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
        documents = torch.tensor([[0] * 9 + [1] * 11])
        apart = torch.cat([model(tokens[:, :9]), model(tokens[:, 9:])], 1)
        torch.testing.assert_close(model(tokens, None, documents), apart, rtol=1e-4, atol=1e-5)


def layer(**settings: Any) -> MixtureOfExperts:
    model = made({}, {"num_experts": 4, "top_k": 2, **settings})
    found = next(model.blocks()).ffn
    assert isinstance(found, MixtureOfExperts)
    return found.train()


class Row:
    """What a feed-forward reads of its context."""

    def __init__(self, document_ids: torch.Tensor | None = None) -> None:
        self.document_ids = document_ids


def test_the_losses_are_those_of_the_papers() -> None:
    part, x = layer(aux_weight=1.0, router_z_weight=0.0), torch.randn(2, 50, 32)
    part(x, Row())  # type: ignore[arg-type]
    logits = part.router(x).flatten(0, 1)
    expected = transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func((logits,), 4, 2)
    torch.testing.assert_close(part.auxiliary, expected)
    part = layer(aux_weight=0.0, router_z_weight=1.0)
    part(x, Row())  # type: ignore[arg-type]
    torch.testing.assert_close(part.auxiliary, part.router(x).logsumexp(-1).square().mean())


def test_padding_is_no_load() -> None:
    part, x = layer(aux_weight=1.0), torch.randn(1, 20, 32)
    part(x[:, :12], Row())  # type: ignore[arg-type]
    loss, load = part.auxiliary, part.load.clone()
    part.load.zero_()
    part(x, Row(torch.tensor([[0] * 12 + [-1] * 8])))  # type: ignore[arg-type]
    torch.testing.assert_close(part.auxiliary, loss)
    assert torch.equal(part.load, load) and load.sum() == 24


def test_a_selection_bias_evens_the_load() -> None:
    part = layer(balance="bias", bias_rate=0.005, router_z_weight=0.0)
    x = torch.randn(1, 400, 32) + 0.4  # off centre, so that the router prefers some experts
    worst = []
    for _ in range(150):
        part(x, Row())  # type: ignore[arg-type]
        worst.append(float(part.after_step().max()) * 4)
    assert worst[0] > 1.3 and worst[-1] < 1.06
    assert part.load.sum() == 0


def test_capacity_drops_the_latest_tokens_in_training_only() -> None:
    part, x = layer(capacity_factor=0.5), torch.randn(1, 64, 32)
    with torch.no_grad():
        limited = part(x, Row())  # type: ignore[arg-type]
        free = part.eval()(x, Row())  # type: ignore[arg-type]
    same = (limited - free).abs().amax(-1)[0] < 1e-6
    assert same[:8].all() and not same[-8:].all()


def test_the_objective_adds_the_router_loss() -> None:
    model = made({}, {"num_experts": 4, "top_k": 2}).train()
    tokens = torch.randint(0, 61, (2, 16))
    batch = Batch(tokens, tokens.roll(-1, 1), torch.arange(16).repeat(2, 1))
    loss, scalars = CrossEntropy()(model, batch)
    torch.testing.assert_close(loss, scalars["nll"] + scalars["router_loss"])
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    figures = model.after_step()
    loads = {name: float(value) for name, value in figures.items() if name.startswith("expert_load/")}
    layers = [i for i, kind in enumerate(model.config.ffn_kinds) if kind == "moe"]
    assert list(loads) == [f"expert_load/{layer}/{expert}" for layer in layers for expert in range(4)]
    assert sum(loads.values()) == pytest.approx(4 * len(layers))
    assert float(figures["expert_load_max"]) == max(loads.values()) >= 1
    assert model.eval()(tokens) is not None


def test_parameters_and_active_ones_are_counted() -> None:
    values = BASE | {"ffn_pattern": "dense moe"}
    shape = Model(
        **values, ffns={"moe": {"num_experts": 4, "top_k": 1, "expert_size": 24, "normalise_top_k": False}}
    )
    found = count(shape)
    assert Decoder(ModelConfig.from_recipe(shape)).num_parameters() == found.total
    assert found.total - found.hidden_2d >= 0 and found.hidden_2d + 61 * 32 - found.matmul == 3 * 3 * 32 * 24


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 9}, r"model\.ffns\.moe\.top_k: 9 of 8 experts"),
        ({"top_k": 1, "normalise_top_k": True}, "the router would learn nothing"),
        (
            {"balance": "luck"},
            r"model\.ffns\.moe\.balance: got 'luck'; input should be 'aux', 'bias' or 'none'",
        ),
        ({"size": 3}, r"model\.ffns\.moe\.size: 'moe' has no such setting"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Decoder(ModelConfig(**BASE, ffns={"moe": settings}))
