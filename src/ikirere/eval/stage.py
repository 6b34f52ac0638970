"""The stage `evaluate`: held-out questions played through the engine, and bits per byte of the finished model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from ikirere.common.files import read_rows, write_json
from ikirere.errors import UserError
from ikirere.eval.suites import SLOTS, Settings, play, samples
from ikirere.model.decoder import Decoder
from ikirere.model.hub import load_model, load_pretrained
from ikirere.posttrain.generate import conversations
from ikirere.posttrain.stage_rows import sample_documents
from ikirere.pretrain.families import FAMILIES
from ikirere.pretrain.family import Family, paired
from ikirere.programme.metrics import Metric
from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.serve.engine.cpu_threads import fit_threads
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokens.shards import Shard, open_shards
from ikirere.tools import sandbox

QUESTIONS, PAIRED, BITS, SAMPLES = "questions.jsonl", "paired.jsonl", "bits.jsonl", "samples.json"
WITHOUT = "calculator-without-tool"  # the calculator's questions once more, without any tool
BLANKS, LANGUAGE = "blanks.jsonl", "language.jsonl"
DOCUMENTS = "documents-heldout.parquet"


class EvaluateStage(Stage):
    """Judges the aligned model (dpo, else sft); without one the base model, which is asked no questions.

    Artifacts: answers/<kind>.jsonl and answers/calculator-without-tool.jsonl (question, produced messages, scores,
    one row per question), questions.jsonl (the scores that are taken over all kinds), paired.jsonl (calculator
    questions with and without the tool), bits.jsonl, samples.json (some of each kind, to show).
    Metrics: right_tool/<kind>, right_arguments/<kind>, answer/<kind>, no_tool_when_not_needed,
    answer_without_tool/calculator, tool_gain (paired difference), tool_calls and seconds_per_question (means),
    bits_per_byte/<domain>, perplexity (per token, all domains), perplexity_ratio/<domain> (over that of pretrain's
    milestone `evaluate.compare_to`, on the same documents; language.jsonl). A kind whose questions expect no call has no right_arguments.

    A recursive model writes no text: pretrain's is measured on the blanks of held-out rows (blanks.jsonl; perplexity,
    perplexity/<domain>, exact/<domain>) and beside that milestone (language.jsonl; perplexity_ratio/<domain>, over
    that milestone's, on the same rows).
    """

    name: ClassVar[str] = "evaluate"
    needs: ClassVar[tuple[str, ...]] = ("data", "tokenizer", "shards", "pretrain", "sft", "dpo")

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        return {
            "evaluate": recipe.evaluate.model_dump(mode="json"),
            "bytes": recipe.pretrain.evaluate_bytes,
            "sequence_length": _window(recipe),
            "device": recipe.hardware.device,
        }

    def run(self, context: StageContext) -> StageResult:
        if context.recipe.model.family == "recursive":
            return _recursive(context)
        folder = _model_folder(context)
        device = torch.device(
            "cuda" if context.recipe.hardware.device != "cpu" and torch.cuda.is_available() else "cpu"
        )
        model = load_pretrained(folder, device=device).eval()
        tokenizer = Tokenizer.load(folder)
        if lacking := sandbox.describe():
            context.say(lacking)
        result = StageResult()
        before = torch.get_num_threads()
        try:
            fit_threads(model, SLOTS)
            if folder.parent.name != "pretrain":
                _questions(context, model, tokenizer, result)
            elif context.recipe.evaluate.questions:
                context.say("evaluate.questions: a base model is not asked; they need the stage sft or dpo")
        finally:
            torch.set_num_threads(before)
        _bits(context, model, tokenizer, result)
        return result


def _window(recipe: Recipe) -> int:
    """Tokens seen at once: as at the end of pretraining, so that the figures can be compared."""
    return recipe.pretrain.phases[-1].sequence_length


def _model_folder(context: StageContext) -> Path:
    for stage in ("dpo", "sft", "pretrain"):
        if stage in context.inputs:
            return context.inputs[stage] / "model"
    raise UserError("stages: evaluate needs the stage pretrain, sft or dpo before it")


# ---------------------------------------------------------------- questions


def _questions(context: StageContext, model: Decoder, tokenizer: Tokenizer, result: StageResult) -> None:
    rows = _rows(context)
    if not rows:
        return
    section = context.recipe.evaluate
    settings = Settings(section.temperature, section.max_new_tokens, context.seed)
    suites = {kind: (some, True) for kind, some in rows.items()}
    if "calculator" in rows:
        suites[WITHOUT] = (rows["calculator"], False)
    scored: dict[str, list[dict[str, Any]]] = {}
    total = sum(len(some) for some, _ in suites.values())
    with context.progress("held-out questions", total, "questions") as bar:
        for name, (some, with_tools) in suites.items():
            scored[name] = play(model, tokenizer, some, settings, with_tools, bar.advance)
            if len(scored[name]) < len(some):
                context.say(
                    f"{name}: {len(some) - len(scored[name])} of {len(some)} questions are longer than the "
                    f"model's context of {model.config.max_position_embeddings} tokens and left out"
                )
    scored = {name: some for name, some in scored.items() if some}
    for name, some in scored.items():
        untimed = ({key: value for key, value in row.items() if key != "seconds"} for row in some)
        result.artifacts.append(context.write_rows(f"answers/{name}.jsonl", untimed))
        if name != WITHOUT:
            result.metrics += _of_kind(context, name, some)
    result.metrics += _over_kinds(context, scored, result.artifacts)


def _rows(context: StageContext) -> dict[str, list[Any]]:
    """Held-out conversations by kind; a line where there are fewer than the recipe asks for."""
    wanted = context.recipe.evaluate.questions
    if not wanted:
        context.say("evaluate.questions is empty: no questions are asked")
        return {}
    if "data" not in context.inputs:
        raise UserError("stages: evaluate.questions needs the stage data before evaluate")
    documents = sample_documents(context.inputs["data"] / DOCUMENTS, context.seed)
    rows: dict[str, list[Any]] = {}
    for kind, count in wanted.items():
        rows[kind] = list(conversations(kind, count, context.seed, "heldout", documents))
        if len(rows[kind]) < count:
            context.say(f"kind {kind}: {len(rows[kind])} different held-out questions, {count} were wanted")
    return rows


def _of_kind(context: StageContext, kind: str, scored: Sequence[Mapping[str, Any]]) -> list[Metric]:
    def proportion(name: str, field: str, where: dict[str, Any] | None = None) -> Metric:
        raw = f"answers/{kind}.jsonl"
        confidence = context.recipe.evaluate.confidence
        return context.metric(f"{name}/{kind}", "proportion", raw, field, where=where, confidence=confidence)

    metrics: list[Metric] = []
    if any(row["offered"] for row in scored):
        metrics.append(proportion("right_tool", "right_tool", {"offered": 1}))
    if any(row["needs_tool"] for row in scored):
        metrics.append(proportion("right_arguments", "right_arguments", {"needs_tool": 1}))
    if any(row["has_answer"] for row in scored):
        metrics.append(proportion("answer", "right_answer", {"has_answer": 1}))
    return metrics


def _over_kinds(
    context: StageContext, scored: Mapping[str, list[dict[str, Any]]], artifacts: list[str]
) -> list[Metric]:
    """Metrics over all kinds, and those that compare with and without the tool."""
    keys = ("id", "kind", "needs_tool", "offered", "no_tool", "tool_calls", "sampled_tokens", "seconds")
    asked = [row for name, some in scored.items() if name != WITHOUT for row in some]
    if not asked:
        return []
    confidence = context.recipe.evaluate.confidence
    artifacts.append(context.write_rows(QUESTIONS, ({key: row[key] for key in keys} for row in asked)))
    write_json(context.folder / SAMPLES, samples(asked))
    artifacts.append(SAMPLES)
    metrics = [
        context.metric("tool_calls", "mean", QUESTIONS, "tool_calls", confidence=confidence),
        context.metric("seconds_per_question", "mean", QUESTIONS, "seconds", confidence=confidence),
    ]
    unneeded = {"needs_tool": 0, "offered": 1}
    if any(row["offered"] and not row["needs_tool"] for row in asked):
        metrics.append(
            context.metric(
                "no_tool_when_not_needed",
                "proportion",
                QUESTIONS,
                "no_tool",
                where=unneeded,
                confidence=confidence,
            )
        )
    if WITHOUT not in scored or "calculator" not in scored:
        return metrics
    without = {row["id"]: row["right_answer"] for row in scored[WITHOUT]}
    paired = [
        {"id": row["id"], "with_tool": row["right_answer"], "without_tool": without[row["id"]]}
        for row in scored["calculator"]
        if row["id"] in without
    ]
    if paired:
        artifacts.append(context.write_rows(PAIRED, paired))
        metrics += [
            context.metric(
                "answer_without_tool/calculator", "proportion", PAIRED, "without_tool", confidence=confidence
            ),
            context.metric(
                "tool_gain", "difference", PAIRED, "with_tool", "without_tool", confidence=confidence
            ),
        ]
    return metrics


# ---------------------------------------------------------------- recursive models


def _recursive(context: StageContext) -> StageResult:
    """Blanks of held-out rows after all supervision steps, and the change since a milestone."""
    recipe = context.recipe
    if "pretrain" not in context.inputs or "shards" not in context.inputs:
        raise UserError(
            "stages: evaluate needs the stages shards and pretrain before it for a recursive model"
        )
    folder = context.inputs["pretrain"]
    model, tokenizer = load_model(folder / "model"), Tokenizer.load(folder / "model")
    if recipe.hardware.device != "cpu" and torch.cuda.is_available():
        model = model.to("cuda")
    shards = open_shards(context.inputs["shards"] / "shards", tokenizer_sha256=tokenizer.sha256)
    heldout = {
        domain: shard
        for (domain, split), shard in sorted(shards.items())
        if split == "heldout" and len(shard)
    }
    with context.progress("held-out blanks", len(heldout), "domains") as bar:
        family = FAMILIES[model.config.family](recipe, tokenizer)
        rows = family.heldout_rows(model, heldout, _window(recipe), bar.advance)
    result = StageResult()
    if not rows:
        return result
    result.artifacts.append(context.write_rows(BLANKS, rows))
    confidence = recipe.evaluate.confidence
    result.metrics.append(context.metric("perplexity", "exp-ratio", BLANKS, "nats", "tokens"))
    for domain in heldout:
        where = {"domain": domain}
        result.metrics += [
            context.metric(f"perplexity/{domain}", "exp-ratio", BLANKS, "nats", "tokens", where=where),
            context.metric(
                f"exact/{domain}", "proportion", BLANKS, "exact", where=where, confidence=confidence
            ),
        ]
    _since_milestone(context, family, model, heldout, rows, result)
    return result


def _since_milestone(
    context: StageContext,
    family: Family,
    model: Any,
    heldout: Mapping[str, Shard],
    rows: Sequence[dict[str, Any]],
    result: StageResult,
) -> None:
    """perplexity_ratio/<domain>: over that of a milestone of pretraining, on the same documents at its length."""
    milestones = context.recipe.pretrain.milestones
    if not milestones or "pretrain" not in context.inputs:
        return
    chosen = context.recipe.evaluate.compare_to or milestones[0].name
    path = context.inputs["pretrain"] / "milestones" / f"{chosen}.jsonl"
    before = read_rows(path) if path.exists() else []
    length = before[0].get("sequence_length", _window(context.recipe)) if before else 0
    if before and length != _window(context.recipe):
        shared = {row["domain"] for row in before}
        rows = family.heldout_rows(model, {d: s for d, s in heldout.items() if d in shared}, length)
    changes = [
        {"domain": row["domain"], "nats": row["nats"] - old["nats"], "tokens": row["tokens"]}
        for row, old in paired(rows, before)
    ]
    if not changes:
        return
    result.artifacts.append(context.write_rows(LANGUAGE, changes))
    for domain in dict.fromkeys(row["domain"] for row in changes):
        name, where = f"perplexity_ratio/{domain}", {"domain": domain}
        result.metrics.append(context.metric(name, "exp-ratio", LANGUAGE, "nats", "tokens", where=where))


# ---------------------------------------------------------------- bits per byte


def _bits(context: StageContext, model: Decoder, tokenizer: Tokenizer, result: StageResult) -> None:
    if "shards" not in context.inputs:
        return
    shards = open_shards(context.inputs["shards"] / "shards", tokenizer_sha256=tokenizer.sha256)
    heldout = {
        domain: shard
        for (domain, split), shard in sorted(shards.items())
        if split == "heldout" and len(shard)
    }
    family = FAMILIES[model.config.family](context.recipe, tokenizer)
    with context.progress(family.label, len(heldout), "domains") as bar:
        rows = family.heldout_rows(model, heldout, _window(context.recipe), bar.advance)
    if not rows:
        return
    result.artifacts.append(context.write_rows(BITS, rows))
    result.metrics.append(context.metric("perplexity", "exp-ratio", BITS, "nats", "tokens"))
    for domain in heldout:
        result.metrics.append(
            context.metric(
                f"bits_per_byte/{domain}", "ratio", BITS, "bits", "bytes", where={"domain": domain}
            )
        )
    _since_milestone(context, family, model, heldout, rows, result)
