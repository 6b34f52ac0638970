"""The stages `sft` (supervised fine-tuning) and `dpo` (preference optimisation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from ikirere.common.files import read_rows
from ikirere.errors import UserError
from ikirere.model.decoder import Decoder
from ikirere.model.hub import load_pretrained, save_pretrained
from ikirere.posttrain import measures
from ikirere.posttrain.dpo import PairSource, Preference, pair_logprobs
from ikirere.posttrain.generate.row import Row
from ikirere.posttrain.onpolicy import sampled_pairs
from ikirere.posttrain.pairs import PairRow, encode_pairs, made_pairs, read_pairs
from ikirere.posttrain.rows import encode_all, read_conversations
from ikirere.posttrain.sft import SftSource
from ikirere.posttrain.stage_rows import files_fingerprint, fingerprint, mixed, sample_documents, shares
from ikirere.programme.metrics import Metric
from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Dpo, Sft, Training
from ikirere.serve.engine.engine import Engine
from ikirere.tokenizer.base import Tokenizer
from ikirere.tools import sandbox
from ikirere.train.loop import Callbacks, Source, TrainSummary, train
from ikirere.train.objective import CrossEntropy, Objective
from ikirere.train.parallel import world_of

TRAIN, HELDOUT = "rows-train.jsonl", "rows-heldout.jsonl"
PAIRS, HELDOUT_PAIRS = "pairs.jsonl", "pairs-heldout.jsonl"
HELDOUT_PER_KIND = 60  # conversations for the held-out loss and the held-out pairs
SAMPLES_PER_KIND = 3
PLAYED_PER_KIND = 8  # held-out questions answered before and after preference optimisation
SLOTS, CONTEXT = 32, 1024  # of the engine that answers questions: generated ones are short


def _python() -> str:
    """The Python version: generated conversations quote its docstrings."""
    import platform

    return f"python {platform.python_version()}"


def _input(context: StageContext, stage: str) -> Path:
    if stage not in context.inputs:
        raise UserError(f"stages: {Path(context.folder).name} needs the stage {stage} before it")
    return context.inputs[stage]


def _device(context: StageContext) -> torch.device:
    wanted = "cpu" if context.recipe.hardware.device == "cpu" else "cuda"
    return torch.device(wanted if wanted == "cpu" or torch.cuda.is_available() else "cpu")


def _scalars(context: StageContext, name: str, values: Mapping[str, float]) -> list[Metric]:
    raw = context.write_rows(name, [dict(values)])
    return [context.metric(key, "scalar", raw, key) for key in values]


def _by_kind(context: StageContext, raw: str, rows: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """Held-out loss in nats per trained token: of all conversations, and by kind."""
    made = [context.metric("heldout_loss", "ratio", raw, "nats", "tokens")]
    for kind in dict.fromkeys(str(row["kind"]) for row in rows):
        made.append(
            context.metric(f"heldout_loss/{kind}", "ratio", raw, "nats", "tokens", where={"kind": kind})
        )
    return made


def _some(rows: Sequence[Row], per_kind: int) -> list[Row]:
    counts: dict[str, int] = {}
    kept = []
    for row in rows:
        counts[row["kind"]] = counts.get(row["kind"], 0) + 1
        if counts[row["kind"]] <= per_kind:
            kept.append(row)
    return kept


def _train(
    context: StageContext,
    model: Decoder,
    source: Source,
    objective: Objective,
    training: Training,
    steps: int,
    key: str,
) -> TrainSummary:
    label = type(training).__name__.lower()
    callbacks = Callbacks(progress=context.progress, say=context.say, track=context.track, label=label)
    return train(model, source, objective, training, steps, context.folder, context.seed, callbacks, key)


def _speed(summary: TrainSummary) -> dict[str, float]:
    return {
        "tokens": summary.tokens,
        "tokens_per_second": summary.tokens_per_second,
        "train_seconds": summary.seconds,
        "peak_memory_bytes": summary.peak_rss_bytes,
        "final_loss": summary.final_loss,
    }


def _save(context: StageContext, model: Decoder, tokenizer: Tokenizer) -> str:
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}
    save_pretrained(model, context.folder / "model", ids)
    tokenizer.save(context.folder / "model")
    return "model"


def _engine(model: Decoder, tokenizer: Tokenizer) -> Engine:
    return Engine(model, tokenizer, SLOTS, min(CONTEXT, model.config.max_position_embeddings))


def _play(
    context: StageContext, engine: Engine, tokenizer: Tokenizer, rows: Sequence[Row]
) -> list[dict[str, Any]]:
    with context.progress("answering held-out questions", len(rows), "questions") as bar:
        return measures.play(engine, tokenizer, rows, lambda index, completion: bar.advance(1))


class SftStage(Stage):
    """Fine-tunes the pretrained model on conversations.

    Artifacts: model/, rows-train.jsonl, rows-heldout.jsonl, log.jsonl, losses.jsonl (one row per held-out
    conversation), samples.jsonl (held-out questions played with tools), training.jsonl. Metrics: heldout_loss and
    heldout_loss/<kind> (nats per trained token), tokens, tokens_per_second, peak_memory_bytes, final_loss.
    """

    name: ClassVar[str] = "sft"
    needs: ClassVar[tuple[str, ...]] = ("data", "tokenizer", "pretrain")

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        assert recipe.sft is not None
        return {**recipe.sft.model_dump(mode="json"), "device": recipe.hardware.device}

    def external(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        files = recipe.sft.rows_files if recipe.sft else ()
        return {"sft.rows_files": files_fingerprint(files, recipe_folder)} if files else {}

    def surroundings(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        return {"sft.mixture": _python()}

    def run(self, context: StageContext) -> StageResult:
        config = context.recipe.sft
        assert config is not None
        tokenizer = Tokenizer.load(_input(context, "tokenizer"))
        model = load_pretrained(_input(context, "pretrain") / "model", device=_device(context))
        rows, heldout = self._rows(context, config, tokenizer)
        encoded = encode_all(tokenizer, rows, config.sequence_length, context.say)
        world = world_of(config.parallel)
        source = SftSource(
            encoded,
            config.sequence_length,
            config.batch_size,
            tokenizer.pad,
            context.seed,
            world.rank,
            world.size,
        )
        key = fingerprint(config.model_dump(mode="json"), source.fingerprint)
        summary = _train(context, model, source, CrossEntropy(), config, config.steps, key)
        artifacts = [_save(context, model, tokenizer), TRAIN, HELDOUT, "log.jsonl", "training.jsonl"]
        kept = encode_all(tokenizer, heldout, config.sequence_length, context.say)
        losses = measures.heldout_losses(model, heldout, kept, tokenizer.pad)
        artifacts.append(context.write_rows("losses.jsonl", losses))
        engine = _engine(model, tokenizer)
        samples = _play(context, engine, tokenizer, _some(heldout, SAMPLES_PER_KIND))
        engine.close()
        artifacts.append(context.write_rows("samples.jsonl", samples))
        metrics = _by_kind(context, "losses.jsonl", losses)
        return StageResult(metrics + _scalars(context, "training.jsonl", _speed(summary)), artifacts)

    def _rows(self, context: StageContext, config: Sft, tokenizer: Tokenizer) -> tuple[list[Row], list[Row]]:
        """Training and held-out conversations, written to the folder."""
        data = _input(context, "data")
        if lacking := sandbox.describe():
            context.say(lacking)
        read: list[Any] = []
        for name in config.rows_files:
            read += read_conversations(name, context.recipe_folder, tokenizer)
        counts = shares(config.mixture, max(1, config.rows - len(read)))
        held = dict.fromkeys(counts, HELDOUT_PER_KIND)
        with context.progress("conversations", sum(counts.values()) + sum(held.values()), "rows") as bar:
            documents = sample_documents(data / "documents-train.parquet", context.seed)
            rows = mixed(counts, context.seed, "train", documents, context.say, bar.advance)
            documents = sample_documents(data / "documents-heldout.parquet", context.seed)
            heldout = mixed(held, context.seed, "heldout", documents, context.say, bar.advance)
        rows += read
        context.write_rows(TRAIN, rows)
        context.write_rows(HELDOUT, heldout)
        return rows, heldout


class DpoStage(Stage):
    """Prefers right, short and well-tooled answers, against the frozen SFT model.

    Artifacts: model/, pairs.jsonl, pairs-heldout.jsonl, log.jsonl, preferences.jsonl (one row per held-out pair),
    losses.jsonl (one per held-out conversation), answers.jsonl (held-out questions before and after), training.jsonl.
    Metrics: win_rate and win_rate/<reason> (implicit reward prefers the chosen answer), prefers_chosen/before and
    /after (plain log-probabilities), win_rate_uplift (their difference, paired), on_policy (share of training
    pairs), answer_tokens/before and /after, heldout_loss, tokens, tokens_per_second, peak_memory_bytes.
    """

    name: ClassVar[str] = "dpo"
    needs: ClassVar[tuple[str, ...]] = ("data", "tokenizer", "sft")

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        assert recipe.dpo is not None
        return {**recipe.dpo.model_dump(mode="json"), "device": recipe.hardware.device}

    def external(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        files = recipe.dpo.pairs_files if recipe.dpo else ()
        return {"dpo.pairs_files": files_fingerprint(files, recipe_folder)} if files else {}

    def run(self, context: StageContext) -> StageResult:
        config = context.recipe.dpo
        assert config is not None
        sft = _input(context, "sft")
        tokenizer = Tokenizer.load(_input(context, "tokenizer"))
        device = _device(context)
        model = load_pretrained(sft / "model", device=device)
        heldout: list[Any] = read_rows(sft / HELDOUT)
        played = _some(heldout, PLAYED_PER_KIND)
        before = self._before(context, model, tokenizer, played)
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
            encoded,
            reference,
            config.sequence_length,
            config.batch_size,
            tokenizer.pad,
            context.seed,
            world.rank,
            world.size,
        )
        key = fingerprint(config.model_dump(mode="json"), source.fingerprint)
        objective = Preference(config.beta, config.loss, config.sft_weight)
        summary = _train(context, model, source, objective, config, config.steps, key)

        artifacts = [_save(context, model, tokenizer), PAIRS, HELDOUT_PAIRS, "log.jsonl", "training.jsonl"]
        results = measures.preferences(model, tests, held, reference_held, tokenizer.pad)
        artifacts.append(context.write_rows("preferences.jsonl", results))
        rows = encode_all(tokenizer, heldout, config.sequence_length, context.say)
        losses = measures.heldout_losses(model, heldout, rows, tokenizer.pad)
        artifacts.append(context.write_rows("losses.jsonl", losses))
        artifacts.append(self._answers(context, model, tokenizer, played, before))
        return StageResult(self._metrics(context, results, summary), artifacts)

    def _before(
        self, context: StageContext, model: Decoder, tokenizer: Tokenizer, rows: Sequence[Row]
    ) -> list[dict[str, Any]]:
        """Held-out questions answered by the SFT model; kept over a kill."""
        path = context.folder / "answers-before.jsonl"
        if not path.exists():
            engine = _engine(model, tokenizer)
            context.write_rows(path.name, _play(context, engine, tokenizer, rows))
            engine.close()
        return read_rows(path)

    def _pairs(
        self,
        context: StageContext,
        config: Dpo,
        model: Decoder,
        tokenizer: Tokenizer,
        rows_file: Path,
        name: str,
    ) -> list[Any]:
        """Pairs of files, sampled pairs and made pairs, in that order of right; kept over a kill."""
        if (context.folder / name).exists():
            return read_rows(context.folder / name)
        rows = read_rows(rows_file)
        heldout = name == HELDOUT_PAIRS
        wanted = config.heldout_pairs if heldout else config.pairs
        read: list[PairRow] = []
        for file in () if heldout else config.pairs_files:
            read += read_pairs(file, context.recipe_folder, tokenizer)
        rest = max(0, wanted - len(read))
        engine = _engine(model, tokenizer)
        asked = round(rest * config.on_policy)
        with context.progress("sampling pairs" + (" (held out)" if heldout else ""), asked, "pairs") as bar:
            sampled = sampled_pairs(
                engine, tokenizer, rows, asked, context.seed, config.sequence_length, bar.advance
            )
        engine.close()
        if len(sampled) < asked:
            context.say(
                f"{name}: the model's own answers gave {len(sampled)} of {asked} pairs; the others are made"
            )
        made = made_pairs(rows, rest - len(sampled), context.seed)
        context.write_rows(name, read + sampled + made)
        return [*read, *sampled, *made]

    def _answers(
        self,
        context: StageContext,
        model: Decoder,
        tokenizer: Tokenizer,
        rows: Sequence[Row],
        before: Sequence[Mapping[str, Any]],
    ) -> str:
        engine = _engine(model, tokenizer)
        after = _play(context, engine, tokenizer, rows)
        engine.close()
        return context.write_rows(
            "answers.jsonl",
            (
                {**new, "messages_before": old["messages"], "answer_tokens_before": old["answer_tokens"]}
                for old, new in zip(before, after, strict=True)
            ),
        )

    def _metrics(
        self, context: StageContext, results: Sequence[Mapping[str, Any]], summary: TrainSummary
    ) -> list[Metric]:
        raw, metric = "preferences.jsonl", context.metric
        made = [metric("win_rate", "proportion", raw, "win")]
        for reason in dict.fromkeys(str(r["reason"]) for r in results):
            name = f"win_rate/{reason.replace(' ', '_')}"
            made.append(metric(name, "proportion", raw, "win", where={"reason": reason}))
        made += [
            metric("prefers_chosen/before", "proportion", raw, "prefers_before"),
            metric("prefers_chosen/after", "proportion", raw, "prefers_after"),
            metric("win_rate_uplift", "difference", raw, "prefers_after", "prefers_before"),
            metric("on_policy", "proportion", PAIRS, "on_policy"),
            metric("answer_tokens/before", "mean", "answers.jsonl", "answer_tokens_before"),
            metric("answer_tokens/after", "mean", "answers.jsonl", "answer_tokens"),
            metric("heldout_loss", "ratio", "losses.jsonl", "nats", "tokens"),
        ]
        return made + _scalars(context, "training.jsonl", _speed(summary))
