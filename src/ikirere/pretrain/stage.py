"""The stage `pretrain`: all phases of the recipe through one training loop, measured on held-out documents."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from ikirere.common.files import write_json
from ikirere.errors import UserError
from ikirere.model.build import build_model, on_meta
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.hub import notice, save_pretrained
from ikirere.model.recursive import RecursiveModel
from ikirere.pretrain import recursive
from ikirere.pretrain.evaluate import bits_per_byte, chosen_documents, compressed_bits, continuation
from ikirere.programme.metrics import Metric
from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Pretrain
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokens.loader import PackedLoader
from ikirere.tokens.shards import Shard, open_shards
from ikirere.train.loop import Callbacks, TrainSummary, train
from ikirere.train.objective import CrossEntropy
from ikirere.train.parallel import world_of

RAW, COMPRESSED, TRAINING, SAMPLES = "heldout.jsonl", "compressors.jsonl", "training.jsonl", "samples.json"
EVALUATIONS = "evaluations"
EVALUATION_ROWS = 8  # sequences per pass when measuring
SAMPLE_PROMPT, SAMPLE_TOKENS, SAMPLES_PER_DOMAIN = 64, 64, 2


class PretrainStage(Stage):
    """Artifacts: model/ (Hugging Face folder with the tokenizer), log.jsonl, heldout.jsonl, samples.json, and rows
    like heldout.jsonl's of each milestone (milestones/<name>.jsonl) and evaluation on the way
    (evaluations/step-<n>.jsonl).

    Metrics: bits_per_byte, bits_per_byte/<domain>, perplexity (per token), gzip9_ and xz9_bits_per_byte/<domain>
    of the same bytes, parameters, tokens, tokens_per_second, train_seconds, final_loss, peak_memory_bytes,
    loader_wait_fraction; bits_per_byte and perplexity also as <metric>@<milestone>.

    A recursive model (`pretrain.recursive`) is measured by its averaged weights, which are what model/ holds, on the
    blanks of held-out rows: perplexity and nats_per_token of blanks, perplexity/<domain>, nats_per_token/<domain>,
    exact/<domain> (rows filled in without a fault), each also as <metric>@<milestone>; no bits per byte.
    """

    name: ClassVar[str] = "pretrain"
    needs: ClassVar[tuple[str, ...]] = ("tokenizer", "shards")

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return {
            "model": recipe.model.model_dump(mode="json"),
            "pretrain": recipe.pretrain.model_dump(mode="json"),
            "device": recipe.hardware.device,
        }

    def run(self, context: StageContext) -> StageResult:
        recipe = context.recipe
        check_phases(recipe)
        if (line := notice(ModelConfig.from_recipe(recipe.model))) is not None:
            context.say(line)
        tokenizer = Tokenizer.load(context.inputs["tokenizer"] / "tokenizer")
        if tokenizer.vocab_size > recipe.model.vocab_size:
            raise UserError(
                f"model.vocab_size {recipe.model.vocab_size} is smaller than the tokenizer's "
                f"{tokenizer.vocab_size} ids; make it at least as large"
            )
        shards = open_shards(context.inputs["shards"] / "shards", tokenizer_sha256=tokenizer.sha256)
        heldout = {d: s for (d, split), s in sorted(shards.items()) if split == "heldout" and len(s)}
        model = new_model(recipe)
        training = {d: s for (d, split), s in shards.items() if split == "train"}
        identity = [self.config(recipe), recipe.seed, tokenizer.sha256]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        if isinstance(model, RecursiveModel):
            return _recursive(context, model, tokenizer, training, heldout, key)
        summary = _train(context, model, training, heldout, key)
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}
        save_pretrained(model, context.folder / "model", ids)
        tokenizer.save(context.folder / "model")
        result = StageResult(artifacts=["model", "log.jsonl", SAMPLES])
        with context.progress("bits per byte", len(heldout), "domains") as bar:
            context.write_rows(RAW, _heldout_rows(recipe, model, heldout, bar.advance))
        result.metrics += _heldout_metrics(context, RAW, heldout, "")
        for milestone in recipe.pretrain.milestones:
            raw = f"milestones/{milestone.name}.jsonl"
            result.metrics += _heldout_metrics(context, raw, heldout, f"@{milestone.name}")
        if (context.folder / EVALUATIONS).is_dir():
            result.artifacts.append(EVALUATIONS)
        result.metrics += _compressors(context, tokenizer, heldout)
        result.metrics += _training(context, model, summary)
        write_json(context.folder / SAMPLES, _samples(model, tokenizer, heldout))
        return result


def check_phases(recipe: Recipe) -> None:
    """Raises UserError for mixers that are not built, and for phases that this model or loop cannot run."""
    model = on_meta(ModelConfig.from_recipe(recipe.model))
    if recipe.model.family == "recursive":
        recursive.check(recipe)
    longest = recipe.model.max_position_embeddings
    for i, phase in enumerate(recipe.pretrain.phases):
        if phase.sequence_length > longest:
            raise UserError(
                f"pretrain.phases.{i}.sequence_length {phase.sequence_length} is beyond "
                f"model.max_position_embeddings {longest}; shorten the one or raise the other"
            )
        if phase.context_parallel > 1:
            raise UserError(
                f"pretrain.phases.{i}.context_parallel {phase.context_parallel}: training does not share a sequence "
                "between devices yet; accepted is 1 (a rehearsal sets it)"
            )
        if phase.attention is None or phase.attention == recipe.model.layer_pattern:
            continue
        if not isinstance(model, Decoder):
            raise UserError(
                f"pretrain.phases.{i}.attention {phase.attention!r}: a recursive model keeps its "
                f"model.layer_pattern; accepted is {recipe.model.layer_pattern!r}"
            )
        try:
            model.set_attention(phase.attention)
        except UserError as error:
            raise UserError(f"pretrain.phases.{i}.attention {phase.attention!r}: {error}") from None
    for i, milestone in enumerate(recipe.pretrain.milestones):
        if milestone.step > recipe.pretrain.steps:
            raise UserError(
                f"pretrain.milestones.{i}.step {milestone.step} is after the last of {recipe.pretrain.steps} steps"
            )


def new_model(recipe: Recipe) -> Decoder | RecursiveModel:
    """The recipe's model with weights drawn from its seed, on the device of the recipe where there is one."""
    model = build_model(ModelConfig.from_recipe(recipe.model))
    model.reset_parameters(torch.Generator().manual_seed(recipe.seed))
    cuda = recipe.hardware.device != "cpu" and torch.cuda.is_available()
    return model.to("cuda" if cuda else "cpu")


def theta_of(pretrain: Pretrain, default: float) -> Callable[[int], float]:
    """RoPE's base of the step after `done` steps: the phase's own, else that of the phase before it."""
    ends = list(itertools.accumulate(phase.steps for phase in pretrain.phases))
    bases: list[float] = []
    for phase in pretrain.phases:
        bases.append(phase.rope_theta or (bases[-1] if bases else default))

    def at(done: int) -> float:
        return bases[min(bisect.bisect_right(ends, done), len(bases) - 1)]

    return at


def attention_of(pretrain: Pretrain, default: str) -> Callable[[int], str]:
    """The layer pattern as which the model runs in the step after `done` steps: the phase's, else its own."""
    ends = list(itertools.accumulate(phase.steps for phase in pretrain.phases))
    patterns = [phase.attention or default for phase in pretrain.phases]

    def at(done: int) -> str:
        return patterns[min(bisect.bisect_right(ends, done), len(patterns) - 1)]

    return at


def _train(
    context: StageContext, model: Decoder, shards: dict[str, Shard], heldout: dict[str, Shard], key: str
) -> TrainSummary:
    recipe, pretrain = context.recipe, context.recipe.pretrain
    world = world_of(pretrain.parallel)
    loader = PackedLoader(
        shards, pretrain.phases, recipe.seed, world.rank, world.size, packing=pretrain.packing
    )
    for note in loader.notes:
        context.say(note)
    theta = theta_of(pretrain, recipe.model.rope_theta)
    attention = attention_of(pretrain, recipe.model.layer_pattern)

    def before(done: int, model: Decoder) -> None:
        if model.config.rope_theta != theta(done):
            model.set_rope_theta(theta(done))
        if model.attention != attention(done):
            model.set_attention(attention(done))

    callbacks = Callbacks(
        progress=context.progress, say=context.say, track=context.track, before=before, label="pretrain"
    )
    for milestone in pretrain.milestones:
        callbacks.every.append(({milestone.step}, _milestone(context, heldout, milestone.name)))
    if pretrain.evaluate_every:
        callbacks.every.append((pretrain.evaluate_every, _tracked(context, heldout)))
    objective = CrossEntropy(pretrain.z_loss)
    summary = train(
        model, loader, objective, pretrain, pretrain.steps, context.folder, recipe.seed, callbacks, key
    )
    before(pretrain.steps, model)  # a finished run that is opened again makes no step
    model.set_attention(recipe.model.layer_pattern)  # measured and sampled as it is saved
    return summary


# ---------------------------------------------------------------- recursive models


def _recursive(
    context: StageContext,
    model: RecursiveModel,
    tokenizer: Tokenizer,
    shards: dict[str, Shard],
    heldout: dict[str, Shard],
    key: str,
) -> StageResult:
    """Trains and measures a recursive model; see `PretrainStage`."""
    recipe, pretrain = context.recipe, context.recipe.pretrain
    world = world_of(pretrain.parallel)
    trainer = recursive.new_trainer(recipe, model, world)

    def measure(path: str, average: RecursiveModel) -> float:
        rows = recursive.heldout_rows(recipe, average, heldout, tokenizer, EVALUATION_ROWS)
        context.write_rows(path, rows)
        return float(sum(row["nats"] for row in rows) / max(1, sum(row["tokens"] for row in rows)))

    def at_milestone(name: str) -> Callable[[int, recursive.RecursiveTrainer], None]:
        def call(step: int, trained: recursive.RecursiveTrainer) -> None:
            nats = measure(f"milestones/{name}.jsonl", trained.ema)
            context.say(f"milestone {name}, step {step}: {nats:.4f} nats per blank")

        return call

    def on_the_way(step: int, trained: recursive.RecursiveTrainer) -> None:
        nats = measure(f"{EVALUATIONS}/step-{step:06d}.jsonl", trained.ema)
        context.track({"pretrain/nats_per_token": nats}, step)

    callbacks = Callbacks(progress=context.progress, say=context.say, track=context.track, label="pretrain")
    callbacks.every += [({m.step}, at_milestone(m.name)) for m in pretrain.milestones]
    if pretrain.evaluate_every:
        callbacks.every.append((pretrain.evaluate_every, on_the_way))
    summary = recursive.fit(recipe, trainer, shards, tokenizer, context.folder, callbacks, key, world)
    average = trainer.ema
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}
    save_pretrained(average, context.folder / "model", ids)
    tokenizer.save(context.folder / "model")
    result = StageResult(artifacts=["model", "log.jsonl", SAMPLES])
    with context.progress("held-out blanks", len(heldout), "domains") as bar:
        rows = recursive.heldout_rows(recipe, average, heldout, tokenizer, EVALUATION_ROWS, bar.advance)
    context.write_rows(RAW, rows)
    measured = {"": RAW} | {f"@{m.name}": f"milestones/{m.name}.jsonl" for m in pretrain.milestones}
    for suffix, raw in measured.items():
        result.metrics += _blanks_metrics(context, raw, heldout, suffix)
    if (context.folder / EVALUATIONS).is_dir():
        result.artifacts.append(EVALUATIONS)
    result.metrics += _training(context, model, summary)
    write_json(context.folder / SAMPLES, recursive.samples(recipe, average, heldout, tokenizer))
    return result


def _blanks_metrics(context: StageContext, raw: str, heldout: dict[str, Shard], suffix: str) -> list[Metric]:
    if not heldout:
        return []
    confidence = context.recipe.evaluate.confidence
    found = [
        context.metric(f"perplexity{suffix}", "exp-ratio", raw, "nats", "tokens"),
        context.metric(f"nats_per_token{suffix}", "ratio", raw, "nats", "tokens"),
    ]
    for domain in heldout:
        where = {"domain": domain}
        found += [
            context.metric(f"perplexity/{domain}{suffix}", "exp-ratio", raw, "nats", "tokens", where=where),
            context.metric(f"nats_per_token/{domain}{suffix}", "ratio", raw, "nats", "tokens", where=where),
            context.metric(
                f"exact/{domain}{suffix}", "proportion", raw, "exact", where=where, confidence=confidence
            ),
        ]
    return found


# ---------------------------------------------------------------- measuring


def _heldout_rows(
    recipe: Recipe, model: Decoder, heldout: dict[str, Shard], advance: Callable[[float], None] | None = None
) -> list[dict[str, Any]]:
    length = max(phase.sequence_length for phase in recipe.pretrain.phases)
    rows: list[dict[str, Any]] = []
    for domain, shard in heldout.items():
        made = bits_per_byte(model, shard, recipe.pretrain.evaluate_bytes, length, EVALUATION_ROWS)
        rows += [{"domain": domain, **row} for row in made]
        if advance is not None:
            advance(1)
    return rows


def _milestone(context: StageContext, heldout: dict[str, Shard], name: str) -> Callable[[int, Decoder], None]:
    def measure(step: int, model: Decoder) -> None:
        rows = _heldout_rows(context.recipe, model, heldout)
        context.write_rows(f"milestones/{name}.jsonl", rows)
        context.say(f"milestone {name}, step {step}: {_overall(rows):.4f} bits per byte")

    return measure


def _tracked(context: StageContext, heldout: dict[str, Shard]) -> Callable[[int, Decoder], None]:
    def measure(step: int, model: Decoder) -> None:
        rows = _heldout_rows(context.recipe, model, heldout)
        context.write_rows(f"{EVALUATIONS}/step-{step:06d}.jsonl", rows)
        context.track({"pretrain/bits_per_byte": _overall(rows)}, step)

    return measure


def _overall(rows: list[dict[str, Any]]) -> float:
    return float(sum(row["bits"] for row in rows) / max(1, sum(row["bytes"] for row in rows)))


def _heldout_metrics(context: StageContext, raw: str, heldout: dict[str, Shard], suffix: str) -> list[Metric]:
    if not heldout:
        return []
    found = [
        context.metric(f"bits_per_byte{suffix}", "ratio", raw, "bits", "bytes"),
        context.metric(f"perplexity{suffix}", "exp-ratio", raw, "nats", "tokens"),
    ]
    for domain in heldout:
        name = f"bits_per_byte/{domain}{suffix}"
        found.append(context.metric(name, "ratio", raw, "bits", "bytes", where={"domain": domain}))
    return found


def _compressors(context: StageContext, tokenizer: Tokenizer, heldout: dict[str, Shard]) -> list[Metric]:
    """gzip and xz see all documents of a domain in one stream, which favours them."""
    rows: list[dict[str, Any]] = []
    for domain, shard in heldout.items():
        documents = chosen_documents(shard, context.recipe.pretrain.evaluate_bytes)
        text = b"\n".join(tokenizer.decode_bytes(shard.tokens(i).tolist()) for i in documents)
        rows += [
            {"domain": domain, "compressor": name, "bits": bits, "bytes": len(text)}
            for name, bits in compressed_bits(text).items()
        ]
    raw = context.write_rows(COMPRESSED, rows)
    return [
        context.metric(
            f"{row['compressor']}_bits_per_byte/{row['domain']}", "ratio", raw, "bits", "bytes",
            where={"domain": row["domain"], "compressor": row["compressor"]},
        )
        for row in rows
    ]  # fmt: skip


def _training(context: StageContext, model: Decoder | RecursiveModel, summary: TrainSummary) -> list[Metric]:
    values = {
        "parameters": model.num_parameters(),
        "tokens": summary.tokens,
        "tokens_per_second": summary.tokens_per_second,
        "train_seconds": summary.seconds,
        "final_loss": summary.final_loss,
        "peak_memory_bytes": summary.peak_rss_bytes,
        "loader_wait_fraction": summary.wait_seconds / summary.seconds if summary.seconds else 0.0,
    }
    raw = context.write_rows(TRAINING, [values])
    return [context.metric(name, "scalar", raw, name) for name in values]


def _samples(model: Decoder, tokenizer: Tokenizer, heldout: dict[str, Shard]) -> list[dict[str, Any]]:
    """Held-out beginnings and what the model makes of them."""
    samples = []
    for domain, shard in heldout.items():
        for i in sorted(range(len(shard)), key=shard.id)[:SAMPLES_PER_DOMAIN]:
            ids = shard.tokens(i)[:SAMPLE_PROMPT].tolist()
            room = model.config.max_position_embeddings - len(ids)
            made = continuation(model, ids, min(SAMPLE_TOKENS, room), tokenizer.eos)
            samples.append(
                {"domain": domain, "prompt": tokenizer.decode(ids), "continuation": tokenizer.decode(made)}
            )
    return samples
