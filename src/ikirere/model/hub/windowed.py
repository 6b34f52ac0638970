"""Stacks of window and full attention: `GraniteSWAForCausalLM` (learned sinks on every layer, RoPE or none per layer)
and `Olmo3ForCausalLM` (norms after, one norm over all heads, YaRN on full layers)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.hub.dense import ATTENTION, FFN, HEAD_NORMS, NORMS
from ikirere.model.hub.formats import Weight, base_fields, common_weights, refuse, same

KINDS = {"full": "full_attention", "window": "sliding_attention"}
OURS = {theirs: ours for ours, theirs in KINDS.items()}


def _settings(config: ModelConfig, kind: str) -> Mapping[str, Any]:
    return config.mixers.get(kind, {})


def _layer_types(path: Path, values: Mapping[str, Any]) -> list[str]:
    """Our mixers by layer. Raises UserError for layer_types that are missing or of other kinds."""
    kinds = values.get("layer_types")
    if (
        not isinstance(kinds, list)
        or not set(kinds) <= set(OURS)
        or len(kinds) != values["num_hidden_layers"]
    ):
        raise UserError(f"{path}: layer_types {kinds!r}; one of {', '.join(OURS)} is needed for each layer")
    return [OURS[kind] for kind in kinds]


def _plain(config: ModelConfig, kinds: set[str]) -> str | None:
    """What both classes refuse."""
    if not set(config.layer_kinds) <= kinds:
        return f"model.layer_pattern {config.layer_pattern!r}: only {' and '.join(sorted(kinds))} layers fit"
    if set(config.ffn_kinds) != {"dense"}:
        return f"model.ffn_pattern {config.ffn_pattern!r}: only 'dense' fits"
    if _settings(config, "window").get("sink_positions", "kept") != "kept":
        return "model.mixers.window.sink_positions: 'renumbered' fits no class; 'kept' is needed"
    if _settings(config, "window").get("sinks", 0):
        return "model.mixers.window.sinks: first-token sinks fit no class; 0 is needed"
    return None


class GraniteSWA:
    """Pre-norm, no norm on heads, a learned sink logit on every head of every layer."""

    architecture, model_type = "GraniteSWAForCausalLM", "granite_swa"

    def refuses(self, config: ModelConfig) -> str | None:
        if reason := _plain(config, {"full", "window"}):
            return reason
        if config.qk_norm or config.norm_order != "pre":
            return f"model.qk_norm {config.qk_norm}, norm_order {config.norm_order!r}: False and 'pre' are needed"
        if config.hidden_size % config.num_attention_heads:
            return f"model.hidden_size {config.hidden_size} is not divisible by num_attention_heads {config.num_attention_heads}"
        for kind in set(config.layer_kinds):
            if not _settings(config, kind).get("learned_sinks"):
                return f"model.mixers.{kind}.learned_sinks: true is needed on every layer"
            if _settings(config, kind).get("rope_scaling", "none") != "none":
                return f"model.mixers.{kind}.rope_scaling: 'none' is needed"
        return None

    def _theta(self, config: ModelConfig, kind: str) -> float:
        settings = _settings(config, kind)
        return (settings.get("rope_theta") or config.rope_theta) if settings.get("rope", True) else 0.0

    def to_hub(self, config: ModelConfig) -> dict[str, Any]:
        return {
            "layer_types": [KINDS[kind] for kind in config.layer_kinds],
            "layer_rope_theta": [self._theta(config, kind) for kind in config.layer_kinds],
            "sliding_window": _settings(config, "window").get("window", 8192),
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            # The class multiplies logits of attention by this; its default of 1 is not 1 / sqrt(head_dim).
            "attention_multiplier": config.head_dim**-0.5,
            "embedding_multiplier": 1.0,
            "logits_scaling": 1.0,
            "residual_multiplier": 1.0,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
        }

    def from_hub(self, path: Path, values: Mapping[str, Any]) -> ModelConfig:
        fields = base_fields(values, {"head_dim": None, "max_position_embeddings": 8192}, path)
        head_dim = fields["head_dim"] or fields["hidden_size"] // fields["num_attention_heads"]
        multiplier = values.get("attention_multiplier", 1.0)
        others = ("embedding_multiplier", "logits_scaling", "residual_multiplier")
        refuse(
            path,
            values,
            {
                "attention_bias": values.get("attention_bias"),
                "mlp_bias": values.get("mlp_bias"),
                "attention_multiplier": not math.isclose(multiplier, head_dim**-0.5, rel_tol=1e-6),
                **{key: values.get(key, 1.0) != 1.0 for key in others},
            },
        )
        theta = float(
            (values.get("rope_parameters") or {}).get("rope_theta") or values.get("rope_theta") or 10_000.0
        )
        kinds = _layer_types(path, values)
        mixers: dict[str, dict[str, Any]] = {}
        for kind, own in zip(kinds, values.get("layer_rope_theta") or [theta] * len(kinds), strict=True):
            settings: dict[str, Any] = {"learned_sinks": True}
            if not own:
                settings["rope"] = False
            elif own != theta:
                settings["rope_theta"] = float(own)
            if kind == "window":
                settings["window"] = values.get("sliding_window", 128)
            if mixers.setdefault(kind, settings) != settings:
                raise UserError(f"{path}: layer_rope_theta differs among layers of the kind {KINDS[kind]}")
        return ModelConfig(**fields, rope_theta=theta, layer_pattern=" ".join(kinds), mixers=mixers)

    def weights(self, config: ModelConfig) -> list[Weight]:
        sinks = [
            same(f"layers.{i}.mixer.sink_logits", f"model.layers.{i}.self_attn.sinks")
            for i in range(config.num_hidden_layers)
        ]
        return common_weights(config, NORMS | ATTENTION | FFN) + sinks


class Olmo3:
    """Norms on what mixer and feed-forward give back, one norm over all query heads and one over all keys."""

    architecture, model_type = "Olmo3ForCausalLM", "olmo3"
    norms: Mapping[str, str] = {
        "mixer_norm": "post_attention_layernorm",
        "ffn_norm": "post_feedforward_layernorm",
    }

    def refuses(self, config: ModelConfig) -> str | None:
        if reason := _plain(config, {"full", "window"}):
            return reason
        if not config.qk_norm or config.qk_norm_width != "full" or config.norm_order != "post":
            return "model.qk_norm, qk_norm_width, norm_order: True, 'full' and 'post' are needed"
        for kind in set(config.layer_kinds):
            settings = _settings(config, kind)
            if settings.get("learned_sinks") or not settings.get("rope", True):
                return f"model.mixers.{kind}: learned_sinks and rope: false do not fit"
            if settings.get("rope_scaling", "none") not in (
                ("none", "yarn") if kind == "full" else ("none",)
            ):
                return f"model.mixers.{kind}.rope_scaling: 'none' fits, and 'yarn' on full layers"
        return None

    def to_hub(self, config: ModelConfig) -> dict[str, Any]:
        ropes = {}
        for kind, theirs in KINDS.items():
            settings = _settings(config, kind)
            rope: dict[str, Any] = {
                "rope_type": "default",
                "rope_theta": settings.get("rope_theta") or config.rope_theta,
            }
            if settings.get("rope_scaling", "none") == "yarn":
                original = settings["original_max_position_embeddings"]
                factor = config.max_position_embeddings / original
                rope |= {
                    "rope_type": "yarn",
                    "factor": factor,
                    "original_max_position_embeddings": original,
                    "attention_factor": 0.1 * math.log(factor) + 1.0,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                }
            ropes[theirs] = rope
        return {
            "layer_types": [KINDS[kind] for kind in config.layer_kinds],
            "sliding_window": _settings(config, "window").get("window", 8192),
            "rope_parameters": ropes,
            "attention_bias": False,
            "attention_dropout": 0.0,
        }

    def from_hub(self, path: Path, values: Mapping[str, Any]) -> ModelConfig:
        refuse(path, values, {"attention_bias": values.get("attention_bias")})
        fields = base_fields(values, {"head_dim": None, "max_position_embeddings": 2048}, path)
        kinds = _layer_types(path, values)
        ropes = values.get("rope_parameters") or {}
        if "rope_theta" in ropes or not ropes:
            ropes = dict.fromkeys(OURS, ropes or {"rope_theta": values.get("rope_theta", 500_000.0)})
        theta = float(ropes[KINDS[kinds[0]]]["rope_theta"])
        mixers: dict[str, dict[str, Any]] = {}
        for kind in dict.fromkeys(kinds):
            mixers[kind] = {"window": values.get("sliding_window", 4096)} if kind == "window" else {}
            rope = ropes[KINDS[kind]]
            if float(rope["rope_theta"]) != theta:
                mixers[kind]["rope_theta"] = float(rope["rope_theta"])
            if rope.get("rope_type", "default") != "default":
                mixers[kind] |= self._yarn(path, rope, fields["max_position_embeddings"])
        return ModelConfig(
            **fields, rope_theta=theta, qk_norm=True, qk_norm_width="full", norm_order="post",
            layer_pattern=" ".join(kinds), mixers={k: v for k, v in mixers.items() if v},
        )  # fmt: skip

    def _yarn(self, path: Path, rope: Mapping[str, Any], longest: int) -> dict[str, Any]:
        factor, original = rope.get("factor", 1.0), rope.get("original_max_position_embeddings")
        usual = 0.1 * math.log(factor) + 1.0
        fits = (
            rope["rope_type"] == "yarn"
            and original
            and math.isclose(original * factor, longest)
            and math.isclose(rope.get("attention_factor") or usual, usual, rel_tol=1e-4)
            and (rope.get("beta_fast") or 32, rope.get("beta_slow") or 1) == (32, 1)
        )
        if not fits:
            raise UserError(
                f"{path}: rope_parameters {dict(rope)!r}; 'yarn' from original_max_position_embeddings to "
                "max_position_embeddings with beta 32 and 1 is accepted"
            )
        return {"rope_scaling": "yarn", "original_max_position_embeddings": original}

    def weights(self, config: ModelConfig) -> list[Weight]:
        return common_weights(config, dict(self.norms) | ATTENTION | HEAD_NORMS | FFN)
