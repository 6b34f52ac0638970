"""Shapes that can and cannot exist, and layer patterns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.recipe.schema import Model

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}


def test_from_recipe_resolves_head_dim_and_keeps_every_field() -> None:
    model = Model(**SIZES, rope_theta=500.0, qk_norm=True, tie_word_embeddings=False)
    config = ModelConfig.from_recipe(model)
    assert config.head_dim == 6
    for name in Model.model_fields:
        if name != "head_dim":
            assert getattr(config, name) == getattr(model, name), name
    assert ModelConfig.from_recipe(model.model_copy(update={"head_dim": 10})).head_dim == 10


@settings(max_examples=50, deadline=None)
@given(
    kv=st.integers(1, 4),
    group=st.integers(1, 4),
    half=st.integers(1, 16),
    hidden=st.integers(1, 99),
    theta=st.floats(1.0, 1e7),
    tied=st.booleans(),
    qk=st.booleans(),
)
def test_dict_round_trip(
    kv: int, group: int, half: int, hidden: int, theta: float, tied: bool, qk: bool
) -> None:
    config = ModelConfig(
        50, hidden, 2, kv * group, kv, 40, 64, 2 * half, theta, qk_norm=qk, tie_word_embeddings=tied
    )
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 25}, "hidden_size 25 is not divisible by num_attention_heads 4"),
        ({"num_key_value_heads": 3}, "not divisible by num_key_value_heads 3"),
        ({"head_dim": 5}, "head_dim 5 is odd"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"depth": 3}, "unknown key depth"),
    ],
)
def test_impossible_shapes_are_named(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ModelConfig.from_dict({**SIZES, **change})


def test_a_folder_with_old_keys_still_opens() -> None:
    old = {"local_chunk": 32, "top_k": 2, "global_tokens": "learned_summaries", "streaming_links": "ring"}
    opened = ModelConfig.from_dict({**SIZES, "layer_pattern": "hybrid", "mixers": {"hybrid": old}})
    assert opened.mixers == {"hybrid": {"window": 32, "top_k": 2}}


def test_missing_keys_are_named() -> None:
    with pytest.raises(UserError, match="missing key intermediate_size, vocab_size"):
        ModelConfig.from_dict(
            {k: v for k, v in SIZES.items() if k not in ("vocab_size", "intermediate_size")}
        )


def test_layers_follow_the_pattern_and_a_bad_one_is_a_user_error() -> None:
    config = ModelConfig.from_dict({**SIZES, "layer_pattern": "kda full", "ffn_pattern": "dense moe"})
    assert (config.layer_kinds, config.ffn_kinds) == (("kda", "full", "kda"), ("dense", "moe", "dense"))
    assert config.run_as("window") == ("window",) * 3
    for key in ("layer_pattern", "ffn_pattern"):
        with pytest.raises(UserError, match=rf"model\.{key} 'full,full': 'full,full' is no "):
            Decoder(ModelConfig.from_dict({**SIZES, key: "full,full"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer_pattern": "rwkv*3 full"}, "'rwkv' is no mixer of family decoder; accepted are full"),
        ({"mixers": {"ssm": {}}}, "mixers.ssm: unknown; accepted are full"),
        ({"mixers": {"full": {"window": 3}}}, "mixers.full.window"),
        ({"family": "recursive"}, "accepted is decoder"),
    ],
)
def test_decoder_refuses_what_it_cannot_build(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words), torch.device("meta"):
        Decoder(ModelConfig.from_dict({**SIZES, **change}))
