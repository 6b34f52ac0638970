"""The Tiny Recursive Model: one small core applied again and again to an answer and a latent state
(Jolicoeur-Martineau 2025, arXiv 2510.04871, sections 4 and 4.1 to 4.7)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.layers.ffns import ffns_of
from ikirere.model.layers.mixer import ForwardContext, Linear, settings_of
from ikirere.model.layers.mixers import mixers_of
from ikirere.model.layers.mlp import PositionMlp
from ikirere.model.layers.rope import Rope
from ikirere.model.network import Network
from ikirere.recipe import mixers as recipe

HALT_BIAS = -5.0  # of the halting head: at the start nothing halts


class RecursiveOutput(NamedTuple):
    """What a recursive model gives for B rows: logits [B, T, vocab_size] and the halting head's q [B], fp32, above 0
    where it takes its answer to be right. With all steps both have them as a first axis."""

    logits: Tensor
    q: Tensor


class CoreBlock(nn.Module):
    """rms(x + mixer(x)), then rms(x + ffn(x)), norms without weights. x [B, P, hidden_size] -> the same shape."""

    def __init__(self, config: ModelConfig, layer: int, both_ways: bool) -> None:
        super().__init__()
        kind, ffn_kind = config.layer_kinds[layer], config.ffn_kinds[layer]
        self.eps = config.rms_norm_eps
        self.mixer = mixers_of(config)[layer](config, config.mixers.get(kind, {}))
        self.ffn = ffns_of(config)[layer](config, config.ffns.get(ffn_kind, {}))
        self.both_ways = both_ways and recipe.MIXERS[kind].one_direction
        # As published, the network over positions is followed by a norm over positions.
        self.axis = 1 if isinstance(self.mixer, PositionMlp) else 2

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        x = x + (self._forward_and_reversed(x, context) if self.both_ways else self.mixer(x, context))
        x = rms(x, self.eps) if self.axis == 2 else rms(x.mT, self.eps).mT
        return rms(x + self.ffn(x, context), self.eps)

    def _forward_and_reversed(self, x: Tensor, context: ForwardContext) -> Tensor:
        """The mean of the mixer's outputs over x and over x reversed in time, the latter reversed back. A mean keeps
        the size that one direction has, so the norm after it weighs x and its update as in a causal core.

        Padding, at the row's end, comes first in reverse. It is a document of its own there (id -1), and a mixer
        starts from an empty state with each document.
        """
        ids = context.document_ids
        doubled = None if ids is None else torch.cat((ids, ids.flip(1)))
        y = self.mixer(
            torch.cat((x, x.flip(1))),
            ForwardContext(context.positions, context.rope_tables, doubled, None, causal=True),
        )
        ahead, back = y.chunk(2)
        return (ahead + back.flip(1)) * 0.5


class RecursiveModel(Network):
    """An embedding, a core of post-norm blocks that sees both ways, a head, and a head that decides when to halt.

    The row is `puzzle_tokens` positions in front (zeros; with `puzzles` the first is the puzzle's own vector) and T
    tokens. A supervision step is T cycles of { n times z <- core(z + y + x); y <- core(y + z) }, the last one with
    gradient, from states y0, z0 that are drawn once and not trained. Logits are read from y, q from its first position.
    Built with weights drawn from seed 0; on the meta device nothing is allocated: call `to_empty(device=...)`, then
    `reset_parameters`.
    Raises UserError for another family, mixers that cannot see both ways, experts, and settings that cannot be.
    """

    y0: Tensor
    z0: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.family != "recursive":
            raise UserError(f"model.family {config.family!r} is not recursive; accepted is recursive")
        if unknown := sorted(set(config.ffn_kinds) - {"dense"}):
            raise UserError(f"model.ffn_pattern: {unknown[0]!r} in a recursive core; accepted is dense")
        self.config, self.settings = config, recursion_settings(config)
        size, self.front = config.hidden_size, self.settings.puzzle_tokens
        self.embed_tokens = _table(config.vocab_size, size)
        self.embed_puzzles = _table(self.settings.puzzles, size) if self.settings.puzzles else None
        both = self.settings.bidirectional
        self.layers = nn.ModuleList(CoreBlock(config, i, both) for i in range(config.num_hidden_layers))
        self.lm_head = None if config.tie_word_embeddings else Linear(size, config.vocab_size)
        self.halt_head = skip_init(nn.Linear, size, 1, device=self.embed_tokens.weight.device)
        for name in ("y0", "z0"):
            self.register_buffer(name, torch.empty(size))
        specs = [
            m.rope(config, config.mixers.get(k, {})) for m, k in zip(mixers_of(config), config.layer_kinds)
        ]
        kinds = list(dict.fromkeys(spec for spec in specs if spec is not None))
        positions = config.max_position_embeddings + self.front
        self.ropes = nn.ModuleList(Rope(s, positions, config.rope_theta) for s in kinds)
        for block, spec in zip(self.blocks(), specs):
            block.mixer.rope_index = kinds.index(spec) if spec is not None else 0
        if not self.embed_tokens.weight.is_meta:
            self.reset_parameters(torch.Generator().manual_seed(0))

    def blocks(self) -> Iterator[CoreBlock]:
        """The core's layers in order, typed."""
        return (cast(CoreBlock, layer) for layer in self.layers)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws all weights as published: LeCun's normal(0, 1 / fan-in), truncated at two deviations and widened to
        keep the variance; tables with variance 1 / hidden_size, puzzle vectors 0, start states with variance 1, the
        halting head's weight 0 and its bias -5.

        The same generator state gives the same weights whatever device they are on: numbers are drawn in fp32 on the
        generator's device, in the order of `named_parameters`, then start states, and then copied.
        """
        for parameter in self.parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0)
            else:
                _truncated(parameter, parameter.shape[-1] ** -0.5, generator)
        for block in self.blocks():
            block.mixer.init_weights(generator)
            block.ffn.init_weights(generator)
        for state in (self.y0, self.z0):
            _truncated(state, 1.0, generator)
        if self.embed_puzzles is not None:
            self.embed_puzzles.weight.zero_()
        self.halt_head.weight.zero_()
        self.halt_head.bias.fill_(HALT_BIAS)

    # ------------------------------------------------------------ the parts of a step

    def embed(self, tokens: Tensor, puzzles: Tensor | None = None) -> Tensor:
        """x = sqrt(hidden_size) * embedding, [B, puzzle_tokens + T, hidden_size]. tokens: LongTensor [B, T].
        puzzles: LongTensor [B], rows of the puzzle table; without them the positions in front are zeros."""
        x = self.embed_tokens(tokens)
        front = x.new_zeros(len(x), self.front, x.shape[-1])
        if puzzles is not None:
            if self.embed_puzzles is None:
                raise UserError("model.mixers.recursive.puzzles is 0: there is no table of puzzle embeddings")
            own = self.embed_puzzles(puzzles).unsqueeze(1).to(x.dtype)
            front = torch.cat((own, front[:, 1:]), dim=1)
        return torch.cat((front, x), dim=1) * math.sqrt(self.config.hidden_size)

    def context(self, tokens: Tensor, document_ids: Tensor | None = None) -> ForwardContext:
        """What all calls of the core share. document_ids: LongTensor [B, T], -1 on padding, which nothing looks at.

        The positions in front belong to the row's first document. Raises UserError for rows beyond
        max_position_embeddings."""
        batch, length = tokens.shape
        if length > self.config.max_position_embeddings:
            raise UserError(
                f"a sequence of {length} tokens; model.max_position_embeddings allows "
                f"{self.config.max_position_embeddings}"
            )
        positions = torch.arange(self.front + length, device=tokens.device).expand(batch, -1)
        rope_tables = tuple(rope(positions) for rope in self.ropes)
        if document_ids is None:
            return ForwardContext(positions, rope_tables, None, None, causal=False)
        ids = torch.cat((document_ids[:, :1].expand(-1, self.front), document_ids), dim=1)
        # Padding looks at padding: a position that may look at nothing would be 0 / 0.
        mask = (ids[:, :, None] == ids[:, None, :])[:, None]
        return ForwardContext(positions, rope_tables, ids, mask, causal=False)

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and z before the first step, [B, P, hidden_size] each, of the shape of x."""
        return self.y0.to(x.dtype).expand_as(x), self.z0.to(x.dtype).expand_as(x)

    def core(self, x: Tensor, context: ForwardContext) -> Tensor:
        """One call of the network, [B, P, hidden_size] -> the same shape. Mixers with a state start from an empty one."""
        for block in self.layers:
            x = block(x, context)
        return x

    def cycle(self, x: Tensor, y: Tensor, z: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        """n times z <- core(z + y + x), then y <- core(y + z)."""
        for _ in range(self.settings.inner_updates):
            z = self.core(z + y + x, context)
        return self.core(y + z, context), z

    def step(self, x: Tensor, y: Tensor, z: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        """One supervision step: all cycles, of which the last may have a gradient. Returns the new y and z."""
        with torch.no_grad():
            for _ in range(self.settings.cycles - 1):
                y, z = self.cycle(x, y, z, context)
        return self.cycle(x, y, z, context)

    def logits(self, y: Tensor) -> Tensor:
        """[B, P, hidden_size] -> [B, T, vocab_size] in the weights' dtype (autocast's where it is on)."""
        return F.linear(y[:, self.front :], self.output_weight)

    def halting(self, y: Tensor) -> Tensor:
        """q of each row, fp32 [B] (fp64 where that is given), from the first position of y [B, P, hidden_size]."""
        q = self.halt_head(y[:, 0]).squeeze(-1)
        return q if q.dtype == torch.float64 else q.float()

    @torch.no_grad()
    def forward(
        self,
        tokens: Tensor,
        document_ids: Tensor | None = None,
        puzzles: Tensor | None = None,
        steps: int | None = None,
        all_steps: bool = False,
    ) -> RecursiveOutput:
        """The answer after `steps` supervision steps (default: all of the configuration's), without gradient.

        tokens, document_ids: LongTensor [B, T]; puzzles: LongTensor [B]. all_steps: logits [steps, B, T, vocab_size]
        and q [steps, B] of every step instead of the last one's.
        """
        context = self.context(tokens, document_ids)
        x = self.embed(tokens, puzzles)
        y, z = self.start(x)
        found: list[RecursiveOutput] = []
        steps = self.settings.supervision_steps if steps is None else steps
        for done in range(steps):
            y, z = self.step(x, y, z, context)
            if all_steps or done + 1 == steps:
                found.append(RecursiveOutput(self.logits(y), self.halting(y)))
        return RecursiveOutput(*(torch.stack(part) for part in zip(*found))) if all_steps else found[-1]


def rms(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, in fp32 (fp64 where that is given), returned in x's dtype."""
    if x.dtype in (torch.float32, torch.float64):
        return F.rms_norm(x, x.shape[-1:], None, eps)
    return F.rms_norm(x.float(), x.shape[-1:], None, eps).to(x.dtype)


def recursion_settings(config: ModelConfig) -> recipe.Recursive:
    """`model.mixers.recursive` with its defaults. Raises UserError naming the key of a setting that cannot be."""
    return settings_of(recipe.Recursive, "recursive", config.mixers.get("recursive", {}))


def _table(rows: int, size: int) -> nn.Embedding:
    return nn.Embedding(rows, size, _weight=torch.empty(rows, size))


def _truncated(target: Tensor, std: float, generator: torch.Generator) -> None:
    """Fills with a normal that is cut off at two deviations and has the standard deviation `std` all the same."""
    edge = math.erf(2 / math.sqrt(2))
    density = math.exp(-2.0) / math.sqrt(2 * math.pi)
    narrowed = math.sqrt(1 - 4 * density / edge)  # deviation of a unit normal within [-2, 2]
    drawn = torch.empty(target.shape, dtype=torch.float32, device=generator.device)
    drawn.uniform_(-edge, edge, generator=generator).erfinv_().mul_(math.sqrt(2) * std / narrowed)
    target.copy_(drawn)
