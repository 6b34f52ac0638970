"""What can be refused of a recipe's pretraining before any of its inputs exist."""

from __future__ import annotations

from ikirere.errors import UserError
from ikirere.model.build import on_meta
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.pretrain.families import FAMILIES
from ikirere.recipe.schema import Recipe
from ikirere.train.optimiser import check_optimizer
from ikirere.train.precision import check_precision


def check_recipe(recipe: Recipe) -> None:
    """Raises UserError, naming the key, for a model that is not built and for settings that this model or the training
    loop cannot run."""
    model = on_meta(ModelConfig.from_recipe(recipe.model))
    FAMILIES[recipe.model.family].check(recipe)
    check_precision(recipe.pretrain.precision, "pretrain.precision")
    check_optimizer(recipe.pretrain.optimizer, "pretrain.optimizer")
    check_vocabulary(recipe, recipe.tokenizer.vocab_size)
    longest = recipe.model.max_position_embeddings
    for i, phase in enumerate(recipe.pretrain.phases):
        key = f"pretrain.phases.{i}"
        if phase.sequence_length > longest:
            raise UserError(
                f"{key}.sequence_length {phase.sequence_length} is beyond model.max_position_embeddings {longest}; "
                "shorten the one or raise the other"
            )
        if phase.context_parallel > 1:
            raise UserError(
                f"{key}.context_parallel {phase.context_parallel}: training does not share a sequence between devices "
                "yet; accepted is 1 (a rehearsal sets it)"
            )
        if not any(phase.mixture.values()):
            raise UserError(f"{key}.mixture: no domain has a weight above 0; give one a weight")
        if phase.attention is not None and phase.attention != recipe.model.layer_pattern:
            _check_attention(recipe, model, phase.attention, key)
    _check_milestones(recipe)


def check_vocabulary(recipe: Recipe, ids: int) -> None:
    """Raises UserError where a tokenizer of so many ids does not fit the model."""
    if ids > recipe.model.vocab_size:
        raise UserError(
            f"model.vocab_size {recipe.model.vocab_size} is smaller than the tokenizer's {ids} ids; make it at least "
            "as large"
        )


def _check_attention(recipe: Recipe, model: object, attention: str, key: str) -> None:
    if not isinstance(model, Decoder):
        raise UserError(
            f"{key}.attention {attention!r}: a recursive model keeps its model.layer_pattern; accepted is "
            f"{recipe.model.layer_pattern!r}"
        )
    try:
        model.set_attention(attention)
    except UserError as error:
        raise UserError(f"{key}.attention {attention!r}: {error}") from None


def _check_milestones(recipe: Recipe) -> None:
    steps: dict[str, int] = {}
    for i, milestone in enumerate(recipe.pretrain.milestones):
        key = f"pretrain.milestones.{i}"
        if milestone.step > recipe.pretrain.steps:
            raise UserError(f"{key}.step {milestone.step} is after the last of {recipe.pretrain.steps} steps")
        if milestone.name in steps:
            raise UserError(f"{key}.name {milestone.name!r} is taken by a milestone before it; give another")
        steps[milestone.name] = milestone.step
    for i, milestone in enumerate(recipe.pretrain.milestones):
        named = getattr(milestone, "compare_to", None)
        if named is None:
            continue
        if steps.get(named, milestone.step) >= milestone.step:
            earlier = ", ".join(name for name, step in steps.items() if step < milestone.step) or "none"
            raise UserError(
                f"pretrain.milestones.{i}.compare_to {named!r}: no milestone before step {milestone.step}; accepted "
                f"are {earlier}"
            )
