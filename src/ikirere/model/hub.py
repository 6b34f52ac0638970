"""Hugging Face folders, both ways: config.json and safetensors under transformers' names.

`LlamaForCausalLM` without per-head norm, `Qwen3ForCausalLM` with it, so that transformers, vLLM and
llama.cpp serve a folder without custom code. Only safetensors is read: a pickle could run code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder

LLAMA, QWEN3 = "LlamaForCausalLM", "Qwen3ForCausalLM"
_DEFAULTS: dict[str, dict[str, Any]] = {
    # What transformers takes where config.json is silent.
    LLAMA: {"head_dim": None, "max_position_embeddings": 2048},
    QWEN3: {"head_dim": 128, "max_position_embeddings": 32768},
}
_MODEL_TYPES = {"llama": LLAMA, "qwen3": QWEN3}
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_PARTS = {
    "mixer_norm": "input_layernorm",
    "mixer": "self_attn",
    "ffn_norm": "post_attention_layernorm",
    "ffn": "mlp",
}
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def hub_name(name: str) -> str:
    """transformers' name of one of our weights: layers.0.mixer.q_proj.weight -> model.layers.0.self_attn..."""
    if name.startswith("lm_head."):
        return name
    return "model." + ".".join(_PARTS.get(part, part) for part in name.split("."))


def hub_config(model: Decoder) -> dict[str, Any]:
    """The config.json of a model. Raises UserError for shapes that no supported class can hold."""
    c = model.config
    if set(c.layer_kinds) != {"full"}:
        raise UserError(
            f"model.layer_pattern {c.layer_pattern!r}: only 'full' layers can be written as {LLAMA} or {QWEN3}"
        )
    if not c.qk_norm and c.hidden_size % c.num_attention_heads:
        raise UserError(
            f"model.hidden_size {c.hidden_size} is not divisible by num_attention_heads {c.num_attention_heads}, "
            f"which {LLAMA} refuses; change one of them or set qk_norm: true ({QWEN3})"
        )
    dtype = str(model.dtype).removeprefix("torch.")
    values: dict[str, Any] = {
        "architectures": [QWEN3 if c.qk_norm else LLAMA],
        "model_type": "qwen3" if c.qk_norm else "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": c.max_position_embeddings,
        "rms_norm_eps": c.rms_norm_eps,
        # transformers 5 reads rope_parameters, older readers rope_theta.
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": c.initializer_range,
        "tie_word_embeddings": c.tie_word_embeddings,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if c.qk_norm:
        return {**values, "use_sliding_window": False, "sliding_window": None}
    return {**values, "mlp_bias": False}


def save_pretrained(model: Decoder, folder: str | Path, extra_config: dict[str, Any] | None = None) -> None:
    """Writes config.json and model.safetensors, each whole or not at all.

    extra_config adds to config.json: bos_token_id, eos_token_id, pad_token_id and further keys. It cannot
    change what describes the weights (ValueError). Weights keep their dtype; a tied head is written once.
    """
    values = hub_config(model)
    extra = extra_config or {}
    if clash := sorted(k for k in extra if k in values and not k.endswith("_token_id")):
        raise ValueError(f"extra_config may not change {', '.join(clash)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {hub_name(name): p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    part = folder / f"{_SINGLE}.part"
    save_file(weights, part, metadata={"format": "pt"})
    _settle(part, folder / _SINGLE)
    part = folder / "config.json.part"
    part.write_text(json.dumps({**values, **extra}, indent=2) + "\n", encoding="utf-8")
    _settle(part, folder / "config.json")


def load_config(folder: str | Path) -> ModelConfig:
    """Reads config.json. Raises UserError for a class or feature that the decoder does not have."""
    path = Path(folder) / "config.json"
    values = _json(path)
    named = values.get("architectures")
    name = named[0] if isinstance(named, list) and named else _MODEL_TYPES.get(str(values.get("model_type")))
    if not isinstance(name, str) or name not in _DEFAULTS:
        found = name or values.get("model_type") or "nothing"
        raise UserError(f"{path}: architectures names {found}; accepted are {', '.join(_DEFAULTS)}")
    _refuse_features(path, values)
    if missing := [key for key in _REQUIRED if values.get(key) is None]:
        raise UserError(f"{path}: missing key {', '.join(missing)}")
    filled = {**_DEFAULTS[name], **values}
    try:
        return ModelConfig(
            **{key: values[key] for key in _REQUIRED},
            num_key_value_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
            head_dim=filled["head_dim"] or 0,
            max_position_embeddings=filled["max_position_embeddings"],
            rope_theta=_rope_theta(path, values),
            rms_norm_eps=values.get("rms_norm_eps", 1e-6),
            qk_norm=name == QWEN3,
            tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
            initializer_range=values.get("initializer_range", 0.02),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_pretrained(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """Builds a decoder from a folder, single-file or sharded, its weights cast to `dtype` on `device`.

    Raises UserError naming the file, key or weight for an unsupported class, a missing or extra weight, a
    wrong shape, or a file that is not safetensors. Weights are checked before any memory is taken.
    """
    folder = Path(folder)
    config = load_config(folder)
    with torch.device("meta"):
        model = Decoder(config)
    wanted = {hub_name(name): parameter for name, parameter in model.named_parameters()}
    files = _files(folder)
    held = {path: _shapes(path) for path in files}
    _check(folder, config, {k: tuple(v.shape) for k, v in wanted.items()}, held)
    model = model.to(dtype).to_empty(device=device)
    wanted = {hub_name(name): parameter for name, parameter in model.named_parameters()}
    for path in files:
        with safe_open(path, "pt") as file, torch.no_grad():
            for name in set(held[path]) & set(wanted):
                wanted[name].copy_(file.get_tensor(name))
    if config.tie_word_embeddings:
        _check_tied(folder, held)
    return model


def _refuse_features(path: Path, values: Mapping[str, Any]) -> None:
    kinds = values.get("layer_types") or []
    refused = {
        "attention_bias": values.get("attention_bias"),
        "mlp_bias": values.get("mlp_bias"),
        "use_sliding_window": values.get("use_sliding_window"),
        "quantization_config": values.get("quantization_config"),
        "layer_types": not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds),
        "partial_rotary_factor": values.get("partial_rotary_factor", 1.0) != 1.0,
        "hidden_act": values.get("hidden_act", "silu") not in ("silu", "swish"),
    }
    for key, bad in refused.items():
        if bad:
            raise UserError(
                f"{path}: {key} {values.get(key)!r} is not supported; the decoder has no such part"
            )


def _rope_theta(path: Path, values: Mapping[str, Any]) -> float:
    for key in ("rope_parameters", "rope_scaling"):
        settings = values.get(key) or {}
        plain = isinstance(settings, dict) and not set(settings) - {"rope_type", "type", "rope_theta"}
        if not plain or settings.get("rope_type", settings.get("type", "default")) != "default":
            raise UserError(
                f"{path}: {key} {settings!r} is not supported; accepted is the rope_type 'default'"
            )
    inner = (values.get("rope_parameters") or {}).get("rope_theta")
    outer = values.get("rope_theta")
    if inner is not None and outer is not None and inner != outer:
        raise UserError(f"{path}: rope_theta {outer} and rope_parameters.rope_theta {inner} differ")
    return next((theta for theta in (inner, outer) if theta is not None), 10_000.0)


def _files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights."""
    if not (folder / _INDEX).exists():
        if not (folder / _SINGLE).exists():
            raise UserError(f"{folder}: neither {_SINGLE} nor {_INDEX} is there; only safetensors is read")
        return [folder / _SINGLE]
    listed = _json(folder / _INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(v, str) for v in listed.values()):
        raise UserError(f"{folder / _INDEX}: weight_map is empty or does not give a file for each weight")
    names = sorted(set(listed.values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{folder / _INDEX}: {name!r} lies outside the folder")
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing, though {_INDEX} names it")
    return [folder / name for name in names]


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def _check(
    folder: Path,
    config: ModelConfig,
    wanted: Mapping[str, tuple[int, ...]],
    held: Mapping[Path, Mapping[str, tuple[int, ...]]],
) -> None:
    """Names the first weights that are missing, extra, doubled or of another shape."""
    where: dict[str, Path] = {}
    for path, names in held.items():
        for name, shape in names.items():
            if name in where:
                raise UserError(f"{path}: {name} is also in {where[name].name}")
            where[name] = path
            if name in wanted and wanted[name] != shape:
                raise UserError(
                    f"{path}: {name} has shape {list(shape)}; config.json makes it {list(wanted[name])}"
                )
    if missing := [name for name in wanted if name not in where]:
        raise UserError(f"{folder}: missing weights: {_some(missing)}")
    if extra := [name for name in where if name not in wanted and not _derived(name, config)]:
        raise UserError(f"{folder}: weights that the decoder has no place for: {_some(extra)}")


def _derived(name: str, config: ModelConfig) -> bool:
    """Whether a stored tensor only repeats what is known: rotary frequencies, or the head of a tied model."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_word_embeddings and name == "lm_head.weight")


def _check_tied(folder: Path, held: Mapping[Path, Mapping[str, tuple[int, ...]]]) -> None:
    pair: dict[str, Tensor] = {}
    for path, names in held.items():
        if "lm_head.weight" in names or "model.embed_tokens.weight" in names:
            with safe_open(path, "pt") as file:
                for name in {"lm_head.weight", "model.embed_tokens.weight"} & set(names):
                    pair[name] = file.get_tensor(name)
    if "lm_head.weight" in pair and not torch.equal(*pair.values()):
        raise UserError(
            f"{folder}: tie_word_embeddings is true, but lm_head.weight differs from the embeddings"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds {type(values).__name__}, a mapping is needed")
    return values


def _settle(part: Path, final: Path) -> None:
    """Gives a finished file its name, after its bytes are on the disk."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(final)
