"""Stacks of KDA and latent attention equal transformers' KimiLinear, through a folder in both directions."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub import (
    hub_config,
    hub_name,
    load_config,
    load_pretrained,
    save_pretrained,
    why_no_public_class,
)

transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "KimiLinearForCausalLM"):
    pytest.skip("this transformers has no KimiLinear", allow_module_level=True)
PATTERNS = ["kda*3 mla", "mla", "kda mla", "mla kda*2", "kda*2 mla kda mla"]


def shape(seed: int) -> ModelConfig:
    """A random shape, every setting given. Among 10 seeds: all patterns, head counts and widths of every
    relation."""
    r = random.Random(seed)
    heads = r.randint(1, 3)
    pattern = PATTERNS[seed % len(PATTERNS)]
    latent = {
        "kv_lora_rank": r.randint(3, 20),
        "qk_nope_head_dim": r.randint(1, 12),
        "qk_rope_head_dim": r.randint(1, 8),
        "v_head_dim": r.randint(1, 24),
    }
    if seed % 3 == 0:
        latent["q_lora_rank"] = r.randint(3, 20)
    mixers: dict[str, Any] = {"mla": latent}
    if "kda" in pattern:
        delta = {
            "head_dim": r.choice([16, 25]),
            "num_heads": r.randint(1, 3),
            "conv_size": r.choice([2, 4]),
        }
        mixers = {"kda": delta} | mixers
    return ModelConfig(
        vocab_size=r.randint(17, 150),
        hidden_size=r.choice([12, 20, 33]),
        num_hidden_layers=len(pattern.replace("*3", " a a").replace("*2", " a").split()),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=2 * r.randint(1, 6),
        intermediate_size=r.randint(5, 70),
        max_position_embeddings=r.choice([80, 300]),
        rope_theta=r.choice([10_000.0, 5e5]),
        rms_norm_eps=r.choice([1e-5, 1e-3]),
        tie_word_embeddings=False,
        layer_pattern=pattern,
        mixers=mixers,
    )


def scramble(model: torch.nn.Module, seed: int) -> None:
    """Weights far from their start, so that an exchange of two would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.09 if p.ndim > 1 else 0.3))
            if name.endswith("norm.weight"):
                p.add_(1.0)
            elif "conv" in name:
                p.mul_(4.0)
            elif "A_log" in name:
                # Mild decays: theirs takes differences of running sums, whose rounding strong ones make felt.
                p.sub_(2.0)


def tokens(config: ModelConfig, seed: int, length: int = 70) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))


def pair(config: ModelConfig, seed: int, folder: Path, **tokens: int) -> tuple[Decoder, Any]:
    model = Decoder(config)
    scramble(model, seed)
    save_pretrained(model, folder, tokens)
    return model, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0.05
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("seed", range(10))
def test_kimi_logits_both_ways(seed: int, tmp_path: Path) -> None:
    config = shape(seed)
    model, theirs = pair(config, seed, tmp_path / "a", eos_token_id=2, pad_token_id=0)
    assert type(theirs).__name__ == "KimiLinearForCausalLM"
    assert (theirs.config.eos_token_id, theirs.config.pad_token_id) == (2, 0)
    assert theirs.num_parameters() == model.num_parameters()
    theirs.save_pretrained(tmp_path / "b", max_shard_size="8KB" if seed % 3 == 0 else "1GB")
    again = load_pretrained(tmp_path / "b")
    assert load_config(tmp_path / "a") == config
    assert again.config == config
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        logits = theirs(tokens(config, seed)).logits
        same(model(tokens(config, seed)), logits)
        same(again(tokens(config, seed)), logits)


@pytest.mark.parametrize("seed", range(4))
def test_kimi_made_by_transformers(seed: int, tmp_path: Path) -> None:
    """Their own defaults, weights and names, without layer_types."""
    r = random.Random(seed)
    heads, layers = r.randint(1, 3), 5
    theirs = transformers.KimiLinearForCausalLM(
        transformers.KimiLinearConfig(
            vocab_size=60, hidden_size=20, intermediate_size=r.randint(5, 50), num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads, kv_lora_rank=16, qk_nope_head_dim=8,
            qk_rope_head_dim=r.choice([3, 4]), v_head_dim=6, first_k_dense_replace=layers, pad_token_id=0,
            linear_attn_config={
                "head_dim": 24, "num_heads": 2, "short_conv_kernel_size": 4,
                **({"kda_layers": [1, 3, 4], "full_attn_layers": [2, 5]} if seed % 2 else {}),
            },
        )
    ).eval()  # fmt: skip
    scramble(theirs, seed)
    theirs.save_pretrained(tmp_path)
    if seed == 1:
        values = json.loads((tmp_path / "config.json").read_text())
        del values["layer_types"], values["mlp_layer_types"]
        (tmp_path / "config.json").write_text(json.dumps(values))
    model = load_pretrained(tmp_path)
    expected = "kda mla kda" if seed % 2 else "kda*4 mla"
    assert model.config.layer_pattern == expected
    with torch.no_grad():
        same(model(tokens(model.config, seed)), theirs(tokens(model.config, seed)).logits)


@pytest.mark.parametrize("seed", [0, 2, 4])
def test_kimi_gradients(seed: int, tmp_path: Path) -> None:
    config = shape(seed)
    model, theirs = pair(config, seed, tmp_path)
    t = tokens(config, seed)
    for logits in (model(t[:, :-1]), theirs(t[:, :-1]).logits):
        F.cross_entropy(logits.flatten(0, 1), t[:, 1:].flatten()).backward()
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    seen = 0
    for name, p in model.named_parameters():
        where = hub_name(name, config)
        for part in ("A_log", "dt_bias", "f_a_proj", "f_b_proj"):
            where = where.replace(f"self_attn.{part}", f"self_attn.forget_gate.{part}")
        if "_conv1d" in where:
            which = "qkv".index(where.split("_conv1d")[0][-1])
            stacked = expected[f"{where.split('.self_attn')[0]}.self_attn.conv1d.weight"]
            grad = stacked.chunk(3)[which]
            seen += 1 / 3
        else:
            grad, seen = expected[where], seen + 1
        assert (p.grad.flatten() - grad.flatten()).abs().max() <= 1e-4 * grad.abs().max(), name
    assert round(seen) == len(expected)


def test_kimi_where_rounding_is_felt(tmp_path: Path) -> None:
    """Small heads, a small eps and strong decays blow rounding up: ours lies nearer to what fp64 gives."""
    mixers = {"kda": {"head_dim": 9, "num_heads": 2}, "mla": {"kv_lora_rank": 9}}
    config = dataclasses.replace(
        shape(0), head_dim=8, hidden_size=24, num_hidden_layers=4, rms_norm_eps=1e-6, mixers=mixers
    )
    model = Decoder(config)
    scramble(model, 0)
    with torch.no_grad():
        for layer in model.layers[:3]:
            layer.mixer.A_log.add_(3.0)
    save_pretrained(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    exact, t = load_pretrained(tmp_path, dtype=torch.float64), tokens(config, 0)
    with torch.no_grad():
        logits = exact(t)
        assert logits.dtype == torch.float64
        ours, other = ((m - logits).abs().max() for m in (model(t), theirs(t).logits))
    assert ours <= other <= 1e-3
    assert ours <= 1e-4


def test_kimi_decoding_and_packing(tmp_path: Path) -> None:
    config = shape(0)
    model, theirs = pair(config, 0, tmp_path)
    t = tokens(config, 1, 24)
    lengths = [9, 1, 1, 5, 8]
    with torch.no_grad():
        cache = KVCache(config, 3, 24)
        rows = torch.tensor([2, 0])
        parts = [model(piece, cache=cache, rows=rows) for piece in t.split(lengths, 1)]
        same(torch.cat(parts, 1), theirs(t).logits)
        documents = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths)).expand(2, -1)
        apart = torch.cat([theirs(piece).logits for piece in t.split(lengths, 1)], 1)
        same(model(t, None, documents), apart)


def test_kimi_generates_what_ours_ranks_first(tmp_path: Path) -> None:
    config = shape(2)
    model, theirs = pair(config, 2, tmp_path)
    prompt = tokens(config, 0)[:1, :5]
    written = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    with torch.no_grad():
        assert torch.equal(model(written)[:, 4:-1].argmax(-1), written[:, 5:])


def test_kimi_configuration(tmp_path: Path) -> None:
    """What other readers of the class go by (vLLM, llama.cpp), and defaults that are written in full."""
    config = dataclasses.replace(
        shape(0), head_dim=8, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4, mixers={}
    )
    model = Decoder(config)
    values = hub_config(model)
    assert values["linear_attn_config"] == {
        "head_dim": 128, "num_heads": 4, "short_conv_kernel_size": 4,
        "kda_layers": [1, 2, 3, 5, 6, 7], "full_attn_layers": [4, 8],
    }  # fmt: skip
    assert values["layer_types"] == (["linear_attention"] * 3 + ["full_attention"]) * 2
    assert values["num_experts"] is None
    assert (values["first_k_dense_replace"], values["mlp_layer_types"]) == (8, ["dense"] * 8)
    assert values["mla_use_nope"] is True
    assert [values[k] for k in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")] == [
        32,
        8,
        4,
        8,
    ]
    save_pretrained(model, tmp_path)
    again = load_config(tmp_path)
    assert again.mixers["mla"] == {
        "kv_lora_rank": 32, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8
    }  # fmt: skip
    assert dataclasses.replace(again, mixers={}) == config
    assert hub_config(load_pretrained(tmp_path)) == values


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer_pattern": "kda"}, "'kda' and 'mla' layers fit, one 'mla' at least"),
        ({"layer_pattern": "kda full mla"}, "layer_pattern"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings true"),
        ({"norm_order": "post"}, "norm_order 'post'"),
        (
            {"num_key_value_heads": 1, "num_attention_heads": 2},
            "num_key_value_heads 1: num_attention_heads 2",
        ),
        ({"mixers": {"kda": {"head_dim": 8, "gate_rank": 4}}}, "mixers.kda.gate_rank 4: its head_dim 8"),
    ],
)
def test_kimi_refuses_what_the_class_cannot_hold(change: dict[str, Any], words: str) -> None:
    reasons = why_no_public_class(dataclasses.replace(shape(0), **change))
    assert re.search(f"KimiLinearForCausalLM: model.*{words}", str(reasons))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"num_experts": 8, "mlp_layer_types": None, "first_k_dense_replace": 1},
            "num_experts 8 is not supported",
        ),
        ({"mla_use_nope": False}, "mla_use_nope False"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True"),
        ({"layer_types": ["linear_attention"]}, "layer_types"),
        (
            {"layer_types": None, "linear_attn_config": {"kda_layers": [1, 2]}},
            "linear_attn_config must name each",
        ),
        ({"num_key_value_heads": 7}, "num_key_value_heads 7"),
        ({"linear_attn_config": [3]}, "linear_attn_config"),
    ],
)
def test_kimi_folders_that_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    save_pretrained(Decoder(shape(0)), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=words) as caught:
        load_pretrained(tmp_path)
    assert str(path) in str(caught.value)


def test_kimi_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    save_pretrained(Decoder(shape(0)), tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["linear_attn_config"]["num_heads"] += 1
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"self_attn\.\w+(\.weight)? has shape"):
        load_pretrained(tmp_path)
