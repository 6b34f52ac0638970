"""The stage `pretrain`: all phases of the recipe through one training loop, measured on held-out documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ikirere.common.files import write_json
from ikirere.model.config import ModelConfig
from ikirere.model.hub import notice, save_pretrained
from ikirere.pretrain.checks import check_recipe, check_vocabulary
from ikirere.pretrain.curriculum import CurriculumPhase, phase_at, phases_of, spliced_phases, steps_of
from ikirere.pretrain.families import FAMILIES
from ikirere.pretrain.family import Family, Figure
from ikirere.pretrain.milestones import Milestones
from ikirere.programme.identity import changed_settings
from ikirere.programme.metrics import Metric
from ikirere.programme.stage import GateStop, Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Milestone
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokens.shards import Shard, open_shards
from ikirere.train import checkpoint
from ikirere.train.loop import Callbacks, TrainSummary, train
from ikirere.train.parallel import world_of

RAW, COMPRESSED, TRAINING, SAMPLES = "heldout.jsonl", "compressors.jsonl", "training.jsonl", "samples.json"
EVALUATIONS = "evaluations"
ACCEPTED_CHANGES = re.compile(
    r"pretrain\.(phases(\..*)?|schedule(\..*)?|z_loss|precision"
    r"|optimizer\.(lr|muon_lr|betas(\..*)?|eps|weight_decay|momentum|grad_clip))"
)
FROM_TRAINING = (
    "parameters",
    "tokens",
    "tokens_per_second",
    "train_seconds",
    "final_loss",
    "peak_memory_bytes",
    "loader_wait_fraction",
)


class PretrainStage(Stage):
    """Artifacts: model/ (Hugging Face folder with the tokenizer), log.jsonl, heldout.jsonl, samples.json, and rows
    like heldout.jsonl's of each milestone (milestones/<name>.jsonl) and evaluation during training
    (evaluations/step-<n>.jsonl); every row names the sequence length it was measured at.

    Metrics of a decoder: bits_per_byte, perplexity (per token), both also by <domain>; gzip9_ and
    xz9_bits_per_byte/<domain> of the same bytes. Of a recursive model, on the blanks of held-out rows: perplexity and
    nats_per_token, both also by <domain>, and exact/<domain> (rows filled in without a fault). At the end they are
    measured at the last phase's length; as <metric>@<milestone> at the length and on the domains of the milestone's
    phase. bits_per_byte_ratio@<milestone>: over that at the milestone it is compared to, see `milestones`.
    Of the training: parameters, tokens, tokens_per_second, train_seconds, final_loss, peak_memory_bytes,
    loader_wait_fraction.
    """

    name: ClassVar[str] = "pretrain"
    needs: ClassVar[tuple[str, ...]] = ("tokenizer", "shards")
    makes: ClassVar[tuple[str, ...]] = (
        *dict.fromkeys(
            name + suffix
            for family in FAMILIES.values()
            for name in family.makes
            for suffix in ("", "@{milestone}")
        ),
        *(figure.name + "@{milestone}" for family in FAMILIES.values() for figure in family.ratios),
        "gzip9_bits_per_byte/{domain}",
        "xz9_bits_per_byte/{domain}",
        *FROM_TRAINING,
    )
    outputs: ClassVar[tuple[str, ...]] = ("model",)
    trains: ClassVar[bool] = True

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        settings = recipe.pretrain.result_settings()
        if "moe" in recipe.model.ffn_kinds:  # experts are balanced within a micro-batch
            settings["micro_batch_size"] = recipe.pretrain.micro_batch_size
        return {"model": recipe.model.result_settings(), "pretrain": settings}

    def measuring(self, recipe: Recipe) -> Mapping[str, Any]:
        milestones = [milestone.model_dump(mode="json") for milestone in recipe.pretrain.milestones]
        return {"pretrain": {"evaluate_bytes": recipe.pretrain.evaluate_bytes, "milestones": milestones}}

    def check(self, recipe: Recipe, recipe_folder: Path) -> None:
        check_recipe(recipe)

    def can_go_on(self, changed: Iterable[str]) -> list[str]:
        """All but the phases, the optimiser's numbers, the schedule, the z-loss and the number format."""
        return [key for key in changed if ACCEPTED_CHANGES.fullmatch(key) is None]

    def run(self, context: StageContext) -> StageResult:
        recipe = context.recipe
        check_recipe(recipe)
        if (line := notice(ModelConfig.from_recipe(recipe.model))) is not None:
            context.say(line)
        tokenizer = Tokenizer.load(context.inputs["tokenizer"] / "tokenizer")
        check_vocabulary(recipe, tokenizer.vocab_size)
        shards = open_shards(context.inputs["shards"] / "shards", tokenizer_sha256=tokenizer.sha256)
        training = {d: s for (d, split), s in shards.items() if split == "train"}
        heldout = {d: s for (d, split), s in sorted(shards.items()) if split == "heldout" and len(s)}
        family = FAMILIES[recipe.model.family](recipe, tokenizer)
        begun, phases = _curriculum(context)
        milestones = Milestones(family, phases, heldout, context.folder)

        world = world_of(recipe.pretrain.parallel)
        trainer = family.trainer(family.build(), phases, world, begun)
        source, notes = family.source(trainer, training, phases, world)
        for note in notes:
            context.say(note)
        callbacks = _callbacks(context, family, phases, milestones, heldout)
        summary = train(
            trainer, source, family.objective(), recipe.pretrain, steps_of(phases), context.folder,
            recipe.seed, callbacks, context.key, context.accepted,
        )  # fmt: skip
        _measure_outdated(context, family, phases, milestones, trainer)
        callbacks.before(steps_of(phases), trainer)  # a finished run that is opened again makes no step
        family.finish(trainer)

        model = family.measured(trainer)
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}
        save_pretrained(model, context.folder / "model", ids)
        tokenizer.save(context.folder / "model")
        result = StageResult(artifacts=["model", "log.jsonl", SAMPLES])
        with context.progress(family.label, len(heldout), "domains") as bar:
            rows = family.heldout_rows(model, heldout, phases[-1].sequence_length, bar.advance)
        context.write_rows(RAW, rows)
        if rows:
            result.metrics += [_metric(context, figure, RAW) for figure in family.figures(list(heldout))]
        for milestone in milestones.all:
            result.metrics += _at_milestone(context, milestones, milestone)
        if (context.folder / EVALUATIONS).is_dir():
            result.artifacts.append(EVALUATIONS)
        result.metrics += _compressors(context, family, heldout)
        result.metrics += _training(context, model.num_parameters(), summary)
        write_json(context.folder / SAMPLES, family.samples(model, heldout))
        return result


def _curriculum(context: StageContext) -> tuple[list[CurriculumPhase], list[CurriculumPhase]]:
    """The phases with which training began, and those that it runs, changes by `--go-on` included."""
    shape = context.recipe.model
    own = phases_of(context.recipe.pretrain.phases, shape.rope_theta, shape.layer_pattern)
    continued = [
        (change.step, phases_of(change.config["pretrain"]["phases"], shape.rope_theta, shape.layer_pattern))
        for change in context.continued
    ]
    phases = spliced_phases(continued, own)
    return (continued[0][1] if continued else phases), phases


# ---------------------------------------------------------------- while training


def _callbacks(
    context: StageContext,
    family: Family,
    phases: list[CurriculumPhase],
    milestones: Milestones,
    heldout: dict[str, Shard],
) -> Callbacks:
    def at_milestone(milestone: Milestone, step: int, trainer: nn.Module) -> None:
        rows = milestones.measure(milestone, family.measured(trainer))
        shown = f"{family.overall(rows):.4f} {family.unit}" if rows else "no held-out text of its phase"
        context.say(f"milestone {milestone.name}, step {step}: {shown}")
        context.judge(_at_milestone(context, milestones, milestone))

    def during_training(step: int, trainer: nn.Module) -> None:
        length = phase_at(phases, step - 1).sequence_length
        rows = family.heldout_rows(family.measured(trainer), heldout, length)
        context.write_rows(f"{EVALUATIONS}/step-{step:06d}.jsonl", rows)
        context.track({f"pretrain/{family.figure}": family.overall(rows)}, step)

    def judge_passed(done: int) -> None:
        """A gate that stopped this training stops it again before the next step, unless it was changed."""
        passed = [m for m in milestones.all if m.step <= done]
        context.judge(metric for m in passed for metric in _at_milestone(context, milestones, m))

    every = context.recipe.pretrain.evaluate_every
    return Callbacks(
        progress=context.progress,
        say=context.say,
        track=context.track,
        every=[
            *(({m.step}, partial(at_milestone, m)) for m in milestones.all),
            *([(every, during_training)] if every else []),
        ],
        before=family.before(phases),
        resumed=judge_passed,
        milestones={m.step: m.name for m in milestones.all},
        stops=(GateStop,),
        go_on=changed_settings(context.continued, PretrainStage().config(context.recipe)),
        label="pretrain",
    )


def _measure_outdated(
    context: StageContext,
    family: Family,
    phases: list[CurriculumPhase],
    milestones: Milestones,
    trainer: nn.Module,
) -> None:
    """Measures milestones again whose text or comparison the recipe changed, from their checkpoints where these are kept."""
    tensors = {f"model/{name}": tensor for name, tensor in trainer.state_dict().items()}

    def model_at(milestone: Milestone) -> Any | None:
        path = context.folder / checkpoint.name_of(milestone.step)
        if fault := checkpoint.fault_of(path):
            kept = "its earlier figures stay" if milestones.rows(milestone) else "not measured"
            context.say(f"milestone {milestone.name}: {path.name}, {fault}; {kept}")
            return None
        checkpoint.load(path, tensors)
        family.before(phases)(milestone.step - 1, trainer)
        return family.measured(trainer)

    if milestones.measure_outdated(model_at):
        checkpoint.load(context.folder / checkpoint.name_of(steps_of(phases)), tensors)


# ---------------------------------------------------------------- metrics


def _metric(context: StageContext, figure: Figure, raw: str) -> Metric:
    where = None if figure.domain is None else {"domain": figure.domain}
    confidence = context.recipe.evaluate.confidence if figure.kind == "proportion" else 0.95
    return context.metric(figure.name, figure.kind, raw, figure.field, figure.over, where, confidence)


def _at_milestone(context: StageContext, milestones: Milestones, milestone: Milestone) -> list[Metric]:
    return [_metric(context, figure, raw) for figure, raw in milestones.figures(milestone)]


def _compressors(context: StageContext, family: Family, heldout: dict[str, Shard]) -> list[Metric]:
    rows = family.compressors(heldout)
    raw = context.write_rows(COMPRESSED, rows) if rows else COMPRESSED
    return [
        context.metric(
            f"{row['compressor']}_bits_per_byte/{row['domain']}", "ratio", raw, "bits", "bytes",
            where={"domain": row["domain"], "compressor": row["compressor"]},
        )
        for row in rows
    ]  # fmt: skip


def _training(context: StageContext, parameters: int, summary: TrainSummary) -> list[Metric]:
    values = {
        "parameters": parameters,
        "tokens": summary.tokens,
        "tokens_per_second": summary.tokens_per_second,
        "train_seconds": summary.seconds,
        "final_loss": summary.final_loss,
        "peak_memory_bytes": summary.peak_rss_bytes,
        "loader_wait_fraction": summary.wait_seconds / summary.seconds if summary.seconds else 0.0,
    }
    raw = context.write_rows(TRAINING, [values])
    return [context.metric(name, "scalar", raw, name) for name in FROM_TRAINING]
