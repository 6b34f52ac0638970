"""Pretraining of a recursive model: rows with blanks under deep supervision, and held-out rows measured with the averaged
weights after all supervision steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch

from ikirere.errors import UserError
from ikirere.model.recursive import RecursiveModel
from ikirere.pretrain.curriculum import CurriculumPhase
from ikirere.pretrain.evaluate import chosen_documents
from ikirere.pretrain.family import EVALUATION_ROWS, Advance, Family, Figure, Row
from ikirere.recipe.schema import Recipe
from ikirere.tokens.batch import IGNORE
from ikirere.tokens.infilling import Example, InfillDataset, SpanMasker
from ikirere.tokens.shards import Shard
from ikirere.train.callbacks import Source
from ikirere.train.objective import Objective
from ikirere.train.parallel import World
from ikirere.train.recursion import CarriedRows, DeepSupervision, RecursiveTrainer
from ikirere.train.stablemax import stablemax_nats

ANSWERS = ("puzzles", "arc")  # kinds of sources whose documents end with their answer
GAP = "_"  # a blank in samples
SAMPLES_PER_DOMAIN = 2


class RecursiveFamily(Family):
    """Fills blanks; measured on the blanks of held-out rows: nats and perplexity per blank, rows without a fault.

    The trainer is a `RecursiveTrainer`; what is measured and saved are its averaged weights. Held-out rows: nats of all
    blanks (stablemax, as trained), tokens (blanks), exact (0 or 1: every blank filled right), q.
    """

    name: ClassVar[str] = "recursive"
    label: ClassVar[str] = "held-out blanks"
    figure: ClassVar[str] = "nats_per_token"
    unit: ClassVar[str] = "nats per blank"
    makes: ClassVar[tuple[str, ...]] = (
        "perplexity",
        "nats_per_token",
        "perplexity/{domain}",
        "nats_per_token/{domain}",
        "exact/{domain}",
    )

    @staticmethod
    def check(recipe: Recipe) -> None:
        pretrain, model = recipe.pretrain, recipe.model
        if pretrain.parallel == "fsdp":
            raise UserError(
                "pretrain.parallel: fsdp does not hold carried rows; accepted here are none and ddp"
            )
        if pretrain.z_loss:
            raise UserError("pretrain.z_loss: stablemax has no normaliser to hold near 1; accepted here is 0")
        if pretrain.packing != "concatenate":
            raise UserError(
                f"pretrain.packing {pretrain.packing!r}: rows of blanks hold one document; leave it out"
            )
        if model.mixers.get("recursive", {}).get("puzzles"):
            raise UserError(
                "model.mixers.recursive.puzzles: documents have no puzzle ids; accepted here is 0"
            )
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

    @property
    def answers(self) -> set[str]:
        """Domains whose documents end with the answer that is asked for."""
        return {s.domain for s in self.recipe.data.sources if s.kind in ANSWERS and s.domain}

    # ------------------------------------------------------------ training

    def trainer(
        self,
        model: RecursiveModel,
        phases: Sequence[CurriculumPhase],
        world: World,
        begun_with: Sequence[CurriculumPhase],
    ) -> RecursiveTrainer:
        """With buffers for the largest batch and the longest rows of the phases that training began with, since a
        checkpoint holds them. Raises UserError for phases that exceed them."""
        rows = max(phase.batch_size for phase in begun_with)
        length = max(phase.sequence_length for phase in begun_with)
        for phase in phases:
            if phase.batch_size > rows or phase.sequence_length > length:
                raise UserError(
                    f"pretrain.phases: {phase.batch_size} rows of {phase.sequence_length} tokens; this training "
                    f"carries the answers of {rows} rows of {length} tokens from step to step, and --go-on accepts "
                    "no larger ones"
                )
        return RecursiveTrainer(model, rows // world.size, length, world.rank)

    def source(
        self,
        trainer: RecursiveTrainer,
        shards: Mapping[str, Shard],
        phases: Sequence[CurriculumPhase],
        world: World,
    ) -> tuple[Source, list[str]]:
        settings, seed = trainer.network.settings, self.recipe.seed
        rows = InfillDataset(shards, phases, seed, self.tokenizer, self.answers)
        source = CarriedRows(
            rows, phases, trainer.halted, seed, settings.halt_exploration,
            settings.supervision_steps, world.rank, world.size,
        )  # fmt: skip
        return source, []

    def objective(self) -> Objective:
        return DeepSupervision()

    def finish(self, trainer: RecursiveTrainer) -> None:
        """Nothing to do: the average is current after every step."""

    def measured(self, trainer: RecursiveTrainer) -> RecursiveModel:
        return trainer.ema

    # ------------------------------------------------------------ measuring

    def heldout_rows(
        self,
        model: RecursiveModel,
        heldout: Mapping[str, Shard],
        length: int,
        advance: Advance | None = None,
    ) -> list[Row]:
        """One held-out row per row of blanks; see the class for its fields."""
        blanks, rows = SpanMasker(self.tokenizer), list[Row]()
        for domain, shard in heldout.items():
            found = _rows_of(
                shard, self.recipe.pretrain.evaluate_bytes, length, domain in self.answers, blanks
            )
            for at in range(0, len(found), EVALUATION_ROWS):
                part = found[at : at + EVALUATION_ROWS]
                nats, exact, q, tokens, _ = _measured(model, [row for _, row in part])
                rows += [
                    {
                        "domain": domain,
                        "document": shard.id(i),
                        "sequence_length": length,
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

    def figures(self, domains: Sequence[str]) -> list[Figure]:
        found = [
            Figure("perplexity", "exp-ratio", "nats", "tokens"),
            Figure("nats_per_token", "ratio", "nats", "tokens"),
        ]
        for domain in domains:
            found += [
                Figure(f"perplexity/{domain}", "exp-ratio", "nats", "tokens", domain),
                Figure(f"nats_per_token/{domain}", "ratio", "nats", "tokens", domain),
                Figure(f"exact/{domain}", "proportion", "exact", None, domain),
            ]
        return found

    def overall(self, rows: Sequence[Row]) -> float:
        return float(sum(row["nats"] for row in rows) / max(1, sum(row["tokens"] for row in rows)))

    def samples(self, model: RecursiveModel, heldout: Mapping[str, Shard]) -> list[Row]:
        """Held-out rows with their blanks (prompt), what the model fills in (continuation) and the labels (wanted)."""
        length = self.recipe.pretrain.phases[-1].sequence_length
        blanks, tokenizer, shown = SpanMasker(self.tokenizer), self.tokenizer, []
        for domain, shard in heldout.items():
            for i in sorted(range(len(shard)), key=shard.id)[:SAMPLES_PER_DOMAIN]:
                row = blanks.all_of(shard.tokens(i), domain in self.answers, length, (0, i))[0]
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


def _rows_of(
    shard: Shard, max_bytes: int, length: int, answers: bool, blanks: SpanMasker
) -> list[tuple[int, Example]]:
    """All rows of whole held-out documents that fit into `max_bytes`; the same blanks whenever they are asked for."""
    return [
        (i, row)
        for i in chosen_documents(shard, max_bytes)
        for row in blanks.all_of(shard.tokens(i), answers, length, (0, i))
    ]


def _measured(
    model: RecursiveModel, rows: list[Example]
) -> tuple[list[float], list[bool], list[float], list[int], torch.Tensor]:
    """Nats, whether every blank is right, q and number of blanks of each row, and the model's tokens [B, T] (CPU)."""
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


def _with_gaps(ids: list[int], blank: int, tokenizer: Any) -> str:
    text, run = "", cast(list[int], [])
    for token in [*ids, blank]:
        if token != blank:
            run.append(token)
            continue
        text += tokenizer.decode(run) + GAP
        run = []
    return text[: -len(GAP)]
