"""The hybrid mixer in a decoder: packing, generation, running as full attention, memory, counts."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.layers.hybrid import HybridAttention
from ikirere.model.layers.rope import RopeSpec
from ikirere.recipe.load import load_recipe
from ikirere.recipe.mixers import Hybrid
from ikirere.recipe.planner.counts import count
from ikirere.recipe.planner.memory import cache_memory, layer_elements
from ikirere.recipe.schema import Model

SETTINGS: dict[str, Any] = {"window": 7, "block_size": 4, "top_k": 2}


def config(pattern: str = "hybrid", **settings: Any) -> ModelConfig:
    mixers = {"hybrid": {**SETTINGS, **settings}}
    return ModelConfig(50, 32, 2, 4, 2, 48, 128, layer_pattern=pattern, mixers=mixers)


def scrambled(shape: ModelConfig, dtype: torch.dtype = torch.float64) -> Decoder:
    """Weights so large that the choice of blocks and the summaries matter."""
    model = Decoder(shape)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            one = 1.0 if p.ndim == 1 and "summary" not in name else 0.0
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + one)
    return model.to(dtype)


def test_the_summary_query_starts_at_a_mean() -> None:
    model = Decoder(config())
    assert not model.layers[0].mixer.summary_query.any()
    assert model.layers[0].mixer.summary_query.ndim == 1  # optimisers take matrices by their axes
    assert (
        Decoder(ModelConfig(50, 32, 2, 4, 2, 48, 128, layer_pattern="hybrid")).layers[0].mixer.chunk == 8192
    )


def test_packed_documents_are_documents_apart() -> None:
    model = scrambled(config())
    tokens = torch.randint(0, 50, (2, 70))
    documents = torch.tensor([[0] * 23 + [1] * 45 + [2] * 2, [5] * 1 + [6] * 40 + [-1] * 29])
    packed = model(tokens, None, documents)
    for row, cuts in enumerate(([0, 23, 68, 70], [0, 1, 41, 70])):
        for a, b in itertools.pairwise(cuts):
            torch.testing.assert_close(packed[row : row + 1, a:b], model(tokens[row : row + 1, a:b]))


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("chunk", [64, 200])
def test_a_window_over_everything_is_full_attention(chunk: int, rope: bool) -> None:
    model = scrambled(config(window=chunk, rope_scaling="none", rope=rope), torch.float32)
    full = Decoder(ModelConfig(50, 32, 2, 4, 2, 48, 128, mixers={"full": {"rope": rope}}))
    assert len(model.ropes) == rope
    assert full.load_state_dict(model.state_dict(), strict=False).missing_keys == []
    tokens = torch.randint(0, 50, (2, 64))
    assert torch.equal(model(tokens), full(tokens))
    documents = torch.tensor([[0] * 20 + [1] * 44] * 2)
    packed = full(tokens, None, documents)
    torch.testing.assert_close(model(tokens, None, documents), packed, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"rope": False}, {"window": 3, "block_size": 5, "top_k": 1}, {"rope_scaling": "yarn", "original_max_position_embeddings": 16}],
)  # fmt: skip
def test_generation_continues_at_every_split(settings: dict[str, Any]) -> None:
    """The rest of the sequence in one pass, and token by token."""
    model = scrambled(config(**settings))
    tokens = torch.randint(0, 50, (2, 29))
    with torch.no_grad():
        whole = model(tokens)
        cache = KVCache(model.config, 2, 29, dtype=torch.float64)
        for t in range(29):
            now = model(tokens[:, t : t + 1], cache=cache)
            torch.testing.assert_close(now, whole[:, t : t + 1], rtol=1e-9, atol=1e-9)
        for split in range(1, 29):
            cache = KVCache(model.config, 2, 29, dtype=torch.float64)
            parts = [model(tokens[:, :split], cache=cache), model(tokens[:, split:], cache=cache)]
            torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-9)


def test_rows_of_different_lengths_padding_copies_and_reuse() -> None:
    model = scrambled(config("hybrid full"))
    tokens = torch.randint(0, 50, (2, 60))
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
    with torch.no_grad():
        whole = model(tokens)
        cache = KVCache(model.config, 4, 60, dtype=torch.float64)
        rows = torch.tensor([3, 1])
        first = model(tokens[:, :22], cache=cache, rows=rows, counts=torch.tensor([22, 9]))
        torch.testing.assert_close(first[0], whole[0, :22], **close)
        pieces = torch.stack((tokens[0, 22:41], tokens[1, 9:28]))
        second = model(pieces, cache=cache, rows=rows, counts=torch.tensor([5, 19]))
        torch.testing.assert_close(second[0, :5], whole[0, 22:27], **close)
        torch.testing.assert_close(second[1], whole[1, 9:28], **close)
        cache.copy(3, 0)
        third = model(
            torch.stack((tokens[0, 27:50], tokens[1, 28:51])), cache=cache, rows=torch.tensor([0, 1])
        )
        torch.testing.assert_close(third, torch.stack((whole[0, 27:50], whole[1, 28:51])), **close)
        fourth = model(tokens[:1, 27:28], cache=cache, rows=torch.tensor([3]))
        torch.testing.assert_close(fourth, whole[:1, 27:28], **close)
        cache.reset(1)
        again = model(tokens[1:, :30], cache=cache, rows=torch.tensor([1]))
        torch.testing.assert_close(again, whole[1:, :30], **close)


@pytest.mark.parametrize("top_k", [1, 3, 100])
def test_rows_of_different_lengths_go_on_token_by_token(top_k: int) -> None:
    model = scrambled(config(top_k=top_k))
    lengths = torch.tensor([1, 6, 7, 8, 19, 40])
    tokens = torch.randint(0, 50, (6, 60))
    with torch.no_grad():
        whole = model(tokens)
        cache = KVCache(model.config, 7, 60, dtype=torch.float64)
        rows = torch.tensor([6, 0, 2, 1, 5, 3])
        model(tokens[:, :40], cache=cache, rows=rows, counts=lengths)
        for t in range(20):
            at = (lengths + t).unsqueeze(1)
            now = model(tokens.gather(1, at), cache=cache, rows=rows)
            wanted = whole.gather(1, at.unsqueeze(2).expand(-1, -1, 50))
            torch.testing.assert_close(now, wanted, rtol=1e-9, atol=1e-9)


def test_a_narrower_cache_costs_its_rounding() -> None:
    model = scrambled(config(top_k=100), torch.float32)
    tokens = torch.randint(0, 50, (1, 40))
    with torch.no_grad():
        whole = model(tokens)
        cache = KVCache(model.config, 1, 40, dtype=torch.bfloat16)
        parts = [model(tokens[:, :21], cache=cache), model(tokens[:, 21:22], cache=cache)]
        parts.append(model(tokens[:, 22:], cache=cache))
    found = torch.cat(parts, 1)
    assert found.dtype == torch.float32
    assert (found - whole).norm() <= 0.05 * whole.norm()


def test_the_cache_is_what_the_state_says() -> None:
    state = KVCache(config(), 2, 42).layers[0]
    assert state.bytes == 4 * 2 * 2 * (2 * 42 * 8 + 2 * 11 * 8 + 4)


# ---------------------------------------------------------------- as full attention


def test_a_hybrid_model_runs_as_full_and_back() -> None:
    shape = config(rope_scaling="yarn", original_max_position_embeddings=16)
    model = scrambled(shape)
    full = Decoder(ModelConfig(50, 32, 2, 4, 2, 48, 128)).double()
    full.load_state_dict(model.state_dict(), strict=False)
    tokens = torch.randint(0, 50, (2, 60))
    documents = torch.tensor([[0] * 23 + [1] * 37] * 2)
    own = model(tokens)
    model.set_attention("full")
    assert torch.equal(model(tokens), full(tokens))
    assert torch.equal(model(tokens, None, documents), full(tokens, None, documents))
    model.set_rope_theta(500.0)
    full.set_rope_theta(500.0)
    assert torch.equal(model(tokens), full(tokens))
    with pytest.raises(ValueError, match="a cache is for its own pattern, 'hybrid'"):
        model(tokens, cache=KVCache(shape, 2, 60))
    model.set_attention("hybrid full")
    mixed = model(tokens)
    model.set_rope_theta(10_000.0)
    model.set_attention("hybrid")
    assert torch.equal(model(tokens), own)
    assert not torch.allclose(mixed, own)


def test_every_weight_has_a_gradient_whatever_runs() -> None:
    """Ranks that train together wait for each; full attention and short rows read no summary."""
    model = scrambled(config(), torch.float32)
    for pattern, length in (("full", 40), ("hybrid", 40), ("hybrid", 7), ("hybrid", 3)):
        model.set_attention(pattern)
        for documents in (None, torch.zeros(1, length, dtype=torch.long)):
            model.zero_grad()
            model(torch.randint(0, 50, (1, length)), None, documents).square().sum().backward()
            grads = {n: p.grad for n, p in model.named_parameters()}
            assert all(g is not None and torch.isfinite(g).all() for g in grads.values())
            read = any(g.any() for n, g in grads.items() if "summary_query" in n)
            assert read == (length == 40 and pattern == "hybrid")


def test_patterns_that_cannot_run_are_named() -> None:
    model = Decoder(config())
    with pytest.raises(UserError, match=r"layer 0 cannot run as 'window'.*accepted there are hybrid, full"):
        model.set_attention("window")
    assert model.attention == "hybrid"
    with pytest.raises(UserError, match=r"cannot run as 'hybrid'.*accepted there are full"):
        Decoder(config("full")).set_attention("hybrid")


def test_compiled_blocks_follow_a_change() -> None:
    """Dynamo's guards alone: the backend runs what it is given as it is."""
    model = scrambled(config(), torch.float32)
    tokens = torch.randint(0, 50, (1, 30))
    with torch.no_grad():
        expected = {}
        for pattern in ("hybrid", "full"):
            model.set_attention(pattern)
            expected[pattern] = model(tokens)
        for block in model.layers:
            block.compile(backend="eager", dynamic=False)
        for pattern in ("full", "hybrid", "full"):
            model.set_attention(pattern)
            torch.testing.assert_close(model(tokens), expected[pattern])


def test_autocast_loses_no_more_than_with_full_attention() -> None:
    """Every block is chosen, so that rounding changes no choice. Bound: 1.5 times the error of full attention."""
    model = scrambled(config(top_k=100), torch.float32)
    tokens = torch.randint(0, 50, (2, 60))
    errors = {}
    for pattern in ("full", "hybrid"):
        model.set_attention(pattern)
        exact = model(tokens).detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(tokens)
        found.float().square().sum().backward()
        errors[pattern] = float((found.detach().float() - exact).norm() / exact.norm())
    assert errors["hybrid"] <= 1.5 * errors["full"] <= 0.1
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# ---------------------------------------------------------------- settings and planning


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": 0}, r"model\.mixers\.hybrid\.window"),
        ({"global_tokens": "mean"}, r"model\.mixers\.hybrid\.global_tokens: was removed; leave it out"),
        ({"rope_scaling": "linear"}, r"model\.mixers\.hybrid\.rope_scaling"),
        ({"original_max_position_embeddings": 256}, r"original_max_position_embeddings 256 is beyond.* 128"),
        ({"learned_sinks": True}, r"model\.mixers\.hybrid\.learned_sinks: 'hybrid' has no such setting"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Decoder(config(**settings))


def test_positions_are_scaled_as_the_recipe_says() -> None:
    shape = config()
    assert HybridAttention.rope(shape, {}) == RopeSpec(8)
    yarn = HybridAttention.rope(shape, {"original_max_position_embeddings": 32})
    assert yarn == RopeSpec(8, None, "yarn", 4.0, 32)
    with pytest.raises(UserError, match="max_position_embeddings allows 128"):
        Decoder(shape)(torch.zeros(1, 129, dtype=torch.long))


def recipe_model(**settings: Any) -> Model:
    return Model(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=4096, layer_pattern="hybrid", qk_norm=True,
        mixers={"hybrid": {**SETTINGS, **settings}},
    )  # fmt: skip


def test_parameters_are_counted() -> None:
    model = recipe_model()
    with torch.device("meta"):
        built = Decoder(ModelConfig.from_recipe(model))
    found = count(model, ("full",))
    assert built.num_parameters() == found.total
    assert sum(p.numel() for p in built.parameters() if p.ndim > 1) == found.hidden_2d + found.embedding


def test_operations_are_those_of_the_definition() -> None:
    for length, settings in ((100, {}), (7, {}), (333, {"window": 40, "block_size": 16, "top_k": 3})):
        model = recipe_model(**settings)
        h = model.mixer("hybrid")
        assert isinstance(h, Hybrid)
        before = [max(0, i - h.window + 1) // h.block_size for i in range(length)]
        seen = sum(
            i + 1 - h.block_size * b + b + h.block_size * min(h.top_k, b) for i, b in enumerate(before)
        )
        chosen = 2 * model.num_key_value_heads * model.head_size * sum(before)
        expected = (4 * model.num_attention_heads * model.head_size * seen + chosen) / length
        assert h.forward_flops(model, length) - h.product_flops(model) == pytest.approx(expected)


def test_the_planned_cache_is_the_state() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "irm-2b.yaml")
    recipe = recipe.model_copy(update={"serve": recipe.serve.model_copy(update={"kv_cache_bits": 16})})
    planned = cache_memory(recipe)
    shape = ModelConfig.from_recipe(recipe.model)
    state = HybridAttention.new_state(shape, 1, planned.context, torch.bfloat16, torch.device("meta"))
    assert planned.per_sequence == shape.num_hidden_layers * state.bytes


def saved_bytes(model: Decoder, length: int, documents: bool) -> int:
    """Bytes that autograd keeps of one pass, each storage once and weights left out."""
    seen = {p.untyped_storage().data_ptr(): 0 for p in (*model.parameters(), *model.buffers())}
    kept = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in seen:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            kept.append(t)
        return t

    tokens = torch.zeros(1, length, dtype=torch.long)
    ids = torch.arange(length)[None] // 700 if documents else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.hidden(tokens, None, ids)
    return sum(seen.values())


@pytest.mark.parametrize("documents", [False, True])
def test_memory_is_linear_and_as_planned(documents: bool) -> None:
    recipe = recipe_model(window=64, block_size=32, top_k=4).model_copy(update={"qk_norm": False})
    model, deeper = (
        Decoder(ModelConfig.from_recipe(recipe.model_copy(update={"num_hidden_layers": n}))) for n in (2, 4)
    )
    short, long = (saved_bytes(model, length, documents) for length in (1024, 2048))
    assert long < 2.2 * short
    planned = 2 * sum(layer_elements(recipe, "hybrid", "dense", 2048, documents)) * 4 * 2048
    found = saved_bytes(deeper, 2048, documents) - long
    assert found <= 1.001 * planned  # documents have fewer blocks to choose from
    assert found >= (0.95 if documents else 0.98) * planned


def test_no_tensor_grows_with_the_square() -> None:
    """The largest tensor made in either direction, of a long row."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for t in result if isinstance(result, list | tuple) else (result,):
                if isinstance(t, torch.Tensor):
                    self.size = max(self.size, t.untyped_storage().nbytes())
            return result

    shape = ModelConfig(
        9, 8, 1, 2, 1, 8, 8192, layer_pattern="hybrid",
        mixers={"hybrid": {"window": 128, "block_size": 64, "top_k": 4}},
    )  # fmt: skip
    model = Decoder(shape)
    with Largest() as largest:
        documents = torch.zeros(1, 8192, dtype=torch.long)
        model.hidden(torch.zeros(1, 8192, dtype=torch.long), None, documents).sum().backward()
    assert largest.size <= 6 * 2**20  # one bool per pair of tokens would be 64 MiB
