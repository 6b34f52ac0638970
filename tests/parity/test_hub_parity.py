"""Logits through a Hugging Face folder equal transformers', in both directions, over random shapes."""

import json
import random
from pathlib import Path

import pytest
import torch

from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub import load_pretrained, save_pretrained

transformers = pytest.importorskip("transformers")
SEEDS = range(24)


def shape(seed: int) -> ModelConfig:
    """A random shape. Among 24 seeds: tied and untied, both classes, head ratios 1 to 4, odd head sizes."""
    r = random.Random(seed)
    kv, group = r.randint(1, 3), 1 + seed % 4
    heads = kv * group
    return ModelConfig(
        vocab_size=r.randint(17, 150),
        hidden_size=heads * r.randint(2, 9),
        num_hidden_layers=r.randint(1, 3),
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=r.choice([2, 6, 8, 10, 16, 24]),
        intermediate_size=r.randint(5, 70),
        max_position_embeddings=r.choice([40, 64, 300]),
        rope_theta=r.choice([77.5, 10_000.0, 500_000.0, 5e6]),
        rms_norm_eps=r.choice([1e-6, 1e-5, 1e-3]),
        qk_norm=seed % 2 == 1,
        tie_word_embeddings=seed // 2 % 2 == 1,
    )


def scramble(model: torch.nn.Module, seed: int) -> None:
    """Weights far from their start, norms included, so that an exchange of two would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.12 if p.ndim > 1 else 0.3))
            if p.ndim == 1:
                p.add_(1.0)


def tokens(config: ModelConfig, seed: int) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (2, 37), generator=torch.Generator().manual_seed(seed))


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0.05
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("seed", SEEDS)
def test_ours_to_transformers(seed: int, tmp_path: Path) -> None:
    config = shape(seed)
    model = Decoder(config)
    scramble(model, seed)
    save_pretrained(model, tmp_path, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM")
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.config.pad_token_id) == (1, 2, 0)
    assert theirs.config.rope_parameters["rope_theta"] == config.rope_theta
    assert theirs.dtype == torch.float32
    with torch.no_grad():
        same(model(tokens(config, seed)), theirs(tokens(config, seed)).logits)


@pytest.mark.parametrize("seed", SEEDS)
def test_transformers_to_ours(seed: int, tmp_path: Path) -> None:
    config = shape(100 + seed)
    kind = "Qwen3" if config.qk_norm else "Llama"
    keys = {
        k: v for k, v in config.to_dict().items() if k not in ("qk_norm", "layer_pattern", "mixers", "family")
    }
    theta = keys.pop("rope_theta")
    keys["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    theirs = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**keys)
    ).eval()
    scramble(theirs, seed)
    theirs.save_pretrained(tmp_path, max_shard_size="8KB" if seed % 3 == 0 else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (seed % 3 == 0)
    model = load_pretrained(tmp_path)
    assert model.config == config
    assert model.num_parameters() == theirs.num_parameters()
    with torch.no_grad():
        same(model(tokens(config, seed)), theirs(tokens(config, seed)).logits)


def test_there_and_back_changes_no_bit(tmp_path: Path) -> None:
    config = shape(3)
    model = Decoder(config)
    save_pretrained(model, tmp_path / "a", {"eos_token_id": 5})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    theirs.save_pretrained(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["eos_token_id"] == 5
    again = load_pretrained(tmp_path / "b")
    assert again.config == config
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_transformers_generates_what_ours_ranks_first(tmp_path: Path) -> None:
    config = shape(5)
    model = Decoder(config)
    scramble(model, 5)
    save_pretrained(model, tmp_path, {"eos_token_id": None})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompt = tokens(config, 0)[:1, :5]
    written = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    with torch.no_grad():
        assert torch.equal(model(written)[:, 4:-1].argmax(-1), written[:, 5:])
