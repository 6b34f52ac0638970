"""Hugging Face folders without transformers: round trips, shards, and every refusal by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub import hub_name, load_config, load_pretrained, save_pretrained, why_no_public_class


def small(**changes: Any) -> Decoder:
    return Decoder(
        ModelConfig.from_dict(
            {
                "vocab_size": 40,
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "intermediate_size": 24,
                "max_position_embeddings": 64,
                "rope_theta": 777.0,
                **changes,
            }
        )
    )


def edit(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    values |= changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v != "gone"}))


def shard(folder: Path, parts: int) -> None:
    """Splits model.safetensors as transformers does."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    files = [f"model-{i + 1:05d}-of-{parts:05d}.safetensors" for i in range(parts)]
    where = {name: files[i % parts] for i, name in enumerate(names)}
    for file in files:
        save_file({n: weights[n] for n in names if where[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("parts", [1, 3])
def test_round_trip(tmp_path: Path, tied: bool, qk_norm: bool, parts: int) -> None:
    model = small(tie_word_embeddings=tied, qk_norm=qk_norm, head_dim=10)
    save_pretrained(model, tmp_path, {"eos_token_id": 2, "pad_token_id": 0})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    if parts > 1:
        shard(tmp_path, parts)
    again = load_pretrained(tmp_path)
    assert again.config == model.config
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert b.requires_grad
    tokens = torch.randint(0, 40, (2, 9))
    assert torch.equal(model(tokens), again(tokens))


def test_config_says_what_readers_of_all_ages_look_for(tmp_path: Path) -> None:
    save_pretrained(small(), tmp_path, {"eos_token_id": [2, 16], "bos_token_id": 1})
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == 777.0
    assert values["torch_dtype"] == values["dtype"] == "float32"
    assert (values["bos_token_id"], values["eos_token_id"], values["pad_token_id"]) == (1, [2, 16], None)
    with pytest.raises(ValueError, match="may not change hidden_size"):
        save_pretrained(small(), tmp_path, {"hidden_size": 3})


def test_dtypes(tmp_path: Path) -> None:
    save_pretrained(small().to(torch.bfloat16), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_file(tmp_path / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert load_pretrained(tmp_path).dtype == torch.float32
    model = load_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.ropes[0].cos.dtype == torch.float32


def test_saving_over_a_folder_is_whole(tmp_path: Path) -> None:
    save_pretrained(small(), tmp_path)
    other = small()
    other.reset_parameters(torch.Generator().manual_seed(9))
    save_pretrained(other, tmp_path)
    assert torch.equal(load_pretrained(tmp_path).output_weight, other.output_weight)


def test_class_without_per_head_norm_wants_divisible_widths(tmp_path: Path) -> None:
    odd = {"hidden_size": 15, "head_dim": 8}
    assert "hidden_size 15 is not divisible" in str(why_no_public_class(small(**odd).config))
    save_pretrained(small(**odd, qk_norm=True), tmp_path)
    assert load_config(tmp_path).hidden_size == 15


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM; accepted are LlamaForCausalLM"),
        ({"architectures": "gone", "model_type": "gone"}, "architectures names nothing"),
        ({"architectures": "gone", "model_type": "gpt2"}, "architectures names gpt2"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 777.0}}, "rope_parameters"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": 10.0}}, "rope_theta 777.0 and rope_parameters.rope_theta 10.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"vocab_size": "gone", "hidden_size": None}, "missing key vocab_size, hidden_size"),
        ({"num_key_value_heads": 3}, "not divisible by num_key_value_heads 3"),
        ({"hidden_size": "16"}, "hidden_size"),
        ({"intermediate_size": 32}, "has shape"),
        ({"vocab_size": 10**12}, "has shape"),
        ({"num_hidden_layers": 1}, r"does not have: model\.layers\.1"),
        ({"num_hidden_layers": 3}, r"missing weights: model\.layers\.2.* and 6 more"),
        ({"tie_word_embeddings": False}, r"missing weights: lm_head\.weight"),
        ({"architectures": ["Qwen3ForCausalLM"]}, r"missing weights: .*q_norm"),
    ],
)
def test_config_that_does_not_fit(tmp_path: Path, changes: dict, words: str) -> None:
    save_pretrained(small(), tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(UserError, match=words) as caught:
        load_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_old_config_without_architectures_or_rope_parameters(tmp_path: Path) -> None:
    model = small()
    save_pretrained(model, tmp_path)
    edit(tmp_path, architectures="gone", rope_parameters="gone", head_dim="gone", rope_scaling=None)
    assert load_pretrained(tmp_path).config == model.config
    edit(tmp_path, rope_theta="gone")
    assert load_config(tmp_path).rope_theta == 10_000.0


KEYS = [
    *(
        "architectures",
        "model_type",
        "vocab_size",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
    ),
    *(
        "head_dim",
        "rope_theta",
        "rope_parameters",
        "rope_scaling",
        "layer_types",
        "rms_norm_eps",
        "hidden_act",
    ),
    *("max_position_embeddings", "tie_word_embeddings", "initializer_range", "partial_rotary_factor"),
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
NESTED = st.lists(SCALARS, max_size=2) | st.dictionaries(
    st.sampled_from(["rope_type", "rope_theta", "x"]), SCALARS
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    save_pretrained(small(), folder)
    (folder / "whole.json").write_bytes((folder / "config.json").read_bytes())
    return folder


@settings(max_examples=60, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), SCALARS | NESTED, min_size=1, max_size=3))
def test_any_config_loads_or_is_refused_in_one_line(written: Path, changes: dict) -> None:
    (written / "config.json").write_bytes((written / "whole.json").read_bytes())
    edit(written, **changes)
    try:
        load_config(written)
    except UserError as error:
        assert "\n" not in str(error)


def damage(folder: Path, name: str, change: str) -> None:
    weights = load_file(folder / "model.safetensors")
    if change == "drop":
        del weights[name]
    elif change == "shape":
        weights[name] = weights[name][:-1].contiguous()
    else:
        weights[name] = torch.ones(3)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model.norm.weight", "drop", r"missing weights: model\.norm\.weight"),
        ("model.layers.1.mlp.up_proj.weight", "shape", r"up_proj\.weight has shape \[23, 16\]"),
        (
            "model.layers.0.self_attn.q_proj.bias",
            "add",
            r"does not have: model\.layers\.0\.self_attn\.q_proj\.bias",
        ),
        ("lm_head.weight", "add", r"lm_head\.weight differs"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, name: str, change: str, words: str) -> None:
    save_pretrained(small(), tmp_path)
    damage(tmp_path, name, change)
    with pytest.raises(UserError, match=words):
        load_pretrained(tmp_path)


def test_repeated_head_and_rotary_buffers_are_let_pass(tmp_path: Path) -> None:
    model = small()
    save_pretrained(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, tmp_path / "model.safetensors")
    assert torch.equal(load_pretrained(tmp_path).output_weight, model.output_weight)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        load_pretrained(tmp_path / "nowhere")
    save_pretrained(small(), tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[:-10], b"", b"\xff" * 64, b"not a file of weights"):
        weights.write_bytes(broken)
        with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
            load_pretrained(tmp_path)
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="only safetensors is read"):
        load_pretrained(tmp_path)
    for text, words in (("[1]", "holds list"), ("{", "not JSON"), ("\x00", "not JSON")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=words):
            load_pretrained(tmp_path)


def test_index_that_leads_astray(tmp_path: Path) -> None:
    save_pretrained(small(), tmp_path)
    shard(tmp_path, 2)
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    first, second = sorted(set(whole["weight_map"].values()))
    (tmp_path / second).rename(tmp_path / "aside")
    with pytest.raises(UserError, match=f"{second}: missing"):
        load_pretrained(tmp_path)
    save_file(load_file(tmp_path / first), tmp_path / second)
    with pytest.raises(UserError, match="is also in"):
        load_pretrained(tmp_path)
    for bad, words in (
        ({"x": "../aside"}, "outside the folder"),
        ({}, "weight_map is empty"),
        ([1], "weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(UserError, match=words):
            load_pretrained(tmp_path)


def test_names() -> None:
    model = small(tie_word_embeddings=False, qk_norm=True)
    names = {hub_name(n, model.config) for n, _ in model.named_parameters()}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= names
    assert "model.layers.1.post_attention_layernorm.weight" in names
    assert "model.layers.0.self_attn.k_norm.weight" in names
    assert len(names) == len(list(model.parameters()))
