"""Dense decoders with full attention: `LlamaForCausalLM`, and `Qwen3ForCausalLM` with a norm on each head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ikirere.model.config import ModelConfig
from ikirere.model.hub.formats import Weight, base_fields, common_weights, plain_rope_theta, refuse

NORMS = {"mixer_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
ATTENTION = {f"mixer.{n}": f"self_attn.{n}" for n in ("q_proj", "k_proj", "v_proj", "o_proj")}
HEAD_NORMS = {f"mixer.{n}": f"self_attn.{n}" for n in ("q_norm", "k_norm")}
FFN = {f"ffn.{n}": f"mlp.{n}" for n in ("gate_proj", "up_proj", "down_proj")}


class Llama:
    """Pre-norm, RMSNorm, half-split RoPE, SwiGLU, no bias."""

    architecture, model_type = "LlamaForCausalLM", "llama"
    qk_norm = False
    defaults: Mapping[str, Any] = {
        "head_dim": None,
        "max_position_embeddings": 2048,
    }  # where config.json is silent

    def refuses(self, config: ModelConfig) -> str | None:
        if set(config.layer_kinds) != {"full"}:
            return f"model.layer_pattern {config.layer_pattern!r}: only 'full' layers fit"
        if config.mixers.get("full"):
            return f"model.mixers.full {dict(config.mixers['full'])!r}: no settings fit"
        if set(config.ffn_kinds) != {"dense"}:
            return f"model.ffn_pattern {config.ffn_pattern!r}: only 'dense' fits"
        if (config.norm_order, config.qk_norm_width) != ("pre", "head"):
            return (
                f"model.norm_order {config.norm_order!r}, qk_norm_width {config.qk_norm_width!r}: 'pre' and 'head' "
                "are needed"
            )
        if config.qk_norm != self.qk_norm:
            return f"model.qk_norm {config.qk_norm}: {self.qk_norm} is needed"
        if not config.qk_norm and config.hidden_size % config.num_attention_heads:
            return (
                f"model.hidden_size {config.hidden_size} is not divisible by num_attention_heads "
                f"{config.num_attention_heads}; change one of them or set qk_norm: true"
            )
        return None

    def to_hub(self, config: ModelConfig) -> dict[str, Any]:
        return {
            # transformers 5 reads rope_parameters, older readers rope_theta.
            "rope_theta": config.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "attention_bias": False,
            "attention_dropout": 0.0,
            **(
                {"use_sliding_window": False, "sliding_window": None} if self.qk_norm else {"mlp_bias": False}
            ),
        }

    def from_hub(self, path: Path, values: Mapping[str, Any]) -> ModelConfig:
        kinds = values.get("layer_types") or []
        refuse(
            path,
            values,
            {
                "attention_bias": values.get("attention_bias"),
                "mlp_bias": values.get("mlp_bias"),
                "use_sliding_window": values.get("use_sliding_window"),
                "quantization_config": values.get("quantization_config"),
                "layer_types": not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds),
                "partial_rotary_factor": values.get("partial_rotary_factor", 1.0) != 1.0,
                "hidden_act": values.get("hidden_act", "silu") not in ("silu", "swish"),
            },
        )
        fields = base_fields(values, self.defaults, path)
        return ModelConfig(**fields, rope_theta=plain_rope_theta(path, values), qk_norm=self.qk_norm)

    def weights(self, config: ModelConfig) -> list[Weight]:
        return common_weights(config, NORMS | ATTENTION | FFN | (HEAD_NORMS if self.qk_norm else {}))


class Qwen3(Llama):
    """The same with RMSNorm on each query and key head."""

    architecture, model_type = "Qwen3ForCausalLM", "qwen3"
    qk_norm = True
    defaults: Mapping[str, Any] = {"head_dim": 128, "max_position_embeddings": 32768}
