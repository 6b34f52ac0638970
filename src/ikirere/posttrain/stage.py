"""The stages `sft` (supervised fine-tuning) and `dpo` (preference optimisation)."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from ikirere.common.files import read_rows
from ikirere.errors import UserError
from ikirere.model.decoder import Decoder
from ikirere.model.hub import load_pretrained, save_pretrained
from ikirere.posttrain import checks, measures
from ikirere.posttrain.dpo import PairSource, Preference, pair_logprobs
from ikirere.posttrain.generate.row import Row, Split
from ikirere.posttrain.onpolicy import sampled_pairs
from ikirere.posttrain.pairs import PairRow, check_pair, encode_pairs, made_pairs, read_pairs
from ikirere.posttrain.rows import check_conversation, encode_all, read_conversations
from ikirere.posttrain.sft import SftSource
from ikirere.posttrain.stage_rows import kept_rows, mixed, sample_documents, shares
from ikirere.programme.identity import changed_settings
from ikirere.programme.metrics import Metric
from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Dpo, Sft, Training
from ikirere.tokenizer.base import Tokenizer
from ikirere.tools import sandbox
from ikirere.train.loop import Callbacks, Source, TrainSummary, train
from ikirere.train.objective import CrossEntropy, Objective
from ikirere.train.parallel import world_of

TRAIN, HELDOUT = "rows-train.jsonl", "rows-heldout.jsonl"
PAIRS, HELDOUT_PAIRS = "pairs.jsonl", "pairs-heldout.jsonl"
LOSSES, PREFERENCES, ANSWERS, TRAINING = (
    "losses.jsonl", "preferences.jsonl", "answers.jsonl", "training.jsonl",
)  # fmt: skip
HELDOUT_PER_KIND = 60  # conversations for the held-out loss and the held-out pairs
SAMPLES_PER_KIND = 3
PLAYED_PER_KIND = 8  # held-out questions answered before and after preference optimisation
TRAINING_METRICS = ("tokens", "tokens_per_second", "train_seconds", "peak_memory_bytes", "final_loss")
CONTINUABLE = ("steps", "batch_size", "precision", "optimizer", "schedule")  # settings open to `--go-on`


class SftStage(Stage):
    """Fine-tunes the pretrained model on conversations.

    Artifacts: model/, rows-train.jsonl, rows-heldout.jsonl, log.jsonl, losses.jsonl (one row per held-out
    conversation), samples.jsonl (held-out questions played with tools), training.jsonl. Metrics: heldout_loss and
    heldout_loss/<kind> (nats per trained token), tokens, tokens_per_second, train_seconds, peak_memory_bytes,
    final_loss.
    """

    name: ClassVar[str] = "sft"
    needs: ClassVar[tuple[str, ...]] = ("data", "tokenizer", "pretrain")
    makes: ClassVar[tuple[str, ...]] = ("heldout_loss", "heldout_loss/{kind}", *TRAINING_METRICS)
    outputs: ClassVar[tuple[str, ...]] = ("model", TRAIN, HELDOUT)
    trains: ClassVar[bool] = True

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        assert recipe.sft is not None
        return {"sft": checks.settings(recipe.sft, without=("rows_files",))}

    def external(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        files = recipe.sft.rows_files if recipe.sft else ()
        return {"sft.rows_files": checks.content_hash(files, recipe_folder)} if files else {}

    def surroundings(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        # Generated conversations quote Python's docstrings.
        return {"sft.mixture": f"python {platform.python_version()}"}

    def check(self, recipe: Recipe, recipe_folder: Path) -> None:
        assert recipe.sft is not None
        checks.check_stages(recipe, self.name, self.needs)
        shares(recipe.sft.mixture, recipe.sft.rows)
        checks.check_rows("sft.rows_files", recipe.sft.rows_files, recipe_folder, check_conversation)
        checks.check_training(recipe, self.name, recipe.sft)

    def can_go_on(self, changed: Iterable[str]) -> list[str]:
        """All but the number of steps, the batch size, the optimiser's numbers, the schedule and the number format."""
        return checks.refused(changed, [f"sft.{key}" for key in CONTINUABLE])

    def run(self, context: StageContext) -> StageResult:
        config = context.recipe.sft
        assert config is not None
        tokenizer = Tokenizer.load(_input(context, "tokenizer"))
        model = load_pretrained(_input(context, "pretrain") / "model", device=_device(context))
        rows, heldout = self._rows(context, config, tokenizer)
        encoded = encode_all(tokenizer, rows, config.sequence_length, context.say)
        world = world_of(config.parallel)
        source = SftSource(
            encoded, config.sequence_length, config.batch_size, tokenizer.pad, context.seed, world.rank, world.size
        )  # fmt: skip
        settings = self.config(context.recipe)
        summary = _train(context, model, source, CrossEntropy(), config, config.steps, settings)

        artifacts = [_save(context, model, tokenizer), TRAIN, HELDOUT, "log.jsonl", TRAINING]
        kept = encode_all(tokenizer, heldout, config.sequence_length, context.say)
        losses = measures.heldout_losses(model, heldout, kept, tokenizer.pad)
        artifacts.append(context.write_rows(LOSSES, losses))
        samples = _answers(context, model, tokenizer, _some(heldout, SAMPLES_PER_KIND))
        artifacts.append(context.write_rows("samples.jsonl", samples))
        metrics = [context.metric("heldout_loss", "ratio", LOSSES, "nats", "tokens")]
        for kind in dict.fromkeys(row["kind"] for row in losses):
            metrics.append(
                context.metric(
                    f"heldout_loss/{kind}", "ratio", LOSSES, "nats", "tokens", where={"kind": kind}
                )
            )
        return StageResult(metrics + _training_metrics(context, summary), artifacts)

    def _rows(self, context: StageContext, config: Sft, tokenizer: Tokenizer) -> tuple[list[Row], list[Row]]:
        """Training and held-out conversations, in the folder; those that a kill left there are kept."""
        data = _input(context, "data")
        if lacking := sandbox.describe():
            context.say(lacking)
        counts = shares(config.mixture, config.rows)
        made_from = [self.external(context.recipe, context.recipe_folder), config.mixture, context.seed]

        def train_rows() -> list[Row]:
            read: list[Row] = []
            for name in config.rows_files:
                read += read_conversations(name, context.recipe_folder, tokenizer)
            wanted = shares(config.mixture, max(1, config.rows - len(read)))
            return made(wanted, "train", "documents-train.parquet") + read

        def made(counts: Mapping[str, int], split: Split, documents: str) -> list[Row]:
            with context.progress(f"{split} conversations", sum(counts.values()), "rows") as bar:
                texts = sample_documents(data / documents, context.seed)
                return mixed(counts, context.seed, split, texts, context.say, bar.advance)

        held = dict.fromkeys(counts, HELDOUT_PER_KIND)
        rows = kept_rows(context.folder, TRAIN, [made_from, config.rows], train_rows)
        heldout = kept_rows(
            context.folder, HELDOUT, [made_from, held],
            lambda: made(held, "heldout", "documents-heldout.parquet"),
        )  # fmt: skip
        return rows, heldout


class DpoStage(Stage):
    """Prefers right, short and well-tooled answers, against the frozen SFT model.

    Artifacts: model/, pairs.jsonl, pairs-heldout.jsonl, log.jsonl, preferences.jsonl (one row per held-out pair),
    losses.jsonl (one per held-out conversation), answers.jsonl (held-out questions before and after), training.jsonl.
    Metrics: win_rate and win_rate/<reason> (implicit reward prefers the chosen answer), prefers_chosen/before and
    /after (plain log-probabilities), win_rate_uplift (their difference, paired), on_policy (share of training
    pairs), answer_tokens/before and /after, heldout_loss, tokens, tokens_per_second, train_seconds,
    peak_memory_bytes, final_loss.
    """

    name: ClassVar[str] = "dpo"
    needs: ClassVar[tuple[str, ...]] = ("tokenizer", "sft")
    makes: ClassVar[tuple[str, ...]] = (
        "win_rate",
        "win_rate/{reason}",
        "prefers_chosen/before",
        "prefers_chosen/after",
        "win_rate_uplift",
        "on_policy",
        "answer_tokens/before",
        "answer_tokens/after",
        "heldout_loss",
        *TRAINING_METRICS,
    )
    outputs: ClassVar[tuple[str, ...]] = ("model",)
    trains: ClassVar[bool] = True

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        assert recipe.dpo is not None
        return {
            "dpo": checks.settings(recipe.dpo, without=("pairs_files", "heldout_pairs", "reference_device"))
        }

    def measuring(self, recipe: Recipe) -> Mapping[str, Any]:
        assert recipe.dpo is not None
        return {"dpo": {"heldout_pairs": recipe.dpo.heldout_pairs}}

    def external(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        files = recipe.dpo.pairs_files if recipe.dpo else ()
        return {"dpo.pairs_files": checks.content_hash(files, recipe_folder)} if files else {}

    def check(self, recipe: Recipe, recipe_folder: Path) -> None:
        assert recipe.dpo is not None
        checks.check_stages(recipe, self.name, self.needs)
        checks.check_rows("dpo.pairs_files", recipe.dpo.pairs_files, recipe_folder, check_pair)
        checks.check_training(recipe, self.name, recipe.dpo)

    def can_go_on(self, changed: Iterable[str]) -> list[str]:
        """All but the number of steps, the batch size, the loss, the optimiser's numbers, the schedule and the number
        format."""
        keys = (*CONTINUABLE, "beta", "loss", "sft_weight")
        return checks.refused(changed, [f"dpo.{key}" for key in keys])

    def run(self, context: StageContext) -> StageResult:
        config = context.recipe.dpo
        assert config is not None
        sft = _input(context, "sft")
        tokenizer = Tokenizer.load(_input(context, "tokenizer"))
        device = _device(context)
        model = load_pretrained(sft / "model", device=device)
        heldout: list[Row] = read_rows(sft / HELDOUT)  # type: ignore[assignment]
        played = _some(heldout, PLAYED_PER_KIND)
        before = kept_rows(
            context.folder, "answers-before.jsonl", len(played),
            lambda: _answers(context, model, tokenizer, played),
        )  # fmt: skip
        pairs = self._pairs(context, config, model, tokenizer, sft / TRAIN, PAIRS)
        tests = self._pairs(context, config, model, tokenizer, sft / HELDOUT, HELDOUT_PAIRS)
        pairs, encoded = encode_pairs(tokenizer, pairs, config.sequence_length, context.say)
        tests, held = encode_pairs(tokenizer, tests, config.sequence_length, context.say)

        model.to("cpu" if config.reference_device == "cpu" else device)
        with context.progress("reference log-probabilities", len(pairs) + len(tests), "pairs") as bar:
            reference = pair_logprobs(model, encoded, tokenizer.pad, on_batch=bar.advance)
            reference_held = pair_logprobs(model, held, tokenizer.pad, on_batch=bar.advance)
        model.to(device)
        world = world_of(config.parallel)
        source = PairSource(
            encoded, reference, config.sequence_length, config.batch_size, tokenizer.pad, context.seed,
            world.rank, world.size,
        )  # fmt: skip
        objective = Preference(config.beta, config.loss, config.sft_weight)
        settings = self.config(context.recipe)
        summary = _train(context, model, source, objective, config, config.steps, settings)

        artifacts = [_save(context, model, tokenizer), PAIRS, HELDOUT_PAIRS, "log.jsonl", TRAINING]
        results = measures.preferences(model, tests, held, reference_held, tokenizer.pad)
        artifacts.append(context.write_rows(PREFERENCES, results))
        rows = encode_all(tokenizer, heldout, config.sequence_length, context.say)
        losses = measures.heldout_losses(model, heldout, rows, tokenizer.pad)
        artifacts.append(context.write_rows(LOSSES, losses))
        after = _answers(context, model, tokenizer, played)
        artifacts.append(context.write_rows(ANSWERS, measures.before_and_after(before, after)))
        metrics = self._metrics(context, results)
        return StageResult(metrics + _training_metrics(context, summary), artifacts)

    def _pairs(
        self,
        context: StageContext,
        config: Dpo,
        model: Decoder,
        tokenizer: Tokenizer,
        rows_file: Path,
        name: str,
    ) -> list[PairRow]:
        """Pairs of files, sampled pairs and corrupted pairs, in this order of precedence, in the folder; those that a
        kill left there are kept. `model` is the SFT model."""
        heldout = name == HELDOUT_PAIRS
        wanted = config.heldout_pairs if heldout else config.pairs
        files = () if heldout else config.pairs_files

        def made() -> list[PairRow]:
            rows: list[Row] = read_rows(rows_file)  # type: ignore[assignment]
            read: list[PairRow] = []
            for file in files:
                read += read_pairs(file, context.recipe_folder, tokenizer)
            rest = max(0, wanted - len(read))
            asked = round(rest * config.on_policy)
            engine = measures.answering_engine(model, tokenizer)
            label = "sampling pairs" + (" (held out)" if heldout else "")
            with context.progress(label, asked, "pairs") as bar:
                sampled = sampled_pairs(
                    engine, tokenizer, rows, asked, context.seed, config.sequence_length, bar.advance
                )
            engine.close()
            if len(sampled) < asked:
                context.say(
                    f"{name}: the model's own answers gave {len(sampled)} of {asked} pairs; the others are corrupted "
                    "from right answers"
                )
            return [*read, *sampled, *made_pairs(rows, rest - len(sampled), context.seed)]

        made_from = [
            wanted, config.on_policy, config.sequence_length, context.seed,
            checks.content_hash(files, context.recipe_folder),
        ]  # fmt: skip
        return kept_rows(context.folder, name, made_from, made)

    def _metrics(self, context: StageContext, results: Sequence[measures.PreferenceResult]) -> list[Metric]:
        metric = context.metric
        made = [metric("win_rate", "proportion", PREFERENCES, "win")]
        for reason in dict.fromkeys(row["reason"] for row in results):
            name = f"win_rate/{reason.replace(' ', '_')}"
            made.append(metric(name, "proportion", PREFERENCES, "win", where={"reason": reason}))
        return [
            *made,
            metric("prefers_chosen/before", "proportion", PREFERENCES, "prefers_before"),
            metric("prefers_chosen/after", "proportion", PREFERENCES, "prefers_after"),
            metric("win_rate_uplift", "difference", PREFERENCES, "prefers_after", "prefers_before"),
            metric("on_policy", "proportion", PAIRS, "on_policy"),
            metric("answer_tokens/before", "mean", ANSWERS, "answer_tokens_before"),
            metric("answer_tokens/after", "mean", ANSWERS, "answer_tokens"),
            metric("heldout_loss", "ratio", LOSSES, "nats", "tokens"),
        ]


# ---------------------------------------------------------------- what both stages do


def _input(context: StageContext, stage: str) -> Path:
    if stage not in context.inputs:
        raise UserError(f"stages: {context.folder.name} needs the stage {stage} before it")
    return context.inputs[stage]


def _device(context: StageContext) -> torch.device:
    cuda = context.recipe.hardware.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


def _train(
    context: StageContext,
    model: Decoder,
    source: Source,
    objective: Objective,
    training: Training,
    steps: int,
    settings: Mapping[str, Any],
) -> TrainSummary:
    callbacks = Callbacks(
        progress=context.progress,
        say=context.say,
        track=context.track,
        go_on=changed_settings(context.continued, settings),
        label=type(training).__name__.lower(),
    )
    return train(
        model, source, objective, training, steps, context.folder, context.seed, callbacks,
        key=context.key, accepted=context.accepted,
    )  # fmt: skip


def _save(context: StageContext, model: Decoder, tokenizer: Tokenizer) -> str:
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}
    save_pretrained(model, context.folder / "model", ids)
    tokenizer.save(context.folder / "model")
    return "model"


def _answers(
    context: StageContext, model: Decoder, tokenizer: Tokenizer, rows: Sequence[Row]
) -> list[measures.PlayedQuestion]:
    engine = measures.answering_engine(model, tokenizer)
    with context.progress("answering held-out questions", len(rows), "questions") as bar:
        played = measures.play(engine, tokenizer, rows, lambda index, completion: bar.advance(1))
    engine.close()
    return played


def _some(rows: Sequence[Row], per_kind: int) -> list[Row]:
    """The first `per_kind` rows of each kind."""
    counts: dict[str, int] = {}
    kept = []
    for row in rows:
        counts[row["kind"]] = counts.get(row["kind"], 0) + 1
        if counts[row["kind"]] <= per_kind:
            kept.append(row)
    return kept


def _training_metrics(context: StageContext, summary: TrainSummary) -> list[Metric]:
    values = {
        "tokens": summary.tokens,
        "tokens_per_second": summary.tokens_per_second,
        "train_seconds": summary.seconds,
        "peak_memory_bytes": summary.peak_rss_bytes,
        "final_loss": summary.final_loss,
    }
    context.write_rows(TRAINING, [values])
    return [context.metric(name, "scalar", TRAINING, name) for name in values]
