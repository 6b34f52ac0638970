"""What a Hugging Face class is to us: when it can hold a model, its config.json, and where each weight lies in it.

A format is one file in this folder and one line in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """One of our parameters and the tensors that hold it in the folder.

    ours: its name in `Decoder.named_parameters`. theirs: names in the folder, one or (a stack of experts) several.
    split: our tensor -> theirs, in order. join: the inverse. Both also run on the meta device, where they give shapes.
    spare: names that others write instead of `theirs`.
    """

    ours: str
    theirs: tuple[str, ...]
    split: Callable[[Tensor], list[Tensor]]
    join: Callable[[list[Tensor]], Tensor]
    spare: tuple[str, ...] = ()

    def among(self, names: Collection[str]) -> Weight:
        """The same under its spare names, where `names` hold those."""
        spared = self.spare and all(name in names for name in self.spare)
        return replace(self, theirs=self.spare, spare=()) if spared else self


def same(ours: str, theirs: str, spare: tuple[str, ...] = ()) -> Weight:
    """A weight that lies in the folder as it is."""
    return Weight(ours, (theirs,), lambda t: [t], lambda parts: parts[0], spare)


def reshaped(ours: str, theirs: str, their_shape: Shape, our_shape: Shape) -> Weight:
    """The same numbers in the same order under another shape."""
    return Weight(
        ours, (theirs,), lambda t: [t.reshape(their_shape)], lambda parts: parts[0].reshape(our_shape)
    )


def stacked(ours: str, theirs: Iterable[str]) -> Weight:
    """Our first axis counts their tensors (experts)."""
    return Weight(ours, tuple(theirs), lambda t: list(t.unbind(0)), lambda parts: torch.stack(parts))


class Format(Protocol):
    """One class of transformers, or one of our own."""

    architecture: str  # as config.json's `architectures` names it
    model_type: str

    def refuses(self, config: ModelConfig) -> str | None:
        """Why the class cannot hold this shape (naming the field and what it accepts); None where it can."""

    def to_hub(self, config: ModelConfig) -> dict[str, Any]:
        """config.json without what all formats share (`shared_config`)."""

    def from_hub(self, path: Path, values: Mapping[str, Any]) -> ModelConfig:
        """Inverse of `to_hub`. Raises UserError, with the path, for features that the decoder does not have."""

    def weights(self, config: ModelConfig) -> list[Weight]:
        """Every parameter of the decoder, in any order; a tied head is none."""


def shared_config(format: Format, config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What every config.json of ours has."""
    name = str(dtype).removeprefix("torch.")
    return {
        "architectures": [format.architecture],
        "model_type": format.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": True,
        "torch_dtype": name,
        "dtype": name,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def refuse(path: Path, values: Mapping[str, Any], bad: Mapping[str, Any]) -> None:
    """Raises UserError for the first key of `bad` whose value is true."""
    for key, wrong in bad.items():
        if wrong:
            raise UserError(
                f"{path}: {key} {values.get(key)!r} is not supported; the decoder has no such part"
            )


def base_fields(values: Mapping[str, Any], defaults: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields of ModelConfig that all classes name alike. Raises UserError naming missing keys."""
    required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if missing := [key for key in required if values.get(key) is None]:
        raise UserError(f"{path}: missing key {', '.join(missing)}")
    filled = {**defaults, **values}
    return {key: values[key] for key in required} | {
        "num_key_value_heads": values.get("num_key_value_heads") or values["num_attention_heads"],
        "head_dim": filled.get("head_dim") or 0,
        "max_position_embeddings": filled["max_position_embeddings"],
        "rms_norm_eps": values.get("rms_norm_eps", 1e-6),
        "tie_word_embeddings": bool(values.get("tie_word_embeddings", False)),
        "initializer_range": values.get("initializer_range", 0.02),
    }


def plain_rope_theta(path: Path, values: Mapping[str, Any]) -> float:
    """The base of unscaled rotary positions. Raises UserError where config.json scales them."""
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


def common_weights(config: ModelConfig, parts: Mapping[str, str]) -> list[Weight]:
    """Embeddings, last norm, head, and in each layer the parts by name: ours ('ffn.up_proj') -> theirs
    ('mlp.up_proj'), each a weight that lies there as it is."""
    found = [
        same("embed_tokens.weight", "model.embed_tokens.weight"),
        same("norm.weight", "model.norm.weight"),
    ]
    if not config.tie_word_embeddings:
        found.append(same("lm_head.weight", "lm_head.weight"))
    for i in range(config.num_hidden_layers):
        found += [
            same(f"layers.{i}.{ours}.weight", f"model.layers.{i}.{theirs}.weight")
            for ours, theirs in parts.items()
        ]
    return found
