"""Pretraining of a recursive model: rows with blanks under deep supervision, and what its averaged weights make of
held-out rows after all supervision steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from ikirere.errors import UserError
from ikirere.model.recursive import RecursiveModel
from ikirere.pretrain.evaluate import chosen_documents
from ikirere.recipe.schema import Recipe
from ikirere.tokens.batch import IGNORE
from ikirere.tokens.infilling import Decoder, Example, InfillDataset, SpanMasker
from ikirere.tokens.shards import Shard
from ikirere.train.loop import Callbacks, TrainSummary, train
from ikirere.train.parallel import World
from ikirere.train.recursion import CarriedRows, DeepSupervision, RecursiveTrainer
from ikirere.train.stablemax import stablemax_nats

ANSWERS = ("puzzles", "arc")  # kinds of sources whose documents end with their answer
GAP = "_"  # a blank in samples
SAMPLES_PER_DOMAIN = 2


def check(recipe: Recipe) -> None:
    """Raises UserError for what a recursive model's training does not have."""
    pretrain, model = recipe.pretrain, recipe.model
    if pretrain.parallel == "fsdp":
        raise UserError("pretrain.parallel: fsdp does not hold carried rows; accepted here are none and ddp")
    if pretrain.z_loss:
        raise UserError("pretrain.z_loss: stablemax has no normaliser to hold near 1; accepted here is 0")
    if pretrain.packing != "concatenate":
        raise UserError(
            f"pretrain.packing {pretrain.packing!r}: rows of blanks hold one document; leave it out"
        )
    if model.mixers.get("recursive", {}).get("puzzles"):
        raise UserError("model.mixers.recursive.puzzles: documents have no puzzle ids; accepted here is 0")
    for i, phase in enumerate(pretrain.phases):
        key = f"pretrain.phases.{i}"
        if phase.long_fraction is not None:
            raise UserError(f"{key}.long_fraction: rows of blanks are drawn by window; leave it out")
        if phase.rope_theta is not None and phase.rope_theta != model.rope_theta:
            raise UserError(
                f"{key}.rope_theta: a recursive model keeps model.rope_theta {model.rope_theta:g}"
            )
        if "mlp" in model.layers and phase.sequence_length != model.max_position_embeddings:
            raise UserError(
                f"{key}.sequence_length {phase.sequence_length}: the mixer mlp takes rows of "
                f"model.max_position_embeddings {model.max_position_embeddings} tokens only"
            )


def answer_domains(recipe: Recipe) -> set[str]:
    """Domains whose documents end with the answer that is asked for."""
    return {s.domain for s in recipe.data.sources if s.kind in ANSWERS and s.domain}


def new_trainer(recipe: Recipe, network: RecursiveModel, world: World) -> RecursiveTrainer:
    """With room for the largest batch and the longest rows of all phases."""
    phases = recipe.pretrain.phases
    rows = max(phase.batch_size // world.size for phase in phases)
    return RecursiveTrainer(network, rows, max(phase.sequence_length for phase in phases), world.rank)


def fit(
    recipe: Recipe,
    trainer: RecursiveTrainer,
    shards: Mapping[str, Shard],
    tokenizer: Decoder,
    folder: Path,
    callbacks: Callbacks,
    key: str,
    world: World,
) -> TrainSummary:
    """All phases through the training loop."""
    pretrain, settings = recipe.pretrain, trainer.network.settings
    rows = InfillDataset(shards, pretrain.phases, recipe.seed, tokenizer, answer_domains(recipe))
    source = CarriedRows(
        rows, pretrain.phases, trainer.halted, recipe.seed, settings.halt_exploration,
        settings.supervision_steps, world.rank, world.size,
    )  # fmt: skip
    return train(
        trainer, source, DeepSupervision(), pretrain, pretrain.steps, folder, recipe.seed, callbacks, key
    )


# ---------------------------------------------------------------- measuring


def _rows_of(
    shard: Shard, max_bytes: int, length: int, answers: bool, blanks: SpanMasker
) -> list[tuple[int, Example]]:
    """All rows of whole held-out documents that fit into `max_bytes`; the same blanks whenever they are asked for."""
    return [
        (i, row)
        for i in chosen_documents(shard, max_bytes)
        for row in blanks.all_of(shard.tokens(i), answers, length, (0, i))
    ]


def heldout_rows(
    recipe: Recipe,
    model: RecursiveModel,
    heldout: Mapping[str, Shard],
    tokenizer: Decoder,
    batch: int,
    advance: Callable[[float], None] | None = None,
) -> list[dict[str, Any]]:
    """A row of figures per row of blanks: nats of all its blanks (stablemax, as trained), tokens, exact (0 or 1: every
    blank filled right), q, and its domain and document."""
    length = max(phase.sequence_length for phase in recipe.pretrain.phases)
    answers, blanks = answer_domains(recipe), SpanMasker(tokenizer)
    rows: list[dict[str, Any]] = []
    for domain, shard in heldout.items():
        found = _rows_of(shard, recipe.pretrain.evaluate_bytes, length, domain in answers, blanks)
        for at in range(0, len(found), batch):
            part = found[at : at + batch]
            nats, exact, q, tokens, _ = _measured(model, [row for _, row in part])
            rows += [
                {
                    "domain": domain,
                    "document": shard.id(i),
                    "nats": nats[n],
                    "tokens": tokens[n],
                    "exact": int(exact[n]),
                    "q": q[n],
                }
                for n, (i, _) in enumerate(part)
            ]
        if advance is not None:
            advance(1)
    return rows


def _measured(
    model: RecursiveModel, rows: list[Example]
) -> tuple[list[float], list[bool], list[float], list[int], torch.Tensor]:
    """Nats, whether all is right, q and number of blanks of each row, and the tokens found at every place."""
    tokens, labels, ids = stacked(rows)
    answer = model(tokens.to(model.device), None if ids is None else ids.to(model.device))
    labels = labels.to(model.device)
    used = labels != IGNORE
    nats = stablemax_nats(answer.logits, labels).sum(-1)
    made = answer.logits.argmax(-1)
    exact = ((made == labels) | ~used).all(-1)
    return nats.tolist(), exact.tolist(), answer.q.tolist(), used.sum(-1).tolist(), made.cpu()


def stacked(rows: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """tokens, labels and document_ids (None where no row has padding), [B, T] each."""
    tokens, labels = (torch.stack([getattr(row, name) for row in rows]) for name in ("tokens", "labels"))
    if all(row.document_ids is None for row in rows):
        return tokens, labels, None
    whole = torch.zeros_like(tokens[0])
    return tokens, labels, torch.stack([whole if r.document_ids is None else r.document_ids for r in rows])


def samples(
    recipe: Recipe, model: RecursiveModel, heldout: Mapping[str, Shard], tokenizer: Any
) -> list[dict[str, Any]]:
    """Held-out rows with their blanks, what the model fills in, and what stood there."""
    length = max(phase.sequence_length for phase in recipe.pretrain.phases)
    answers, blanks = answer_domains(recipe), SpanMasker(tokenizer)
    shown = []
    for domain, shard in heldout.items():
        for i in sorted(range(len(shard)), key=shard.id)[:SAMPLES_PER_DOMAIN]:
            row = blanks.all_of(shard.tokens(i), domain in answers, length, (0, i))[0]
            *_, made = _measured(model, [row])
            used = row.labels != IGNORE
            last = int(used.nonzero()[-1]) + 1
            shown.append(
                {
                    "domain": domain,
                    "prompt": _with_gaps(row.tokens[:last].tolist(), blanks.blank, tokenizer),
                    "continuation": tokenizer.decode(made[0][used].tolist()),
                    "wanted": tokenizer.decode(row.labels[used].tolist()),
                }
            )
    return shown


def _with_gaps(ids: list[int], blank: int, tokenizer: Any) -> str:
    text, run = "", cast(list[int], [])
    for token in [*ids, blank]:
        if token != blank:
            run.append(token)
            continue
        text += tokenizer.decode(run) + GAP
        run = []
    return text[: -len(GAP)]
