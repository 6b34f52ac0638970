"""Mixtures of experts: `Qwen3MoeForCausalLM` (norm on each head, dense layers among the others), `OlmoeForCausalLM`
(one norm over all heads) and `MixtralForCausalLM` (no norm on heads)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ikirere.model.config import ModelConfig
from ikirere.model.hub.dense import ATTENTION, FFN, HEAD_NORMS, NORMS
from ikirere.model.hub.formats import (
    Weight,
    base_fields,
    common_weights,
    plain_rope_theta,
    refuse,
    same,
    stacked,
)

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def _moe(config: ModelConfig) -> Mapping[str, Any]:
    return config.ffns.get("moe", {})


class Qwen3Moe:
    """Experts of a size of their own; `mlp_only_layers` are dense."""

    architecture, model_type = "Qwen3MoeForCausalLM", "qwen3_moe"
    qk_norm, width, dense_layers = True, "head", True
    block, names = "mlp", dict(zip(PROJECTIONS, PROJECTIONS))
    defaults: Mapping[str, Any] = {"head_dim": None, "max_position_embeddings": 32768}
    always_normalised: bool | None = None

    def refuses(self, config: ModelConfig) -> str | None:
        settings = _moe(config)
        if set(config.layer_kinds) != {"full"} or config.mixers.get("full"):
            return f"model.layer_pattern {config.layer_pattern!r}: only plain 'full' layers fit"
        if "moe" not in config.ffn_kinds or (not self.dense_layers and set(config.ffn_kinds) != {"moe"}):
            return f"model.ffn_pattern {config.ffn_pattern!r}: {'moe' if not self.dense_layers else 'some moe'} is needed"
        if config.norm_order != "pre" or config.qk_norm != self.qk_norm or config.qk_norm_width != self.width:
            return (
                f"model.norm_order, qk_norm, qk_norm_width: 'pre', {self.qk_norm}, {self.width!r} are needed"
            )
        if settings.get("balance", "aux") == "bias":
            return "model.ffns.moe.balance: the class cannot hold a selection bias; 'aux' or 'none' is needed"
        if self.always_normalised and not settings.get("normalise_top_k", settings.get("top_k", 2) > 1):
            return "model.ffns.moe.normalise_top_k: true is needed"
        size = settings.get("expert_size") or config.intermediate_size
        if not self.dense_layers and size != config.intermediate_size:
            return f"model.ffns.moe.expert_size {size}: model.intermediate_size {config.intermediate_size} is needed"
        return None

    def to_hub(self, config: ModelConfig) -> dict[str, Any]:
        settings = _moe(config)
        top_k, experts = settings.get("top_k", 2), settings.get("num_experts", 8)
        dense = [i for i, kind in enumerate(config.ffn_kinds) if kind == "dense"]
        return {
            "rope_theta": config.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "attention_bias": False,
            "attention_dropout": 0.0,
            "num_experts": experts,
            "num_local_experts": experts,
            "num_experts_per_tok": top_k,
            "norm_topk_prob": settings.get("normalise_top_k", top_k > 1),
            "router_aux_loss_coef": settings.get("aux_weight", 0.01),
            "output_router_logits": False,
            **(
                {
                    "moe_intermediate_size": settings.get("expert_size") or config.intermediate_size,
                    "mlp_only_layers": dense,
                    "decoder_sparse_step": 1,
                    "use_sliding_window": False,
                    "sliding_window": None,
                }
                if self.dense_layers
                else {}
            ),
        }

    def from_hub(self, path: Path, values: Mapping[str, Any]) -> ModelConfig:
        refuse(
            path,
            values,
            {
                "attention_bias": values.get("attention_bias"),
                "use_sliding_window": values.get("use_sliding_window"),
                "sliding_window": not self.dense_layers and values.get("sliding_window"),
                "clip_qkv": values.get("clip_qkv"),
                "decoder_sparse_step": values.get("decoder_sparse_step", 1) != 1,
                "hidden_act": values.get("hidden_act", "silu") not in ("silu", "swish"),
            },
        )
        fields = base_fields(values, self.defaults, path)
        top_k = values.get("num_experts_per_tok", 2)
        settings: dict[str, Any] = {
            "num_experts": values.get("num_local_experts") or values.get("num_experts"),
            "top_k": top_k,
            "normalise_top_k": self.always_normalised or bool(values.get("norm_topk_prob", False)),
            "aux_weight": values.get("router_aux_loss_coef", 0.01),
        }
        dense = set(values.get("mlp_only_layers") or [])
        if self.dense_layers:
            settings["expert_size"] = values["moe_intermediate_size"]
        pattern = " ".join("dense" if i in dense else "moe" for i in range(fields["num_hidden_layers"]))
        return ModelConfig(
            **fields, rope_theta=plain_rope_theta(path, values), qk_norm=self.qk_norm, qk_norm_width=self.width,
            ffn_pattern=pattern, ffns={"moe": settings},
        )  # fmt: skip

    def weights(self, config: ModelConfig) -> list[Weight]:
        found = common_weights(config, NORMS | ATTENTION | (HEAD_NORMS if self.qk_norm else {}))
        experts = range(_moe(config).get("num_experts", 8))
        for i, kind in enumerate(config.ffn_kinds):
            prefix = f"model.layers.{i}.{self.block}"
            if kind == "dense":
                found += [
                    same(f"layers.{i}.{o}.weight", f"model.layers.{i}.{t}.weight") for o, t in FFN.items()
                ]
                continue
            found.append(same(f"layers.{i}.ffn.router.weight", f"{prefix}.gate.weight"))
            for ours, theirs in self.names.items():
                names = [f"{prefix}.experts.{e}.{theirs}.weight" for e in experts]
                found.append(stacked(f"layers.{i}.ffn.{ours}.weight", names))
        return found


class Olmoe(Qwen3Moe):
    """Experts of the model's own size, in every layer."""

    architecture, model_type = "OlmoeForCausalLM", "olmoe"
    qk_norm, width, dense_layers = True, "full", False
    defaults: Mapping[str, Any] = {"head_dim": None, "max_position_embeddings": 4096}


class Mixtral(Qwen3Moe):
    """The chosen probabilities always sum to one."""

    architecture, model_type = "MixtralForCausalLM", "mixtral"
    qk_norm, width, dense_layers = False, "head", False
    block, names = "block_sparse_moe", dict(zip(PROJECTIONS, ("w1", "w3", "w2")))
    defaults: Mapping[str, Any] = {"head_dim": None, "max_position_embeddings": 131072}
    always_normalised = True
