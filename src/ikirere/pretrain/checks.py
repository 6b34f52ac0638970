"""What can be refused of a recipe's pretraining before any of its inputs exist, beside what the schema refuses."""

from __future__ import annotations

from ikirere.errors import UserError
from ikirere.model.build import on_meta
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.pretrain.families import FAMILIES
from ikirere.recipe.schema import Recipe
from ikirere.train.precision import check_precision


def check_recipe(recipe: Recipe) -> None:
    """Raises UserError, naming the key, for a model that is not built and for settings that this model or the training
    loop cannot run."""
    model = on_meta(ModelConfig.from_recipe(recipe.model))
    FAMILIES[recipe.model.family].check(recipe)
    check_precision(recipe.pretrain.precision, "pretrain.precision")
    for i, phase in enumerate(recipe.pretrain.phases):
        key = f"pretrain.phases.{i}"
        if phase.context_parallel > 1:
            raise UserError(
                f"{key}.context_parallel {phase.context_parallel}: training does not share a sequence between devices "
                "yet; accepted is 1 (a rehearsal sets it)"
            )
        if not any(phase.mixture.values()):
            raise UserError(f"{key}.mixture: no domain has a weight above 0; give one a weight")
        if phase.attention is not None and phase.attention != recipe.model.layer_pattern:
            _check_attention(recipe, model, phase.attention, key)


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
