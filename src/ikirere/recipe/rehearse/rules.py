"""Rules that turn any programme into a rehearsal: structure is kept, every dimension shrinks.

Kept: stages and their order, gates, layer pattern, ratio of heads, number and order of phases, their shares of
steps, their ratio of lengths and tokens per step, RoPE bases, mixtures, milestones and schedules at the same
shares, losses, seeds, `planned`. A rehearsal shows that the programme runs from end to end; its metrics hold for the
rehearsal only.
"""

from __future__ import annotations

from dataclasses import dataclass

from ikirere.errors import UserError
from ikirere.recipe.rehearse import data, shape, training
from ikirere.recipe.rehearse.changes import Change, RecipeDraft
from ikirere.recipe.schema import Model, Recipe
from ikirere.recipe.sections import Stated

QUESTIONS = 20  # per kind
NEW_TOKENS = 96
LEAST_POSITIONS = 512  # a question, its tools and the answer
CPU_MFU = 0.4


@dataclass(frozen=True)
class Rehearsal:
    """The small recipe, and what was changed to get it."""

    recipe: Recipe
    changes: tuple[Change, ...]


def shrink(recipe: Recipe, minutes: float = 10.0) -> Recipe:
    """The recipe of a rehearsal that takes about `minutes` on two cores."""
    return rehearse(recipe, minutes).recipe


def rehearse(recipe: Recipe, minutes: float = 10.0) -> Rehearsal:
    """Shrink a recipe and list every change. Raises UserError for a time that is not above zero."""
    if not minutes > 0:
        raise UserError(f"rehearsal: {minutes:g} minutes; give a number above 0")
    draft = RecipeDraft(recipe)
    draft.set("stated", Stated().model_dump(mode="json"), "claims are about the full programme")
    if recipe.tracker.kind == "wandb":
        draft.set("tracker.kind", "trackio", "a rehearsal stays on this machine")
    draft.set("hardware.device", "cpu", "this machine")
    draft.set("hardware.count", 1, "this machine")
    draft.set("hardware.precision", "fp32", "this machine")
    draft.set("hardware.mfu", CPU_MFU, "what small products reach of the peak")
    data.shrink_data(draft, recipe)
    vocabulary = data.shrink_tokenizer(draft, recipe, shape.VOCABULARY)
    _positions_and_model(draft, recipe, vocabulary)
    model = Model.model_validate(draft.values["model"])  # the recipe as a whole does not fit together yet
    training.shrink_pretrain(draft, recipe, model, minutes)
    training.shrink_sft(draft, recipe, model, minutes)
    training.shrink_dpo(draft, recipe, model, minutes)
    _shrink_evaluation(draft, recipe)
    return Rehearsal(draft.recipe(), tuple(draft.changes))


def _positions_and_model(draft: RecipeDraft, recipe: Recipe, vocabulary: int) -> None:
    longest = max(training.lengths(recipe.pretrain.phases))
    was = max(p.sequence_length for p in recipe.pretrain.phases)
    beyond = min(recipe.model.max_position_embeddings / was, training.SPREAD)
    positions = max(round(longest * beyond), LEAST_POSITIONS, training.chat_length(recipe))
    positions = min(positions, max(recipe.model.max_position_embeddings, LEAST_POSITIONS))
    shape.shrink_model(draft, recipe, vocabulary, positions, longest / was)
    draft.set("serve.max_model_len", positions, "all that the small model has")
    draft.set("serve.kv_cache_bits", max(recipe.serve.kv_cache_bits, 16), "no quantised cache in a rehearsal")


def _shrink_evaluation(draft: RecipeDraft, recipe: Recipe) -> None:
    e = recipe.evaluate
    draft.set(
        "evaluate.questions",
        {k: min(v, QUESTIONS) for k, v in e.questions.items()},
        "few questions of each kind",
    )
    draft.set("evaluate.max_new_tokens", min(e.max_new_tokens, NEW_TOKENS), "short answers")
