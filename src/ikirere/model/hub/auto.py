"""Our own classes for transformers: importing this module registers them, so that `AutoModelForCausalLM.from_pretrained`
opens a folder written by `hub.save_pretrained` for a model that no public class can hold.

    import ikirere.model.hub.auto
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generate(**tokenizer(["one", "two prompts"], padding=True, padding_side="left", return_tensors="pt"))

Without that import `trust_remote_code=True` does the same by the folder's own two lines. The package must be installed
either way: nothing of the network is copied into the folder.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    Cache,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput

from ikirere.model.build import build_model
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.layers.mixers import MIXERS
from ikirere.model.layers.rope import Rope
from ikirere.model.recursive import RecursiveModel

EXACT = {name for mixer in MIXERS.values() for name in mixer.keep_fp32}
"""Parameters that stay fp32 whatever dtype is asked for."""


class IkirereConfig(PretrainedConfig):
    """transformers' side of a `ModelConfig`, whose fields are under `ikirere`; names that transformers itself asks for
    (hidden_size, num_hidden_layers, ...) repeat them."""

    model_type = "ikirere"

    def __init__(self, ikirere: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.ikirere = ikirere or {}
        super().__init__(
            **{**{k: v for k, v in self.ikirere.items() if k not in ("mixers", "ffns")}, **kwargs}
        )

    @property
    def shape(self) -> ModelConfig:
        """Raises UserError naming the key of a shape that cannot be."""
        return ModelConfig.from_dict(self.ikirere)


class IkirereRecursiveConfig(IkirereConfig):
    """The same for a recursive model."""

    model_type = "ikirere_recursive"


class IkirereCache(Cache):
    """Our `KVCache` under transformers' interface. Beams need a second set of rows to be reordered into."""

    def __init__(self, model: Decoder, batch: int, capacity: int, reorders: bool = False) -> None:
        super().__init__(layers=[])
        rows = batch * (2 if reorders else 1)
        self.held = KVCache(model.config, rows, capacity, model.dtype, model.device)
        self.batch, self.reorders, self.columns = batch, reorders, 0
        self.rows = torch.arange(batch)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen so far, padding included."""
        return self.columns

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return self.held.capacity

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes a copy of what row beam_idx[i] was. Raises ValueError where `reorders` is False."""
        if not self.reorders:
            raise ValueError("this cache was made without rows for beams; let generate() make it")
        free = sorted(set(range(2 * self.batch)) - set(self.rows.tolist()))
        for target, source in zip(free, self.rows[beam_idx.cpu()].tolist(), strict=True):
            self.held.copy(source, target)
        self.rows = torch.tensor(free)


class IkirereModel(PreTrainedModel):
    """What both classes share: the network of the configuration, built here and filled by transformers."""

    config: IkirereConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    _keep_in_fp32_modules_strict = EXACT

    def __init__(self, config: IkirereConfig) -> None:
        super().__init__(config)
        self.model = build_model(config.shape)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # Weights come from the folder; only tables that are never saved are rebuilt.
        if isinstance(module, Rope):
            module.fill()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens


class IkirereForCausalLM(IkirereModel, GenerationMixin):
    """A `Decoder` as transformers sees one. Rows may be padded on either side; attention_mask marks it."""

    config_class = IkirereConfig
    model: Decoder
    _is_stateful = True  # recurrent states cannot be cut back, so drafts cannot be taken back

    def get_output_embeddings(self) -> nn.Module | None:
        return self.model.lm_head

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> bool:
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            beams = generation_config.num_beams or 1
            rows = batch_size * max(beams, generation_config.num_return_sequences or 1)
            model_kwargs["past_key_values"] = IkirereCache(
                self.model, rows, max_cache_length + 1, reorders=beams > 1
            )
        return True

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: IkirereCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids, labels LongTensor [B, T]; attention_mask [B, T] or, with a cache, [B, all columns], 0 on padding.

        position_ids that start at 0 again within a row part it into documents that do not see each other; otherwise
        they follow from the mask and are not read. Logits [B, T or logits_to_keep, V]. Raises ValueError for
        inputs_embeds, which the network does not take.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("IkirereForCausalLM takes input_ids, not inputs_embeds")
        batch, length = input_ids.shape
        if use_cache and past_key_values is None and not self.training:
            past_key_values = IkirereCache(self.model, batch, self.config.shape.max_position_embeddings)
        real = None if attention_mask is None else attention_mask[:, -length:].bool()
        if real is not None and bool(real.all()):
            real = None
        order = counts = None
        tokens = input_ids
        if real is not None:
            order = torch.argsort((~real).to(torch.uint8), dim=1, stable=True)
            tokens, counts = input_ids.gather(1, order), real.sum(1)
        if past_key_values is not None:
            hidden = self.model.hidden(
                tokens, cache=past_key_values.held, rows=past_key_values.rows, counts=counts
            )
            past_key_values.columns += length
        else:
            documents = None if real is not None else _documents(position_ids)
            hidden = self.model.hidden(tokens, document_ids=documents)
        if order is not None:
            hidden = torch.zeros_like(hidden).scatter(1, order.unsqueeze(-1).expand_as(hidden), hidden)
        kept = hidden[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else hidden[:, logits_to_keep]
        logits = F.linear(kept, self.model.output_weight)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)


class IkirereForMaskedLM(IkirereModel):
    """A `RecursiveModel` as transformers sees one: it fills blanks, all at once, each position seeing the whole row. For
    inference; training it is `train.recursion`'s business."""

    config_class = IkirereRecursiveConfig
    model: RecursiveModel

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        steps: int | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput:
        """input_ids LongTensor [B, T] with the positions to fill blanked; attention_mask [B, T], 0 on padding on the right;
        steps: supervision steps, by default all of the configuration's. Logits [B, T, V]."""
        documents = None if attention_mask is None else attention_mask.long() - 1
        return MaskedLMOutput(logits=self.model(input_ids, documents, steps=steps).logits)


def _documents(position_ids: Tensor | None) -> Tensor | None:
    """Which document of its row each position is in, where positions start again within a row; else None."""
    if position_ids is None or not bool((position_ids[:, 1:] == 0).any()):
        return None
    return (position_ids == 0).cumsum(1)


for _config, _model in (
    (IkirereConfig, IkirereForCausalLM),
    (IkirereRecursiveConfig, IkirereForMaskedLM),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)
AutoModelForMaskedLM.register(IkirereRecursiveConfig, IkirereForMaskedLM, exist_ok=True)
