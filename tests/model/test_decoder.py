"""The decoder's own promises: documents apart, causality, counts, seeds, dtypes, compilation."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Networks this small only wait for a second thread.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(**changes: object) -> ModelConfig:
    base = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "qk_norm": True,
    }
    return ModelConfig.from_dict({**base, **changes})


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def packed(lengths: list[int], total: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One row of documents of the given lengths, padded with document -1 to `total`."""
    ids = [i for i, n in enumerate(lengths) for _ in range(n)] + [-1] * (total - sum(lengths))
    positions = [j for n in lengths for j in range(n)] + list(range(total - sum(lengths)))
    tokens = torch.randint(0, 61, (1, total), generator=generator(seed))
    return tokens, torch.tensor([positions]), torch.tensor([ids])


@pytest.mark.parametrize("lengths", [[1, 2, 5, 3], [130, 128, 1, 40], [256, 44], [300]])
def test_packed_documents_equal_separate_ones(lengths: list[int]) -> None:
    model = Decoder(config())
    total = sum(lengths) + 7
    tokens, positions, documents = packed(lengths, total)
    together = model(tokens, positions, documents)
    assert torch.isfinite(together).all()
    start = 0
    for n in lengths:
        alone = model(tokens[:, start : start + n])
        torch.testing.assert_close(together[:, start : start + n], alone, atol=2e-6, rtol=1e-5)
        start += n
    torch.testing.assert_close(model(tokens, None, documents), together, atol=0, rtol=0)


def test_packed_gradients_equal_those_of_separate_documents() -> None:
    model = Decoder(config())
    lengths = [150, 1, 105]
    tokens, positions, documents = packed(lengths, sum(lengths))
    weight = torch.randn(1, sum(lengths), 61, generator=generator(1))
    (model(tokens, positions, documents) * weight).sum().backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for piece, w in zip(tokens.split(lengths, 1), weight.split(lengths, 1), strict=True):
        (model(piece) * w).sum().backward()
    for name, p in model.named_parameters():
        assert (together[name] - p.grad).abs().max() <= 1e-5 * p.grad.abs().max(), name


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 39)), position=st.integers(0, 39))
def test_a_token_reaches_only_later_positions_of_its_document(cuts: set[int], position: int) -> None:
    model = Decoder(config())
    documents = torch.tensor([[sum(c <= i for c in cuts) for i in range(40)]])
    tokens = torch.randint(0, 60, (1, 40), generator=generator(3))
    other = tokens.clone()
    other[0, position] += 1
    with torch.no_grad():
        moved = (model(tokens, None, documents) != model(other, None, documents)).any(-1)[0]
    own = documents[0] == documents[0, position]
    own[:position] = False
    assert moved[position]
    assert not moved[~own].any()


def test_rows_of_a_batch_do_not_meet() -> None:
    model = Decoder(config())
    tokens = torch.randint(0, 61, (3, 20), generator=generator(0))
    whole = model(tokens)
    for i in range(3):
        torch.testing.assert_close(whole[i : i + 1], model(tokens[i : i + 1]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        # layers, hidden, heads, kv heads, ffn, vocabulary, tied
        ((28, 2048, 16, 4, 8192, 150_000, True), 2_010_204_160),
        ((28, 2048, 16, 4, 8192, 150_000, False), 2_317_404_160),
        ((22, 2048, 32, 4, 5632, 32_000, False), 1_100_048_384),
        ((24, 2560, 20, 4, 6912, 150_000, True), None),
        ((5, 256, 4, 2, 768, 4096, True), None),
    ],
)
def test_parameter_count_on_meta(shape: tuple, count: int | None) -> None:
    layers, hidden, heads, kv, ffn, vocabulary, tied = shape
    with torch.device("meta"):
        model = Decoder(
            ModelConfig(vocabulary, hidden, layers, heads, kv, ffn, 4096, tie_word_embeddings=tied)
        )
    head = hidden // heads
    block = 2 * hidden * head * (heads + kv) + 3 * hidden * ffn + 2 * hidden
    formula = layers * block + hidden + vocabulary * hidden * (1 if tied else 2)
    assert model.num_parameters() == formula
    assert count is None or formula == count
    assert all(p.is_meta for p in model.parameters())


def test_seeds_decide_the_weights_and_nothing_else() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = Decoder(config()), Decoder(config())
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    second.reset_parameters(generator(1))
    assert not torch.equal(first.embed_tokens.weight, second.embed_tokens.weight)
    second.reset_parameters(generator(0))
    assert torch.equal(first.embed_tokens.weight, second.embed_tokens.weight)


def test_meta_model_materialises_to_the_same_model() -> None:
    direct = Decoder(config())
    with torch.device("meta"):
        model = Decoder(config())
    model.to_empty(device="cpu")
    model.reset_parameters(generator(0))
    tokens = torch.randint(0, 61, (2, 9), generator=generator(0))
    assert torch.equal(model(tokens), direct(tokens))


def test_initial_spread() -> None:
    layers = 8
    model = Decoder(
        config(hidden_size=128, intermediate_size=256, num_hidden_layers=layers, initializer_range=0.02)
    )
    for name, p in model.named_parameters():
        if "norm" in name:
            assert torch.equal(p, torch.ones_like(p)), name
            continue
        small = name.endswith(("o_proj.weight", "down_proj.weight"))
        expected = 0.02 / math.sqrt(2 * layers) if small else 0.02
        assert abs(p.std().item() / expected - 1) < 0.05, name
        assert abs(p.mean().item()) < 0.002, name


def test_rope_theta_can_change_between_phases() -> None:
    tokens = torch.randint(0, 61, (2, 30), generator=generator(0))
    model, other = Decoder(config()), Decoder(config(rope_theta=500_000.0))
    assert not torch.allclose(model(tokens), other(tokens))
    model.set_rope_theta(500_000.0)
    assert torch.equal(model(tokens), other(tokens))
    assert model.config == other.config


def test_half_precision_keeps_the_angles() -> None:
    model = Decoder(config())
    tokens = torch.randint(0, 61, (2, 30), generator=generator(0))
    with torch.no_grad():
        exact = model(tokens)
        low = model.to(torch.bfloat16)(tokens)
        assert low.dtype == torch.bfloat16
        assert (low.float() - exact).abs().max() < 0.1 * exact.abs().max()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(Decoder(config())(tokens)).all()
    assert model.ropes[0].cos.dtype == torch.float32
    fresh = Decoder(config())
    assert torch.equal(model.to(torch.float32).ropes[0].cos, fresh.ropes[0].cos)
    assert not [name for name in model.state_dict() if "rope" in name]


def test_logits_to_keep() -> None:
    model = Decoder(config())
    tokens = torch.randint(0, 61, (3, 8), generator=generator(0))
    whole = model(tokens)
    picks = torch.tensor([2, 7, 0])
    for keep, expected in (
        (1, whole[:, -1:]),
        (3, whole[:, -3:]),
        (slice(2, 4), whole[:, 2:4]),
        (picks, whole[torch.arange(3), picks].unsqueeze(1)),
    ):
        torch.testing.assert_close(model(tokens, logits_to_keep=keep), expected)
    hidden = model.hidden(tokens)
    torch.testing.assert_close(hidden @ model.output_weight.T, whole)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_head(tied: bool) -> None:
    model = Decoder(config(tie_word_embeddings=tied))
    assert model.output_weight.shape == (61, 32)
    assert (model.output_weight is model.embed_tokens.weight) == tied
    assert ("lm_head.weight" in model.state_dict()) != tied


def test_a_row_longer_than_the_model_allows() -> None:
    with pytest.raises(UserError, match=r"600 tokens; model.max_position_embeddings allows 512"):
        Decoder(config())(torch.zeros(1, 600, dtype=torch.long))


def test_training_path_is_one_graph() -> None:
    model = Decoder(config(num_hidden_layers=1))
    tokens, positions, documents = packed([140, 100, 16], 260)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for theta in (10_000.0, 777.0):
        model.set_rope_theta(theta)
        grads = []
        for run in (model, compiled):
            model.zero_grad()
            y = run(tokens, positions, documents)
            y.square().mean().backward()
            grads.append((y.detach(), [p.grad.clone() for p in model.parameters()]))
        torch.testing.assert_close(grads[0][0], grads[1][0], atol=2e-6, rtol=1e-5)
        for a, b in zip(grads[0][1], grads[1][1], strict=True):
            assert (a - b).abs().max() <= 1e-5 * a.abs().max()
