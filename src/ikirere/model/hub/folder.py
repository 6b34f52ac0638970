"""Hugging Face folders, both ways: config.json and safetensors under transformers' names.

Only safetensors is read: a pickle could run code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ikirere.common.files import atomic_path, write_text
from ikirere.errors import UserError
from ikirere.model.build import Model, on_meta
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub.files import SINGLE, check_tied, check_weights, read_mapping, shapes, weight_files
from ikirere.model.hub.formats import Format, shared_config
from ikirere.model.hub.own import OWN, REMOTE, REMOTE_TEXT, Own
from ikirere.model.hub.registry import FORMATS, format_for, format_named


def hub_config(model: Model) -> dict[str, Any]:
    """The config.json of a model: of a public class that can hold it, else of our own."""
    chosen = format_for(model.config)
    return shared_config(chosen, model.config, model.dtype) | chosen.to_hub(model.config)


def hub_name(name: str, config: ModelConfig) -> str:
    """The folder's name of one of our weights: layers.0.mixer.q_proj.weight -> model.layers.0.self_attn..."""
    for weight in format_for(config).weights(config):
        if weight.ours == name:
            return weight.theirs[0]
    raise KeyError(name)


def save_pretrained(model: Model, folder: str | Path, extra_config: dict[str, Any] | None = None) -> None:
    """Writes config.json and model.safetensors, each whole or not at all.

    extra_config adds to config.json: bos_token_id, eos_token_id, pad_token_id and further keys. It cannot
    change what describes the weights (ValueError). Weights keep their dtype; a tied head is written once. What no
    public class can hold is written as our own (`own`), with the module that transformers opens it by.
    """
    values = hub_config(model)
    extra = extra_config or {}
    if clash := sorted(k for k in extra if k in values and not k.endswith("_token_id")):
        raise ValueError(f"extra_config may not change {', '.join(clash)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chosen, tensors = format_for(model.config), model.state_dict()
    left = {name for name, _ in model.named_parameters()}
    weights: dict[str, torch.Tensor] = {}
    for rule in chosen.weights(model.config):
        parts = rule.split(tensors[rule.ours].detach().cpu())
        weights |= {name: part.contiguous() for name, part in zip(rule.theirs, parts, strict=True)}
        left.discard(rule.ours)
    if left:
        raise ValueError(f"the format cannot hold {', '.join(sorted(left)[:3])}")
    with atomic_path(folder / SINGLE) as part:
        save_file(weights, part, metadata={"format": "pt"})
    write_text(folder / "config.json", json.dumps({**values, **extra}, indent=2) + "\n")
    if isinstance(chosen, Own):
        write_text(folder / REMOTE, REMOTE_TEXT)
    else:
        (folder / REMOTE).unlink(missing_ok=True)


def load_config(folder: str | Path) -> ModelConfig:
    """Reads config.json. Raises UserError for a class or feature that the decoder does not have."""
    return _read(Path(folder))[0]


def _read(folder: Path) -> tuple[ModelConfig, Format]:
    path = folder / "config.json"
    values = read_mapping(path)
    named = values.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    found = format_named(name if isinstance(name, str) else None, values.get("model_type"))
    if found is None:
        shown = name or values.get("model_type") or "nothing"
        known = ", ".join(f.architecture for f in (*FORMATS, *OWN))
        raise UserError(f"{path}: architectures names {shown}; accepted are {known}")
    try:
        return found.from_hub(path, values), found
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def load_pretrained(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """Builds a decoder from a folder, single-file or sharded, its weights cast to `dtype` on `device`.

    Raises UserError naming the file, key or weight for an unsupported class, a missing or extra weight, a
    wrong shape, or a file that is not safetensors. Weights are checked before any memory is taken.
    """
    config, format = _read(Path(folder))
    if config.family != "decoder":
        raise UserError(
            f"{folder}: model.family {config.family!r} does not continue text; a decoder is needed here"
        )
    return cast(Decoder, _load(Path(folder), config, format, dtype, device))


def load_model(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Model:
    """The same for a model of any family."""
    return _load(Path(folder), *_read(Path(folder)), dtype, device)


def _load(
    folder: Path, config: ModelConfig, format: Format, dtype: torch.dtype, device: torch.device | str
) -> Model:
    model = on_meta(config)
    held = {path: shapes(path) for path in weight_files(folder)}
    names = {name for inside in held.values() for name in inside}
    rules = [rule.among(names) for rule in format.weights(config)]
    expected = model.state_dict()
    wanted = {
        name: tuple(part.shape)
        for rule in rules
        for name, part in zip(rule.theirs, rule.split(expected[rule.ours]), strict=True)
    }
    check_weights(folder, wanted, held, config.tie_word_embeddings)
    model = model.to(dtype).to_empty(device=device)
    tensors = model.state_dict()
    where = {name: path for path, names in held.items() for name in names}
    opened = {path: safe_open(path, "pt") for path in held}
    try:
        with torch.no_grad():
            for rule in rules:
                parts = [opened[where[name]].get_tensor(name) for name in rule.theirs]
                tensors[rule.ours].copy_(rule.join(parts))
    finally:
        for file in opened.values():
            file.__exit__(None, None, None)
    if config.tie_word_embeddings:
        check_tied(folder, held)
    return model
