"""The decoder against transformers: gradients, packed documents, and decoding through the cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub import hub_name, save_pretrained

transformers = pytest.importorskip("transformers")
SHAPES = {
    "llama tied": ModelConfig(90, 48, 2, 4, 2, 80, 300, initializer_range=0.1),
    "llama untied one kv head": ModelConfig(
        90, 48, 3, 4, 1, 80, 300, head_dim=8, tie_word_embeddings=False, initializer_range=0.1
    ),
    "qwen3 tied": ModelConfig(90, 48, 2, 4, 4, 80, 300, head_dim=20, qk_norm=True, initializer_range=0.1),
    "qwen3 untied": ModelConfig(
        90, 50, 2, 6, 2, 80, 300, head_dim=16, rope_theta=5e5, qk_norm=True, tie_word_embeddings=False
    ),
}


@pytest.fixture(params=sorted(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Decoder, Any]:
    """A decoder and the same network in transformers."""
    model = Decoder(SHAPES[request.param])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.05)
    save_pretrained(model, tmp_path)
    return model, transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_gradients(pair: tuple[Decoder, Any]) -> None:
    model, theirs = pair
    tokens = torch.randint(0, 90, (2, 150))
    for logits in (model(tokens[:, :-1]), theirs(tokens[:, :-1]).logits):
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    names = {hub_name(name, model.config): p.grad for name, p in model.named_parameters()}
    assert set(names) == set(expected)
    for name, grad in names.items():
        assert (grad - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max(), name


def test_packed_documents(pair: tuple[Decoder, Any]) -> None:
    model, theirs = pair
    lengths = [140, 3, 1, 116]
    tokens = torch.randint(0, 90, (1, sum(lengths)))
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    with torch.no_grad():
        ours = model(tokens, None, documents)
        apart = torch.cat([theirs(piece).logits for piece in tokens.split(lengths, 1)], 1)
    assert (ours - apart).abs().max() <= 1e-5


def test_decoding_through_the_cache(pair: tuple[Decoder, Any]) -> None:
    model, theirs = pair
    tokens = torch.randint(0, 90, (2, 24))
    cache = KVCache(model.config, 3, 24)
    with torch.no_grad():
        expected = theirs(tokens).logits
        rows = torch.tensor([2, 0])
        parts = [model(piece, cache=cache, rows=rows) for piece in tokens.split([9, 1, 1, 5, 8], 1)]
    assert (torch.cat(parts, 1) - expected).abs().max() <= 1e-5
