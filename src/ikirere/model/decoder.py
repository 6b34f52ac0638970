"""The dense decoder: pre-norm blocks of a token mixer and a gated feed-forward network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ikirere.errors import UserError
from ikirere.model.cache import KVCache
from ikirere.model.config import ModelConfig
from ikirere.model.layers.ffns import ffns_of
from ikirere.model.layers.mixer import ForwardContext, Linear
from ikirere.model.layers.mixers import mixers_of
from ikirere.model.layers.moe import MixtureOfExperts
from ikirere.model.layers.norm import RMSNorm
from ikirere.model.layers.rope import Rope, RopeSpec
from ikirere.model.network import Network


class Block(nn.Module):
    """x + mixer(norm(x)), then x + ffn(norm(x)); with norms after, x + norm(mixer(x)). x [B, T, hidden_size]."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        mixer, kind = mixers_of(config)[layer], config.layer_kinds[layer]
        ffn, ffn_kind = ffns_of(config)[layer], config.ffn_kinds[layer]
        self.post = config.norm_order == "post"
        self.mixer_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mixer = mixer(config, config.mixers.get(kind, {}))
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn = ffn(config, config.ffns.get(ffn_kind, {}))

    def forward(self, x: Tensor, context: ForwardContext, state: Any = None) -> Tensor:
        if self.post:
            x = x + self.mixer_norm(self.mixer(x, context, state))
            return x + self.ffn_norm(self.ffn(x, context))
        x = x + self.mixer(self.mixer_norm(x), context, state)
        return x + self.ffn(self.ffn_norm(x), context)


class Decoder(Network):
    """A causal language model: token i sees tokens j <= i of its own document.

    Built with weights drawn from seed 0; `reset_parameters` draws others. Under `torch.device("meta")`
    nothing is allocated: call `to_empty(device=...)`, then `reset_parameters`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.family != "decoder":
            raise UserError(f"model.family {config.family!r} is not a decoder; accepted is decoder")
        self.config = config
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, _weight=torch.empty(config.vocab_size, config.hidden_size)
        )
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)
        kinds: dict[RopeSpec, None] = {}
        self._specs: list[dict[str, RopeSpec | None]] = []  # of each layer, by what it runs as
        for mixer, kind in zip(mixers_of(config), config.layer_kinds):
            given = config.mixers.get(kind, {})
            ways = {kind: mixer.rope(config, given)}
            ways |= {other: mixer.rope_as(other, config, given) for other in mixer.runs_as}
            self._specs.append(ways)
            kinds |= {spec: None for spec in ways.values() if spec is not None}
        self.ropes = nn.ModuleList(Rope(s, config.max_position_embeddings, config.rope_theta) for s in kinds)
        self.attention = config.layer_pattern  # as which it runs; the configuration keeps its own
        self.set_attention(config.layer_pattern)
        if not self.embed_tokens.weight.is_meta:
            self.reset_parameters(torch.Generator().manual_seed(0))

    def set_rope_theta(self, theta: float) -> None:
        """Changes the base of the rotary positions from now on, as context-extension phases do."""
        self.config = replace(self.config, rope_theta=theta)
        for rope in self.ropes:
            cast(Rope, rope).set_theta(theta)

    def set_attention(self, pattern: str) -> None:
        """Runs the layers as a pattern's mixers from now on, with the same weights, as phases of training ask. A cache
        is for the model's own pattern only.

        Raises UserError, and changes nothing, for a layer that cannot run so.
        """
        names = self.config.run_as(pattern)
        for layer, (name, ways) in enumerate(zip(names, self._specs)):
            if name not in ways:
                raise UserError(
                    f"model.layer_pattern {self.config.layer_pattern!r}: layer {layer} cannot run as {name!r}, as "
                    f"the attention pattern {pattern!r} asks; accepted there are {', '.join(ways)}"
                )
        self.attention = pattern
        specs = [ways[name] for name, ways in zip(names, self._specs)]
        used = list(dict.fromkeys(spec for spec in specs if spec is not None))
        for block, name, spec in zip(self.blocks(), names, specs):
            block.mixer.mode = name
            block.mixer.rope_index = used.index(spec) if spec is not None else 0
        kinds = [cast(Rope, rope).spec for rope in self.ropes]
        self._rope_indices = [kinds.index(spec) for spec in used]

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws all weights: normal(0, initializer_range), those that write into the residual stream divided by
        sqrt(2 * layers) (GPT-2, Radford et al. 2019, section 2.3), norms one.

        The same generator state gives the same weights whatever device they are on: numbers are drawn in fp32
        on the generator's device, in the order of `named_parameters`, and then copied.
        """
        small = {
            id(part.get_parameter(f"{name}.weight"))
            for block in self.blocks()
            for part in (block.mixer, block.ffn)
            for name in part.residual_projections
        }
        scale = self.config.initializer_range
        for parameter in self.parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0)
                continue
            std = scale / math.sqrt(2 * len(self.layers)) if id(parameter) in small else scale
            drawn = torch.empty(parameter.shape, dtype=torch.float32, device=generator.device)
            parameter.copy_(drawn.normal_(0.0, std, generator=generator))
        for block in self.blocks():
            block.mixer.init_weights(generator)
            block.ffn.init_weights(generator)

    @property
    def auxiliary(self) -> dict[str, Tensor]:
        """What the last forward pass in training adds to the loss, summed over layers, by name: `router_loss` of experts,
        `selection_loss` of hybrid layers."""
        found: dict[str, list[Tensor]] = {}
        for block in self.blocks():
            for part in (block.mixer, block.ffn):
                if part.auxiliary is not None:
                    found.setdefault(part.auxiliary_name, []).append(part.auxiliary)
        return {name: torch.stack(losses).sum() for name, losses in found.items()}

    def after_step(self) -> dict[str, Tensor]:
        """What experts do once per optimiser step; figures for the log: each expert's share of its layer's tokens times
        the number of experts (1 at balance) as `expert_load/<layer>/<expert>`, and the largest of all."""
        loads = {
            layer: block.ffn.experts * block.ffn.after_step()
            for layer, block in enumerate(self.blocks())
            if isinstance(block.ffn, MixtureOfExperts)
        }
        figures = {
            f"expert_load/{layer}/{i}": share for layer, load in loads.items() for i, share in enumerate(load)
        }
        return figures | ({"expert_load_max": torch.cat(list(loads.values())).max()} if loads else {})

    def blocks(self) -> Iterator[Block]:
        """The layers in order, typed."""
        return (cast(Block, layer) for layer in self.layers)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        rows: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the last norm, [B, T, hidden_size].

        tokens: LongTensor [B, T]. positions, document_ids: LongTensor [B, T]; by default each row is one document
        that starts at 0, or continues where its cache row ends.
        cache: appends T tokens to each of `rows` (LongTensor [B] of different slots; default all, in order).
        counts: LongTensor [B] with a cache: real tokens of each row; the rest is padding on the right, which
        leaves nothing in the cache and whose outputs mean nothing.
        A cache is for inference: no gradient flows through what it holds.
        Raises UserError for rows longer than max_position_embeddings, ValueError for rows and counts that the
        cache cannot take, and for a cache while `set_attention` has another pattern run.
        """
        context = self._context(tokens, positions, document_ids, cache, rows, counts)
        x = self.embed_tokens(tokens)
        if cache is None or context.step is None:
            for block in self.layers:
                x = block(x, context)
            return self.norm(x)
        for block, state in zip(self.layers, cache.layers, strict=True):
            x = block(x, context, state)
        cache.advance(context.step)
        return self.norm(x)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | None = None,
        logits_to_keep: int | slice | Tensor = 0,
        rows: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, positions, vocab_size] in the weights' dtype; arguments as in `hidden`.

        logits_to_keep: 0 for all T positions, n for the last n, a slice of positions, or a LongTensor [B] with one
        position of each row.
        """
        x = self.hidden(tokens, positions, document_ids, cache, rows, counts)
        if isinstance(logits_to_keep, Tensor):
            x = x[torch.arange(len(x), device=x.device), logits_to_keep.to(x.device)].unsqueeze(1)
        elif isinstance(logits_to_keep, slice):
            x = x[:, logits_to_keep]
        elif logits_to_keep:
            x = x[:, -logits_to_keep:]
        return F.linear(x, self.output_weight)

    def _context(
        self,
        tokens: Tensor,
        positions: Tensor | None,
        document_ids: Tensor | None,
        cache: KVCache | None,
        rows: Tensor | None,
        counts: Tensor | None,
    ) -> ForwardContext:
        batch, length = tokens.shape
        if cache is None:
            if positions is None:
                self._fits(length)
                positions = _positions(batch, length, document_ids, tokens.device)
            mask = document_mask(document_ids) if document_ids is not None and self._masked else None
            return ForwardContext(positions, self._rope_tables(positions), document_ids, mask, causal=True)
        if document_ids is not None:
            raise ValueError("a cache row holds one document; prefill documents without document_ids")
        cache.check(self.config)
        own = self.config.layer_pattern
        if self.attention != own and self.config.run_as(self.attention) != self.config.layer_kinds:
            raise ValueError(f"the model runs as {self.attention!r}; a cache is for its own pattern, {own!r}")
        step = cache.plan((batch, length), rows, counts)
        if positions is None:
            self._fits(step.end)
            positions = step.cache_positions
        rope_tables = self._rope_tables(positions)
        if step.start == 0 and step.end == length:
            return ForwardContext(positions, rope_tables, None, None, causal=True, step=step)
        if (step.start is not None and length == 1) or not self._masked:
            return ForwardContext(positions, rope_tables, None, None, causal=False, step=step)
        seen = torch.arange(step.end, device=tokens.device) <= step.cache_positions[:, :, None]
        return ForwardContext(positions, rope_tables, None, seen[:, None], causal=False, step=step)

    def _rope_tables(self, positions: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        return tuple(self.ropes[i](positions) for i in self._rope_indices)

    @property
    def _masked(self) -> bool:
        return any(block.mixer.needs_mask for block in self.blocks())

    def _fits(self, length: int) -> None:
        c = self.config
        if length > c.max_position_embeddings and not all(
            mixer.unbounded(c, c.mixers.get(kind, {})) for mixer, kind in zip(mixers_of(c), c.layer_kinds)
        ):
            raise UserError(
                f"a sequence of {length} tokens; model.max_position_embeddings allows "
                f"{self.config.max_position_embeddings}"
            )


def document_mask(document_ids: Tensor) -> Tensor:
    """Bool [B, 1, T, T], True where token i may see token j: j <= i and the same document."""
    length = document_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    return ((document_ids[:, :, None] == document_ids[:, None, :]) & causal)[:, None]


def _positions(batch: int, length: int, document_ids: Tensor | None, device: torch.device) -> Tensor:
    """Positions counted from the start of each document, LongTensor [B, T]."""
    order = torch.arange(length, device=device).expand(batch, length)
    if document_ids is None:
        return order
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return order - torch.where(begins, order, 0).cummax(dim=1).values
