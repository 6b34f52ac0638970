"""Folders of our own, for models without a public class: both ways, and as transformers opens them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, LlamaForCausalLM

import ikirere.model.hub.auto as auto
from ikirere.errors import UserError
from ikirere.model.build import build_model
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub import load_config, load_model, load_pretrained, save_pretrained, why_no_public_class

KDA = {"head_dim": 8, "gate_rank": 8, "chunk_size": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "kda and grouped attention": {
        "layer_pattern": "kda full", "mixers": {"kda": KDA, "full": {"rope": False}},
    },
    "first tokens stay": {"layer_pattern": "window full", "mixers": {"window": {"window": 5, "sinks": 2}}},
    "experts with a bias": {
        "ffn_pattern": "dense moe", "ffns": {"moe": {"num_experts": 4, "top_k": 2, "balance": "bias"}},
    },
    "block summaries": {
        "layer_pattern": "hybrid",
        "mixers": {"hybrid": {"window": 8, "block_size": 4, "top_k": 1, "rope_scaling": "none"}},
    },
    "state space": {
        "layer_pattern": "mamba2 retention",
        "mixers": {"mamba2": {"state_size": 8, "head_dim": 8}},
    },
    "untied": {"layer_pattern": "kda full", "mixers": {"kda": KDA}, "tie_word_embeddings": False},
}  # fmt: skip


def decoder(**change: Any) -> Decoder:
    shape = {
        "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 64,
        "initializer_range": 0.2,
    } | change  # fmt: skip
    model = Decoder(ModelConfig(**shape)).eval()
    model.reset_parameters(torch.Generator().manual_seed(3))
    return model


@pytest.fixture(params=list(SHAPES))
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Decoder, Path]:
    model = decoder(**SHAPES[request.param])
    for name, buffer in model.named_buffers():
        if name.endswith("ffn.bias"):
            buffer.copy_(torch.linspace(-1, 1, len(buffer)))
    save_pretrained(model, tmp_path, {"eos_token_id": 2, "pad_token_id": 0})
    return model, tmp_path


def tokens(batch: int = 3, length: int = 20) -> torch.Tensor:
    return torch.randint(3, 61, (batch, length), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_folder_both_ways(saved: tuple[Decoder, Path]) -> None:
    model, folder = saved
    assert load_config(folder) == model.config
    assert why_no_public_class(model.config)
    again = load_pretrained(folder).eval()
    assert torch.equal(again(tokens()), model(tokens()))
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["IkirereForCausalLM"]


def test_transformers_opens_saves_and_trains(saved: tuple[Decoder, Path], tmp_path: Path) -> None:
    model, folder = saved
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert type(theirs) is auto.IkirereForCausalLM
    t = tokens()
    with torch.no_grad():
        torch.testing.assert_close(theirs(t).logits, model(t), rtol=0, atol=0)
        documents = torch.tensor([0] * 7 + [1] * 13).expand(3, -1)
        positions = torch.cat((torch.arange(7), torch.arange(13))).expand(3, -1)
        packed = theirs(t, position_ids=positions).logits
        torch.testing.assert_close(packed, model(t, None, documents), rtol=0, atol=0)
    theirs.train()
    loss = theirs(t, labels=t).loss
    loss.backward()
    wanted = torch.nn.functional.cross_entropy(model(t)[:, :-1].flatten(0, 1), t[:, 1:].flatten())
    torch.testing.assert_close(loss, wanted)
    assert all(p.grad is not None for p in theirs.parameters())
    theirs.save_pretrained(tmp_path / "again")
    assert torch.equal(load_pretrained(tmp_path / "again").eval()(t), model(t))


def test_half_precision_keeps_decay_rates_exact(tmp_path: Path) -> None:
    model = decoder(**SHAPES["kda and grouped attention"])
    save_pretrained(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    mixer = theirs.model.layers[0].mixer
    assert (mixer.A_log.dtype, mixer.q_proj.weight.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(mixer.A_log, model.layers[0].mixer.A_log)


def left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    t, mask = tokens(3, 9), torch.ones(3, 9, dtype=torch.long)
    for row, empty in enumerate((0, 4, 7)):
        t[row, :empty], mask[row, :empty] = 0, 0
    return t, mask


@torch.no_grad()
def test_padded_prompts_generate_what_each_would_alone(saved: tuple[Decoder, Path]) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(saved[1])
    t, mask = left_padded()
    made = theirs.generate(t, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None)
    plain = theirs.generate(
        t, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None, use_cache=False
    )
    assert torch.equal(made, plain)
    for row in range(3):
        text = t[row][mask[row].bool()].tolist()
        for _ in range(8):
            text.append(int(saved[0](torch.tensor([text]))[0, -1].argmax()))
        assert made[row, 9:].tolist() == text[-8:]


@torch.no_grad()
def test_beams_and_samples_equal_llamas(tmp_path: Path) -> None:
    model = decoder()
    save_pretrained(model, tmp_path / "llama", {"eos_token_id": 2, "pad_token_id": 0})
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "llama")
    config = auto.IkirereConfig(model.config.to_dict(), eos_token_id=2, pad_token_id=0)
    own = auto.IkirereForCausalLM(config).eval()
    own.model.load_state_dict(model.state_dict())
    t, mask = left_padded()
    for settings in (
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 5, "num_return_sequences": 2},
    ):
        made = []
        for net in (own, llama):
            torch.manual_seed(0)
            made.append(net.generate(t, attention_mask=mask, max_new_tokens=7, **settings))
        assert torch.equal(*made)


def test_trust_remote_code_needs_no_import(tmp_path: Path) -> None:
    save_pretrained(decoder(**SHAPES["kda and grouped attention"]), tmp_path / "model")
    code = (
        "import sys; from transformers import AutoModelForCausalLM as A; "
        "m = A.from_pretrained(sys.argv[1], trust_remote_code=True); print(type(m).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True, timeout=120,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "IkirereForCausalLM", done.stderr


RECURSIVE = {
    "family": "recursive", "layer_pattern": "kda full", "max_position_embeddings": 16, "num_key_value_heads": 4,
    "mixers": {"kda": KDA, "recursive": {"inner_updates": 2, "cycles": 2, "supervision_steps": 3, "puzzle_tokens": 2}},
}  # fmt: skip


@pytest.mark.parametrize("change", [{}, {"tie_word_embeddings": False}])
@torch.no_grad()
def test_recursive_models(tmp_path: Path, change: dict[str, Any]) -> None:
    model = build_model(dataclasses.replace(decoder().config, **RECURSIVE, **change)).eval()
    save_pretrained(model, tmp_path / "a", {"pad_token_id": 0})
    again = load_model(tmp_path / "a").eval()
    t, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    wanted = model(t, mask - 1).logits
    assert torch.equal(again(t, mask - 1).logits, wanted)
    for opener in (AutoModelForCausalLM, AutoModelForMaskedLM, AutoModel):
        theirs = opener.from_pretrained(tmp_path / "a")
        assert type(theirs) is auto.IkirereForMaskedLM
        assert torch.equal(theirs(t, attention_mask=mask).logits, wanted)
    assert not torch.equal(theirs(t, attention_mask=mask, steps=1).logits, wanted)
    theirs.save_pretrained(tmp_path / "b")
    assert torch.equal(load_model(tmp_path / "b").eval()(t, mask - 1).logits, wanted)
    with pytest.raises(UserError, match="family 'recursive' does not continue text"):
        load_pretrained(tmp_path / "a")


def test_a_public_class_takes_the_folder_back(tmp_path: Path) -> None:
    save_pretrained(decoder(**SHAPES["untied"]), tmp_path)
    assert (tmp_path / "modeling_ikirere.py").exists()
    save_pretrained(decoder(), tmp_path)
    assert not (tmp_path / "modeling_ikirere.py").exists()
    assert AutoConfig.from_pretrained(tmp_path).model_type == "llama"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ikirere": None}, "the key ikirere is None"),
        ({"ikirere": {"colour": 1}}, "unknown key colour"),
        ({"ikirere": {"vocab_size": 7}}, "missing key hidden_size"),
    ],
)
def test_bad_config_names_the_key(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    save_pretrained(decoder(**SHAPES["untied"]), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=words):
        load_model(tmp_path)


def test_what_the_class_does_not_take(tmp_path: Path) -> None:
    own = auto.IkirereForCausalLM(auto.IkirereConfig(decoder().config.to_dict()))
    with pytest.raises(ValueError, match="inputs_embeds"):
        own(inputs_embeds=torch.zeros(1, 2, 32))
