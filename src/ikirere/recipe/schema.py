"""The recipe: WHAT a programme is, as one typed tree.

`Recipe` is what `recipe.load.load_recipe` returns. Shapes that cannot exist are refused here, each
with the key's path; doubtful ones are the planner's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

from pydantic import Field, model_validator

from ikirere.recipe import ffns as _ffns
from ikirere.recipe import mixers as _mixers
from ikirere.recipe.section import KeyErrors
from ikirere.recipe.sections import (
    Data,
    Dpo,
    Evaluate,
    Gate,
    Hardware,
    Positive,
    Pretrain,
    Section,
    Serve,
    Sft,
    Stated,
    Tokenizer,
    Tracker,
)


class Model(Section):
    """Shape of the network. Names are those of Hugging Face configurations."""

    family: Literal["decoder", "recursive"] = "decoder"
    vocab_size: Positive
    hidden_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: Positive | None = Field(default=None, description="default: hidden_size / num_attention_heads")
    intermediate_size: Positive
    max_position_embeddings: Positive
    rope_theta: float = Field(default=10_000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    qk_norm: bool = Field(default=False, description="RMSNorm on each query and key head (Qwen3)")
    qk_norm_width: Literal["head", "full"] = Field(
        default="head", description="full: one norm over all heads together (OLMo)"
    )
    norm_order: Literal["pre", "post"] = Field(
        default="pre", description="post: norms on what mixer and feed-forward give back (OLMo)"
    )
    tie_word_embeddings: bool = True
    initializer_range: float = Field(default=0.02, gt=0)
    layer_pattern: str = Field(
        default="full", description="mixers repeated to depth, e.g. 'full' or 'kda*3 full'"
    )
    mixers: dict[str, dict[str, Any]] = Field(default={}, description="settings of each mixer of the pattern")
    ffn_pattern: str = Field(
        default="dense", description="feed-forward kinds repeated to depth, e.g. 'dense' or 'dense moe'"
    )
    ffns: dict[str, dict[str, Any]] = Field(default={}, description="settings of each feed-forward kind")

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def layers(self) -> tuple[str, ...]:
        """The mixer of each layer."""
        return self.run_as(self.layer_pattern)

    @property
    def ffn_kinds(self) -> tuple[str, ...]:
        """The feed-forward kind of each layer."""
        return _ffns.layers(self.ffn_pattern, self.num_hidden_layers)

    def run_as(self, pattern: str) -> tuple[str, ...]:
        """The mixer of each layer under another pattern. Raises ValueError."""
        return _mixers.layers(pattern, self.num_hidden_layers, self.family)

    def ffn(self, name: str) -> _ffns.FeedForwardSection:
        """Settings of a feed-forward kind, defaults where the recipe gives none."""
        return _ffns.settings(name, self.ffns.get(name, {}))

    def mixer(self, name: str) -> _mixers.MixerSection:
        """Settings of a mixer, defaults where the recipe gives none."""
        return _mixers.settings(name, self.mixers.get(name, {}))

    @model_validator(mode="after")
    def _shape(self) -> Model:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}; give head_dim or change one of them"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not divisible by num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"head_dim {self.head_size} is odd; RoPE rotates pairs")
        _mixers.period(self.layer_pattern, self.family)
        _ffns.layers(self.ffn_pattern, self.num_hidden_layers)
        for name, values in self.ffns.items():
            _ffns.settings(name, values)
        _mixers.check(self.mixers, self.family)
        return self


class Recipe(Section):
    """One programme."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    seed: int = 0
    stages: tuple[str, ...] = Field(min_length=1, description="stage names in order")
    hardware: Hardware
    stated: Stated = Stated()
    tracker: Tracker = Tracker()
    data: Data
    tokenizer: Tokenizer
    model: Model
    pretrain: Pretrain
    sft: Sft | None = None
    dpo: Dpo | None = None
    evaluate: Evaluate = Evaluate()
    serve: Serve = Serve()
    planned: dict[str, dict[str, Any]] = Field(
        default={},
        description="settings of stages that have no section of their own, kept and shown as written",
    )
    gates: dict[str, tuple[Gate, ...]] = Field(default={}, description="ship gates by stage")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        found = dict(chain(self._stages(), self._phases(), self._milestones(), self._sizes()))
        if found:
            raise KeyErrors(found)
        return self

    def _stages(self) -> Iterator[tuple[str, str]]:
        if len(set(self.stages)) != len(self.stages):
            yield "stages", f"each stage once, got {', '.join(self.stages)}"
        for key in ("gates", "planned"):
            for stage in getattr(self, key):
                if stage not in self.stages:
                    yield f"{key}.{stage}", f"no such stage; stages are {', '.join(self.stages)}"
        for section in ("sft", "dpo"):
            if section in self.stages and getattr(self, section) is None:
                yield section, "the stage is listed, so this section is needed"

    def _phases(self) -> Iterator[tuple[str, str]]:
        domains = self.data.domains
        for i, phase in enumerate(self.pretrain.phases):
            key = f"pretrain.phases.{i}"
            if phase.name in [other.name for other in self.pretrain.phases[:i]]:
                yield f"{key}.name", f"{phase.name} is the name of an earlier phase; give each its own"
            if phase.attention is not None:
                try:
                    _mixers.period(phase.attention, self.model.family)
                except ValueError as error:
                    yield f"{key}.attention", str(error)
            if missing := sorted(set(phase.mixture) - domains):
                yield (
                    f"{key}.mixture",
                    f"no source gives the domain {', '.join(missing)}; domains are {', '.join(sorted(domains))}",
                )

    def _milestones(self) -> Iterator[tuple[str, str]]:
        steps: dict[str, int] = {}
        for i, milestone in enumerate(self.pretrain.milestones):
            key = f"pretrain.milestones.{i}"
            if milestone.name in steps:
                yield (
                    f"{key}.name",
                    f"{milestone.name} is the name of an earlier milestone; give each its own",
                )
            if milestone.step > self.pretrain.steps:
                yield (
                    f"{key}.step",
                    f"step {milestone.step:,} is after the last of {self.pretrain.steps:,} steps",
                )
            steps[milestone.name] = milestone.step
        for i, milestone in enumerate(self.pretrain.milestones):
            before = [name for name, step in steps.items() if step < milestone.step]
            if milestone.compare_to is not None and milestone.compare_to not in before:
                names = f"earlier ones are {', '.join(before)}" if before else "there is none"
                yield (
                    f"pretrain.milestones.{i}.compare_to",
                    f"no milestone {milestone.compare_to!r} before step {milestone.step:,}; {names}",
                )
        if (chosen := self.evaluate.compare_to) is not None and chosen not in steps:
            names = f"milestones are {', '.join(steps)}" if steps else "there is none"
            yield "evaluate.compare_to", f"no milestone {chosen!r}; {names}"

    def _sizes(self) -> Iterator[tuple[str, str]]:
        positions = self.model.max_position_embeddings
        lengths: dict[str, int | None] = {
            f"pretrain.phases.{i}.sequence_length": phase.sequence_length
            for i, phase in enumerate(self.pretrain.phases)
        }
        for name, section in (("sft", self.sft), ("dpo", self.dpo)):
            if section is not None and name in self.stages:
                lengths[f"{name}.sequence_length"] = section.sequence_length
        lengths["serve.max_model_len"] = self.serve.max_model_len
        for key, length in lengths.items():
            if length is not None and length > positions:
                yield (
                    key,
                    f"{length:,} tokens are beyond the {positions:,} of model.max_position_embeddings; "
                    "shorten the one or raise the other",
                )
        ids, rows = self.tokenizer.vocab_size, self.model.vocab_size
        if ids > rows:
            yield (
                "model.vocab_size",
                f"{rows:,} rows are fewer than the {ids:,} ids of tokenizer.vocab_size; make it at least as large",
            )
