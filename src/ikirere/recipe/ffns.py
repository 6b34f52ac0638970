"""Feed-forward kinds that `model.ffn_pattern` may name, one line each, with what one layer weighs, computes and keeps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ikirere.recipe import pattern as _pattern
from ikirere.recipe.section import Positive, Section, checked
from ikirere.recipe.shape import ModelShape, SmallShape

Weight = Annotated[float, Field(ge=0)]
FEED_FORWARD_COPIES = 4  # gate, up, silu(gate), their product: kept for the backward pass
# Beside it experts keep, counted with torch.autograd.graph.saved_tensors_hooks over 7 shapes (residual below 0.1): copies of
# the hidden state per chosen expert; fp32 scores per expert; order, index and weight per chosen expert.
EXPERT_COPIES, PER_EXPERT, PER_CHOICE, PER_TOKEN = 3, 2, 8, 2
EXPERTS = 8  # of a rehearsal, at most


class FeedForwardSection(Section):
    """Settings of a feed-forward below `model.ffns.NAME`. The methods count one layer of a given model."""

    @abstractmethod
    def parameters(self, model: ModelShape) -> tuple[int, int]:
        """(weights of matrices, all other weights)."""

    @abstractmethod
    def width(self, model: ModelShape) -> int:
        """Elements per token between its matrices, over all networks that a token meets."""

    def active_parameters(self, model: ModelShape) -> int:
        """Weights of the matrices that a token meets."""
        return self.parameters(model)[0]

    def forward_flops(self, model: ModelShape, length: int) -> float:
        """Floating point operations per token: a multiplication and an addition per weight that it meets."""
        return 2.0 * self.active_parameters(model)

    def activation_elements(self, model: ModelShape, length: int, packed: bool) -> tuple[float, float]:
        """(fp32 elements, elements in the working precision) per token that autograd keeps for the backward pass."""
        return 0.0, FEED_FORWARD_COPIES * self.width(model)

    def shrunk(self, model: ModelShape, small: SmallShape) -> Self:
        """The settings in a rehearsal, where `model` has the shape `small`."""
        return self


class Dense(FeedForwardSection):
    """One SwiGLU network."""

    def parameters(self, model: ModelShape) -> tuple[int, int]:
        return 3 * model.hidden_size * model.intermediate_size, 0

    def width(self, model: ModelShape) -> int:
        return model.intermediate_size


class Moe(FeedForwardSection):
    """Each token goes to its top-k of several networks."""

    num_experts: Positive = 8
    top_k: Positive = 2
    expert_size: Positive | None = Field(default=None, description="default: the model's intermediate_size")
    normalise_top_k: bool | None = Field(default=None, description="default: where top_k is above 1")
    balance: Literal["aux", "bias", "none"] = Field(
        default="aux", description="bias: without a loss, by a bias that only selection sees"
    )
    aux_weight: Weight = 0.01
    router_z_weight: Weight = 0.001
    bias_rate: Weight = 0.001
    capacity_factor: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="most tokens of an expert in training; null: nothing is dropped"
    )

    @property
    def normalises(self) -> bool:
        """Whether the chosen probabilities are divided by their sum."""
        return self.top_k > 1 if self.normalise_top_k is None else self.normalise_top_k

    @model_validator(mode="after")
    def _choosable(self) -> Moe:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k: {self.top_k} of {self.num_experts} experts; 1 to {self.num_experts} are accepted"
            )
        if self.top_k == 1 and self.normalises:
            raise ValueError("normalise_top_k: with top_k 1 the router would learn nothing; set it to false")
        return self

    def _expert(self, model: ModelShape) -> int:
        return 3 * model.hidden_size * (self.expert_size or model.intermediate_size)

    def parameters(self, model: ModelShape) -> tuple[int, int]:
        return self.num_experts * (
            self._expert(model) + model.hidden_size
        ), 0  # the router has a row per expert

    def width(self, model: ModelShape) -> int:
        return self.top_k * (self.expert_size or model.intermediate_size)

    def active_parameters(self, model: ModelShape) -> int:
        return self.top_k * self._expert(model) + self.num_experts * model.hidden_size

    def activation_elements(self, model: ModelShape, length: int, packed: bool) -> tuple[float, float]:
        single, working = super().activation_elements(model, length, packed)
        single += PER_EXPERT * self.num_experts + PER_CHOICE * self.top_k + PER_TOKEN
        return single, working + EXPERT_COPIES * self.top_k * model.hidden_size

    def shrunk(self, model: ModelShape, small: SmallShape) -> Self:
        size = self.expert_size and small.multiple(
            self.expert_size / model.intermediate_size * small.intermediate
        )
        most = min(self.num_experts, EXPERTS)
        return self.model_copy(
            update={"num_experts": most, "top_k": min(self.top_k, most), "expert_size": size}
        )


FFNS: dict[str, type[FeedForwardSection]] = {"dense": Dense, "moe": Moe}


def settings(name: str, values: Mapping[str, Any]) -> FeedForwardSection:
    """The checked settings of a kind. Raises ValueError naming the key and the accepted ones."""
    return checked("ffns", FFNS, name, values)


def layers(pattern: str, depth: int) -> tuple[str, ...]:
    """The kind of each layer. Raises ValueError."""
    return _pattern.expand("ffn_pattern", "feed-forward", pattern, FFNS, depth)
