"""The files of a Hugging Face folder, validated before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ikirere.common.files import read_json
from ikirere.errors import UserError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights."""
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise UserError(f"{folder}: neither {SINGLE} nor {INDEX} is there; only safetensors is read")
        return [folder / SINGLE]
    listed = read_mapping(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(v, str) for v in listed.values()):
        raise UserError(f"{folder / INDEX}: weight_map is empty or does not give a file for each weight")
    names = sorted(set(listed.values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{folder / INDEX}: {name!r} lies outside the folder")
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing, though {INDEX} names it")
    return [folder / name for name in names]


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a safetensors file. Raises UserError where it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def check_weights(
    folder: Path,
    wanted: Mapping[str, tuple[int, ...]],
    held: Mapping[Path, Mapping[str, tuple[int, ...]]],
    tied: bool,
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
    if extra := [name for name in where if name not in wanted and not _derived(name, tied)]:
        raise UserError(f"{folder}: weights that the decoder does not have: {_some(extra)}")


def _derived(name: str, tied: bool) -> bool:
    """Whether a stored tensor only repeats what is known: rotary frequencies, or the head of a tied model."""
    return name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")


def check_tied(folder: Path, held: Mapping[Path, Mapping[str, tuple[int, ...]]]) -> None:
    """Raises UserError where a tied model's files hold a head that differs from the embeddings."""
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


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises UserError where it is missing or another thing."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds {type(values).__name__}, a mapping is needed")
    return values
