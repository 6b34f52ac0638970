"""The recursive model: shapes, counts, both directions, padding, halting head, start states."""

from typing import Any

import pytest
import torch

from ikirere.errors import UserError
from ikirere.model.build import build_model, on_meta
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.recursive import RecursiveModel
from ikirere.recipe.planner.counts import count
from ikirere.recipe.schema import Model

SIZES: dict[str, Any] = {
    "family": "recursive",
    "vocab_size": 12,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}
KDA = {"head_dim": 16, "chunk_size": 16}
RECURSION = {"inner_updates": 2, "cycles": 2, "supervision_steps": 3, "puzzle_tokens": 3}
PUBLISHED = {
    **SIZES,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 1536,
    "max_position_embeddings": 81,
    "tie_word_embeddings": False,
}


def made(pattern: str = "kda full", **changes: Any) -> RecursiveModel:
    mixers = {"recursive": {**RECURSION, **changes.pop("recursion", {})}}
    if "kda" in pattern:
        mixers["kda"] = KDA
    model = build_model(
        ModelConfig.from_dict({**SIZES, "layer_pattern": pattern, "mixers": mixers, **changes})
    )
    assert isinstance(model, RecursiveModel)
    return model


@pytest.mark.parametrize(
    ("pattern", "core", "total"),
    [("full", 6_815_744, 6_828_545), ("mlp", 5_016_576, 5_029_377)],
)
def test_the_published_arms_have_their_size(pattern: str, core: int, total: int) -> None:
    """7M with attention, 5M with the network over positions (16 in front, 81 cells)."""
    shape = {**PUBLISHED, "layer_pattern": pattern}
    model = on_meta(ModelConfig.from_dict(shape))
    assert sum(p.numel() for p in model.layers.parameters()) == core
    assert model.num_parameters() == total == count(Model(**shape)).total


@pytest.mark.parametrize("pattern", ["full", "kda", "kda*3 full", "mlp full"])
@pytest.mark.parametrize("changes", [
    {"tie_word_embeddings": False}, {"num_hidden_layers": 5}, {"recursion": {"puzzles": 7}},
])  # fmt: skip
def test_recursive_weights_are_counted_by_formula(pattern: str, changes: dict) -> None:
    with torch.device("meta"):
        model = made(pattern, **changes)
    counts = count(Model(**model.config.to_dict()))
    assert model.num_parameters() == counts.total
    assert sum(p.numel() for p in model.layers.parameters()) == counts.layers


def test_weights_are_the_same_on_every_way_to_them() -> None:
    with torch.device("meta"):
        late = made()
    late.to_empty(device="cpu")
    late.reset_parameters(torch.Generator().manual_seed(5))
    early = made()
    early.reset_parameters(torch.Generator().manual_seed(5))
    assert late.state_dict().keys() == early.state_dict().keys()
    for name, value in early.state_dict().items():
        assert torch.equal(late.state_dict()[name], value), name
    tokens = torch.randint(0, 12, (2, 20))
    assert torch.equal(late(tokens).logits, early(tokens).logits)


def test_making_one_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    made()
    assert torch.equal(torch.get_rng_state(), before)


def test_starts_as_published() -> None:
    model = made("full", hidden_size=256, intermediate_size=512, vocab_size=300, recursion={"puzzles": 4})
    for name, p in model.named_parameters():
        if p.ndim == 2 and "halt" not in name and "puzzles" not in name:
            assert p.std().item() * p.shape[-1] ** 0.5 == pytest.approx(1, abs=0.03), name
            assert p.abs().max().item() * p.shape[-1] ** 0.5 < 2.28, name  # two deviations, widened
    for state in (model.y0, model.z0):
        assert not state.requires_grad
        assert state.std().item() == pytest.approx(1, abs=0.15)
    assert not torch.equal(model.y0, model.z0)
    assert model.embed_puzzles is not None
    assert model.embed_puzzles.weight.abs().max() == 0
    assert (model.halt_head.weight.abs().max(), model.halt_head.bias.item()) == (0, -5)
    assert torch.all(model(torch.zeros(2, 9, dtype=torch.long)).q == -5)


def test_every_place_sees_both_ways() -> None:
    """The halting position sees the last token in a core of KDA alone, and the last token the first."""
    model = made("kda", num_hidden_layers=1)
    with torch.no_grad():
        model.halt_head.weight.normal_()
    tokens = torch.randint(0, 12, (1, 20))
    end, begin = tokens.clone(), tokens.clone()
    end[0, -1], begin[0, 0] = (tokens[0, -1] + 1) % 12, (tokens[0, 0] + 1) % 12
    kept = model(tokens)
    assert not torch.equal(model(end).q, kept.q)
    assert not torch.equal(model(begin).logits[0, -1], kept.logits[0, -1])
    one_way = made("kda", num_hidden_layers=1, recursion={"bidirectional": False})
    one_way.load_state_dict(model.state_dict())
    assert torch.equal(one_way(end).q, one_way(tokens).q)


@pytest.mark.parametrize("pattern", ["kda full", "full", "kda"])
def test_padding_changes_nothing(pattern: str) -> None:
    """Rows padded to different lengths answer as they do alone, whatever stands in the padding."""
    model = made(pattern).double()
    with torch.no_grad():
        model.halt_head.weight.normal_()
    tokens = torch.randint(0, 12, (3, 20))
    ids = torch.zeros_like(tokens)
    ids[0, 7:], ids[1, 19:] = -1, -1
    together = model(tokens, ids)
    for row, length in enumerate((7, 19, 20)):
        alone = model(tokens[row : row + 1, :length])
        assert (together.logits[row, :length] - alone.logits[0]).abs().max() < 1e-9
        assert (together.q[row] - alone.q[0]).abs() < 1e-9


def test_a_network_over_positions_does_not_read_padding() -> None:
    model = made("mlp")
    tokens = torch.randint(0, 12, (1, 20))
    other = tokens.clone()
    other[0, 15:] = (tokens[0, 15:] + 1) % 12
    ids = torch.zeros_like(tokens)
    ids[0, 15:] = -1
    block = next(model.blocks())
    x, context = model.embed(tokens), model.context(tokens, ids)
    mixed = block.mixer(x, context)
    assert torch.equal(mixed, block.mixer(model.embed(other), context))


def test_all_steps_are_the_single_ones() -> None:
    model = made()
    tokens = torch.randint(0, 12, (2, 15))
    every = model(tokens, all_steps=True)
    assert every.logits.shape == (3, 2, 15, 12)
    assert every.q.shape == (3, 2)
    for steps in (1, 2, 3):
        one = model(tokens, steps=steps)
        assert torch.equal(one.logits, every.logits[steps - 1])
    assert torch.equal(model(tokens).logits, every.logits[-1])
    assert not every.logits.requires_grad


def test_only_the_last_cycle_has_a_gradient() -> None:
    model = made("full")
    calls: list[bool] = []
    next(model.blocks()).register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    tokens = torch.randint(0, 12, (2, 15))
    x = model.embed(tokens)
    y, z = model.step(x, *model.start(x), model.context(tokens))
    assert calls == [False] * 3 + [True] * 3
    assert y.requires_grad
    assert z.requires_grad


def test_puzzle_vectors_stand_first() -> None:
    model = made("full", recursion={"puzzles": 2})
    assert model.embed_puzzles is not None
    with torch.no_grad():
        model.embed_puzzles.weight.normal_()
    tokens = torch.randint(0, 12, (2, 5))
    x = model.embed(tokens, torch.tensor([1, 0]))
    assert torch.equal(x[:, 0], model.embed_puzzles.weight[[1, 0]] * 32**0.5)
    assert x[:, 1:3].abs().max() == 0
    assert model.embed(tokens)[:, :3].abs().max() == 0
    with pytest.raises(UserError, match=r"recursive\.puzzles is 0"):
        made("full").embed(tokens, torch.tensor([1, 0]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"layer_pattern": "window"},
            "'window' is no mixer of family recursive; accepted are full, kda, mlp",
        ),
        (
            {"family": "decoder", "layer_pattern": "mlp"},
            "'mlp' is no mixer of family decoder; accepted are full",
        ),
        ({"family": "decoder", "mixers": {"recursive": {}}}, "mixers.recursive: unknown; accepted are full"),
        ({"mixers": {"recursive": {"cycle": 1}}}, "mixers.recursive.cycle: .*accepted keys: inner_updates"),
        ({"mixers": {"recursive": {"cycles": 0}}}, "mixers.recursive.cycles"),
        ({"mixers": {"mlp": {"width": 3}}}, "mixers.mlp.width"),
        ({"ffn_pattern": "moe"}, "'moe' in a recursive core; accepted is dense"),
        ({"family": "state"}, "family 'state' is not known; accepted are decoder, recursive"),
    ],
)
def test_what_a_recursive_core_cannot_be_is_refused(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        on_meta(ModelConfig.from_dict({**SIZES, **change}))


def test_wrong_rows_are_refused() -> None:
    with pytest.raises(UserError, match="a sequence of 21 tokens"):
        made()(torch.zeros(1, 21, dtype=torch.long))
    with pytest.raises(UserError, match=r"a row of 19 tokens; .* rows of model\.max_position_embeddings 20"):
        made("mlp")(torch.zeros(1, 19, dtype=torch.long))
    with pytest.raises(UserError, match="one document per row"):
        made("mlp")(torch.zeros(1, 20, dtype=torch.long), torch.arange(20)[None] // 10)


def test_the_family_chooses_the_network() -> None:
    decoder = {k: v for k, v in SIZES.items() if k != "family"}
    assert isinstance(build_model(ModelConfig.from_dict(decoder)), Decoder)
    assert isinstance(build_model(ModelConfig.from_dict(SIZES)), RecursiveModel)
