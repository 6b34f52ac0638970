"""Feed-forward kinds that `model.ffn_pattern` may name, and their settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ikirere.recipe.section import Positive, Section

Weight = Annotated[float, Field(ge=0)]


class Dense(Section):
    """One SwiGLU network."""


class Moe(Section):
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


FFNS: dict[str, type[Section]] = {"dense": Dense, "moe": Moe}


def settings(name: str, values: dict[str, Any]) -> Section:
    """The checked settings of a kind. Raises ValueError naming the key and the accepted ones."""
    if name not in FFNS:
        raise ValueError(f"ffns.{name}: no such feed-forward; accepted: {', '.join(FFNS)}")
    try:
        return FFNS[name].model_validate(values)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in detail["loc"])
        accepted = ", ".join(FFNS[name].model_fields)
        raise ValueError(f"ffns.{name}.{key}: {detail['msg']}; accepted keys: {accepted}") from None


def kinds(pattern: str, depth: int) -> tuple[str, ...]:
    """The kind of each layer. Raises ValueError naming what is no kind."""
    names: list[str] = []
    for part in pattern.split():
        name, _, count = part.partition("*")
        if name not in FFNS or (count and not (count.isdigit() and int(count))):
            raise ValueError(
                f"ffn_pattern {pattern!r}: {part!r} is not NAME or NAME*COUNT; names are {', '.join(FFNS)}"
            )
        names += [name] * int(count or 1)
    if not names:
        raise ValueError("ffn_pattern is empty; write 'dense'")
    return tuple(names[i % len(names)] for i in range(depth))
