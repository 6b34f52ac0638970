"""Kimi Delta Attention with latent attention, dense: `KimiLinearForCausalLM` (arXiv 2510.26692).

transformers builds the class at any widths; what it needs is refused or written here. vLLM's class also needs
q_lora_rank to be absent, and takes rms_norm_eps for the latent norm, where transformers and `mla` take 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.hub.dense import NORMS
from ikirere.model.hub.formats import Weight, base_fields, refuse, reshaped, same
from ikirere.model.layers.kda import kda_sizes
from ikirere.model.layers.mla import mla_sizes

KINDS = {"kda": "linear_attention", "mla": "full_attention"}
OURS = {theirs: ours for ours, theirs in KINDS.items()}
PARTS = {
    "kda": {
        **{
            f"{n}.weight": f"{n}.weight" for n in ("q_proj", "k_proj", "v_proj", "b_proj", "o_proj", "o_norm")
        },
        **{f"{n}.weight": f"{n}.weight" for n in ("f_a_proj", "f_b_proj", "g_a_proj", "g_b_proj")},
        "dt_bias": "dt_bias",
    },
    "mla": {
        "kv_a_proj.weight": "kv_a_proj_with_mqa.weight",
        "kv_a_norm.weight": "kv_a_layernorm.weight",
        "kv_b_proj.weight": "kv_b_proj.weight",
        "o_proj.weight": "o_proj.weight",
    },
}
QUERIES = {"q_proj.weight": "q_proj.weight"}
LOW_RANK_QUERIES = {
    "q_a_proj.weight": "q_a_proj.weight",
    "q_a_norm.weight": "q_a_layernorm.weight",
    "q_b_proj.weight": "q_b_proj.weight",
}
FFN = ("gate_proj", "up_proj", "down_proj")


class KimiLinear:
    """KDA and latent attention in any order, pre-norm, dense feed-forward, untied head."""

    architecture, model_type = "KimiLinearForCausalLM", "kimi_linear"

    def refuses(self, config: ModelConfig) -> str | None:
        kinds = set(config.layer_kinds)
        if not kinds <= set(KINDS) or "mla" not in kinds:
            return f"model.layer_pattern {config.layer_pattern!r}: 'kda' and 'mla' layers fit, one 'mla' at least"
        if set(config.ffn_kinds) != {"dense"}:
            return f"model.ffn_pattern {config.ffn_pattern!r}: only 'dense' fits"
        if config.norm_order != "pre" or config.qk_norm:
            return f"model.norm_order {config.norm_order!r}, qk_norm {config.qk_norm}: 'pre' and False are needed"
        if config.tie_word_embeddings:
            return "model.tie_word_embeddings true: the class has a head of its own, so false is needed"
        if config.num_key_value_heads != config.num_attention_heads:
            return (
                f"model.num_key_value_heads {config.num_key_value_heads}: num_attention_heads "
                f"{config.num_attention_heads} is needed"
            )
        k = kda_sizes(config, config.mixers.get("kda", {}))
        if "kda" in kinds and k.gate_rank != k.head_dim:
            return f"model.mixers.kda.gate_rank {k.gate_rank}: its head_dim {k.head_dim} is needed"
        return None

    def to_hub(self, config: ModelConfig) -> dict[str, Any]:
        k = kda_sizes(config, config.mixers.get("kda", {}))
        m = mla_sizes(config, config.mixers.get("mla", {}))
        kinds = config.layer_kinds
        return {
            "model_max_length": config.max_position_embeddings,
            "layer_types": [KINDS[kind] for kind in kinds],
            "linear_attn_config": {
                "head_dim": k.head_dim,
                "num_heads": k.heads,
                "short_conv_kernel_size": k.conv_size,
                # These count from 1.
                "kda_layers": [i for i, kind in enumerate(kinds, 1) if kind == "kda"],
                "full_attn_layers": [i for i, kind in enumerate(kinds, 1) if kind == "mla"],
            },
            "mla_use_nope": True,
            "kv_lora_rank": m.rank,
            "q_lora_rank": m.query_rank or None,
            "qk_nope_head_dim": m.nope,
            "qk_rope_head_dim": m.shared,
            "v_head_dim": m.value,
            "rope_theta": config.rope_theta,
            "rope_scaling": None,
            "num_experts": None,
            "first_k_dense_replace": config.num_hidden_layers,
            "mlp_layer_types": ["dense"] * config.num_hidden_layers,
            "attention_bias": False,
            "attention_dropout": 0.0,
        }

    def from_hub(self, path: Path, values: Mapping[str, Any]) -> ModelConfig:
        depth = values.get("num_hidden_layers") or 0
        linear = values.get("linear_attn_config") or {}
        if not isinstance(linear, dict):
            raise UserError(f"{path}: linear_attn_config {linear!r}; a mapping is needed")
        refuse(
            path,
            values,
            {
                "attention_bias": values.get("attention_bias"),
                "mla_use_nope": values.get("mla_use_nope") is False,
                "quantization_config": values.get("quantization_config"),
                "hidden_act": values.get("hidden_act", "silu") not in ("silu", "swish"),
                "num_experts": values.get("num_experts", 256) and not _dense(values, depth),
                "num_key_value_heads": values.get("num_key_value_heads", values.get("num_attention_heads"))
                not in (None, values.get("num_attention_heads")),
                "tie_word_embeddings": values.get("tie_word_embeddings", False),
            },
        )
        longest = values.get("model_max_length") or values.get("max_position_embeddings") or 1_048_576
        fields = base_fields({**values, "max_position_embeddings": longest}, {}, path)
        fields["rms_norm_eps"] = values.get("rms_norm_eps", 1e-5)
        # No layer of these reads it, and theirs may be odd, which rotary positions would not bear.
        fields["head_dim"] += fields["head_dim"] % 2
        kinds = _kinds(path, values, linear, depth)
        mla = {
            key: values.get(key, default)
            for key, default in (
                ("kv_lora_rank", 512),
                ("q_lora_rank", None),
                ("qk_nope_head_dim", 128),
                ("qk_rope_head_dim", 64),
                ("v_head_dim", 128),
            )
        }
        kda = {
            "head_dim": linear.get("head_dim", values.get("linear_head_dim", 128)),
            "num_heads": linear.get("num_heads", values.get("linear_num_heads", 32)),
            "conv_size": linear.get("short_conv_kernel_size", values.get("linear_conv_kernel_dim", 4)),
        }
        mixers = {"kda": kda, "mla": {key: value for key, value in mla.items() if value is not None}}
        return ModelConfig(
            **fields,
            rope_theta=values.get("rope_theta") or 10_000.0,
            layer_pattern=_pattern(kinds),
            mixers={kind: mixers[kind] for kind in dict.fromkeys(kinds)},
        )

    def weights(self, config: ModelConfig) -> list[Weight]:
        k = kda_sizes(config, config.mixers.get("kda", {}))
        width = k.heads * k.head_dim
        query_rank = mla_sizes(config, config.mixers.get("mla", {})).query_rank
        latent = PARTS["mla"] | (LOW_RANK_QUERIES if query_rank else QUERIES)
        found = [
            same(f"{name}.weight", f"{theirs}.weight")
            for name, theirs in (
                ("embed_tokens", "model.embed_tokens"),
                ("norm", "model.norm"),
                ("lm_head", "lm_head"),
            )
        ]
        for i, kind in enumerate(config.layer_kinds):
            ours, theirs = f"layers.{i}", f"model.layers.{i}"
            found += [same(f"{ours}.{a}.weight", f"{theirs}.{b}.weight") for a, b in NORMS.items()]
            for name in FFN:
                # Under the second name transformers writes every feed-forward network, dense ones too.
                spare = (f"{theirs}.block_sparse_moe.{name}.weight",)
                found.append(same(f"{ours}.ffn.{name}.weight", f"{theirs}.mlp.{name}.weight", spare))
            parts = latent if kind == "mla" else PARTS["kda"]
            found += [same(f"{ours}.mixer.{a}", f"{theirs}.self_attn.{b}") for a, b in parts.items()]
            if kind == "kda":
                found.append(
                    reshaped(
                        f"{ours}.mixer.A_log", f"{theirs}.self_attn.A_log", (1, 1, k.heads, 1), (k.heads,)
                    )
                )
                found += [
                    reshaped(
                        f"{ours}.mixer.{n}_conv.weight",
                        f"{theirs}.self_attn.{n}_conv1d.weight",
                        (width, 1, k.conv_size),
                        (width * k.conv_size,),
                    )
                    for n in ("q", "k", "v")
                ]
        return found


def _dense(values: Mapping[str, Any], depth: int) -> bool:
    """Whether no layer has experts."""
    kinds = values.get("mlp_layer_types")
    if kinds is not None:
        return set(kinds) == {"dense"}
    return bool(values.get("first_k_dense_replace", 1) >= depth)


def _kinds(path: Path, values: Mapping[str, Any], linear: Mapping[str, Any], depth: int) -> list[str]:
    """Our mixer of each layer, by layer_types, else by linear_attn_config, whose lists count from 1."""
    kinds = values.get("layer_types")
    if kinds is None:
        delta, full = (set(linear.get(key) or ()) for key in ("kda_layers", "full_attn_layers"))
        if delta & full or delta | full != set(range(1, depth + 1)):
            raise UserError(
                f"{path}: linear_attn_config must name each of the {depth} layers in kda_layers or full_attn_layers"
            )
        return ["kda" if i in delta else "mla" for i in range(1, depth + 1)]
    if not isinstance(kinds, list) or not set(kinds) <= set(OURS) or len(kinds) != depth:
        raise UserError(f"{path}: layer_types {kinds!r}; one of {', '.join(OURS)} is needed for each layer")
    return [OURS[kind] for kind in kinds]


def _pattern(kinds: list[str]) -> str:
    """The shortest pattern: kda kda kda mla kda kda kda mla -> kda*3 mla."""
    size = next(n for n in range(1, len(kinds) + 1) if all(k == kinds[i % n] for i, k in enumerate(kinds)))
    runs = ((kind, len(list(group))) for kind, group in groupby(kinds[:size]))
    return " ".join(kind if count == 1 else f"{kind}*{count}" for kind, count in runs)
