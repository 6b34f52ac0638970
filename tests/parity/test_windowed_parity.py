"""Stacks of window and full attention equal transformers' GraniteSWA and Olmo3, forward, gradients and both ways."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub import hub_name, load_config, load_pretrained, save_pretrained, why_no_public_class

transformers = pytest.importorskip("transformers")

BASE: dict[str, Any] = {
    "vocab_size": 71, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 80, "max_position_embeddings": 256, "rope_theta": 10_000.0,
}  # fmt: skip
GRANITE = {
    "sinks, rope on windows": ("window*3 full", {"window": {"window": 17, "learned_sinks": True}, "full": {"learned_sinks": True, "rope": False}}),
    "two bases": ("full window", {"window": {"window": 5, "learned_sinks": True, "rope_theta": 500.0}, "full": {"learned_sinks": True}}),
}  # fmt: skip
OLMO = {
    "yarn on full": ("window*3 full", {"window": {"window": 17}, "full": {"rope_scaling": "yarn", "original_max_position_embeddings": 32}}),
    "no scaling": ("window full", {"window": {"window": 8}}),
    "all full": ("full", {"full": {"rope_scaling": "yarn", "original_max_position_embeddings": 64}}),
}  # fmt: skip
CASES = [
    pytest.param(ModelConfig(**BASE, layer_pattern=p, mixers=m, tie_word_embeddings=i % 2 == 0), "GraniteSWAForCausalLM", id=n)
    for i, (n, (p, m)) in enumerate(GRANITE.items())
] + [
    pytest.param(
        ModelConfig(**BASE, layer_pattern=p, mixers=m, qk_norm=True, qk_norm_width="full", norm_order="post", tie_word_embeddings=i % 2 == 1),
        "Olmo3ForCausalLM", id=n,
    )
    for i, (n, (p, m)) in enumerate(OLMO.items())
]  # fmt: skip


def scrambled(config: ModelConfig) -> Decoder:
    model = Decoder(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.12 if p.ndim > 1 else 0.3) + (p.ndim == 1))
    return model


def theirs(folder: Path, name: str) -> Any:
    return getattr(transformers, name).from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )


@pytest.mark.parametrize(("config", "name"), CASES)
def test_logits_and_gradients_both_ways(config: ModelConfig, name: str, tmp_path: Path) -> None:
    model = scrambled(config)
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [name]
    other = theirs(tmp_path, name)
    tokens = torch.randint(0, 71, (2, 67))
    ours, reference = model(tokens), other(tokens).logits
    assert reference.abs().max() > 0.05
    assert (ours - reference).abs().max() <= 1e-5 * max(1.0, float(reference.detach().abs().max()))
    ours.square().sum().backward()
    reference.square().sum().backward()
    grads = {n: p.grad for n, p in other.named_parameters()}
    for n, p in model.named_parameters():
        expected = grads[hub_name(n, config)]
        assert (p.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-6, n
    other.save_pretrained(tmp_path / "back")
    again = load_pretrained(tmp_path / "back")
    with torch.no_grad():
        torch.testing.assert_close(again(tokens), ours.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("config", "name"), CASES)
def test_shape_comes_back(config: ModelConfig, name: str, tmp_path: Path) -> None:
    save_pretrained(Decoder(config), tmp_path)
    read = load_config(tmp_path)
    assert read.layer_kinds == config.layer_kinds
    skip = ("layer_pattern", "mixers")
    assert {k: v for k, v in read.to_dict().items() if k not in skip} == {
        k: v for k, v in config.to_dict().items() if k not in skip
    }
    a, b = Decoder(read), Decoder(config)
    b.load_state_dict(a.state_dict())
    tokens = torch.randint(0, 71, (1, 40))
    torch.testing.assert_close(a(tokens), b(tokens))


@pytest.mark.parametrize(("config", "name"), CASES)
def test_prefill_and_decoding_equal_the_whole(config: ModelConfig, name: str) -> None:
    model = scrambled(config)
    tokens = torch.randint(0, 71, (1, 33))
    with torch.no_grad():
        whole = model(tokens)
        for split in range(1, 33, 5):
            cache = KVCache(config, 1, 40)
            parts = [model(tokens[:, :split], cache=cache), model(tokens[:, split:], cache=cache)]
            torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=2e-5)


def test_yarn_equals_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from ikirere.model.layers.rope import RopeSpec

    for head_dim, theta, factor, original in (
        (64, 500_000.0, 8.0, 8192),
        (128, 10_000.0, 4.0, 512),
        (16, 1e6, 32.0, 4096),
    ):
        rope = {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "original_max_position_embeddings": original,
        }
        config = transformers.LlamaConfig(
            head_dim=head_dim, max_position_embeddings=int(original * factor), rope_parameters=rope
        )
        expected, scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
        ours, our_scale = RopeSpec(head_dim, theta, "yarn", factor, original).frequencies(
            theta, torch.device("cpu")
        )
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
        assert our_scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention_multiplier": 1.0}, "attention_multiplier 1.0 is not supported"),
        ({"layer_types": ["chunked"] * 4}, "layer_types"),
        ({"residual_multiplier": 0.2}, "residual_multiplier"),
        ({"layer_rope_theta": [1.0, 2.0, 3.0, 0]}, "layer_rope_theta differs"),
    ],
)
def test_what_the_decoder_lacks_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    save_pretrained(Decoder(CASES[0].values[0]), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(UserError, match=words):
        load_config(tmp_path)


def test_no_class_holds_first_token_sinks() -> None:
    reasons = why_no_public_class(
        ModelConfig(**BASE, layer_pattern="window", mixers={"window": {"sinks": 4}})
    )
    assert re.search(r"LlamaForCausalLM: .*GraniteSWAForCausalLM: model\.mixers\.window\.sinks", str(reasons))
