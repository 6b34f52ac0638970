"""The stage `evaluate`: held-out questions played through the engine, and held-out text under the finished model."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from ikirere.common.files import read_rows, write_json
from ikirere.errors import UserError
from ikirere.eval.suites import MAX_NUM_SEQS, Settings, TimedQuestion, play, samples
from ikirere.model.build import Model
from ikirere.model.decoder import Decoder
from ikirere.model.hub import load_model
from ikirere.posttrain.generate import KINDS, conversations
from ikirere.posttrain.generate.row import Row
from ikirere.posttrain.stage_rows import sample_documents
from ikirere.pretrain.families import FAMILIES
from ikirere.pretrain.family import paired
from ikirere.programme.metrics import Kind, Metric
from ikirere.programme.stage import Stage, StageContext, StageResult
from ikirere.recipe.schema import Recipe
from ikirere.serve.engine.cpu_threads import fit_threads
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokens.shards import open_shards
from ikirere.tools import sandbox

QUESTIONS, PAIRED, SAMPLES = "questions.jsonl", "paired.jsonl", "samples.json"
HELDOUT, CHANGE = "heldout.jsonl", "language.jsonl"
WITHOUT_TOOL = "calculator-without-tool"  # the calculator's questions once more, without any tool
DOCUMENTS = "documents-heldout.parquet"
PRETRAINED = "pretrain"  # the name of the pretrained model where a milestone's may stand


class EvaluateStage(Stage):
    """Judges the aligned model (dpo, else sft); without one the base model, which is asked no questions.

    Artifacts: answers/<kind>.jsonl and answers/calculator-without-tool.jsonl (question, produced messages, scores,
    one row per question), questions.jsonl (the scores that are taken over all kinds), paired.jsonl (calculator
    questions with and without the tool), samples.json (some of each kind, to show), heldout.jsonl (figures of held-out
    documents), language.jsonl (the same documents before and now).
    Metrics: right_tool/<kind>, right_arguments/<kind>, answer/<kind>, no_tool_when_not_needed,
    answer_without_tool/calculator, tool_gain (paired difference), tool_calls and seconds_per_question (means), and of
    held-out text those of pretraining (bits_per_byte, perplexity, ...; of a recursive model on blanks). A kind whose
    questions expect no call has no right_arguments.
    perplexity_ratio@<name> and perplexity_ratio/<domain>@<name>: perplexity now over that at the milestone
    `evaluate.compare_to`, on the same documents at that milestone's length; where there is no `compare_to`, over that of
    the pretrained model, and <name> is `pretrain`.
    """

    name: ClassVar[str] = "evaluate"
    needs: ClassVar[tuple[str, ...]] = ("data", "shards", "pretrain", "sft", "dpo")
    makes: ClassVar[tuple[str, ...]] = (
        "right_tool/{kind}",
        "right_arguments/{kind}",
        "answer/{kind}",
        "no_tool_when_not_needed",
        "answer_without_tool/calculator",
        "tool_gain",
        "tool_calls",
        "seconds_per_question",
        *dict.fromkeys(name for family in FAMILIES.values() for name in family.makes),
        "perplexity_ratio@{milestone}",
        "perplexity_ratio/{domain}@{milestone}",
        f"perplexity_ratio@{PRETRAINED}",
        f"perplexity_ratio/{{domain}}@{PRETRAINED}",
    )

    def config(self, recipe: Recipe) -> Mapping[str, Any]:
        settings = recipe.evaluate.result_settings()
        return {"evaluate": {key: settings[key] for key in ("questions", "temperature", "max_new_tokens")}}

    def measuring(self, recipe: Recipe) -> Mapping[str, Any]:
        settings = recipe.evaluate.result_settings()
        milestones = [milestone.model_dump(mode="json") for milestone in recipe.pretrain.milestones]
        return {
            "evaluate": {key: settings[key] for key in ("confidence", "compare_to")},
            "pretrain": {"evaluate_bytes": recipe.pretrain.evaluate_bytes, "milestones": milestones},
        }

    def surroundings(self, recipe: Recipe, recipe_folder: Path) -> Mapping[str, str]:
        # Generated questions quote Python's docstrings.
        return {"evaluate.questions": f"python {platform.python_version()}"}

    def check(self, recipe: Recipe, recipe_folder: Path) -> None:
        before = recipe.stages[: recipe.stages.index(self.name)]
        if _model_stage(before) == PRETRAINED and "shards" not in before:
            raise UserError(
                "stages: evaluate measures a base model on held-out text; it needs the stage shards before it"
            )
        for kind in recipe.evaluate.questions:
            if kind not in KINDS:
                raise UserError(f"evaluate.questions.{kind}: no such kind; kinds are {', '.join(KINDS)}")
        if recipe.evaluate.questions and "data" not in before:
            raise UserError("stages: evaluate.questions needs the stage data before evaluate")
        for i, milestone in enumerate(recipe.pretrain.milestones):
            if milestone.name == PRETRAINED:
                raise UserError(
                    f"pretrain.milestones.{i}.name {PRETRAINED!r} stands for the pretrained model in the metrics of "
                    "evaluate; give another"
                )

    def run(self, context: StageContext) -> StageResult:
        stage = _model_stage(context.inputs)
        folder = context.inputs[stage] / "model"
        cuda = context.recipe.hardware.device != "cpu" and torch.cuda.is_available()
        model = load_model(folder).to("cuda" if cuda else "cpu").eval()
        tokenizer = Tokenizer.load(folder)
        result = StageResult()
        if stage != PRETRAINED and isinstance(model, Decoder):
            _questions(context, model, tokenizer, result)
        elif context.recipe.evaluate.questions:
            context.say("evaluate.questions: a base model is not asked; they need the stage sft or dpo")
        _text(context, stage, model, tokenizer, result)
        return result


def _model_stage(present: Sequence[str] | Mapping[str, Any]) -> str:
    """The last stage of those present that makes a model."""
    for stage in ("dpo", "sft", "pretrain"):
        if stage in present:
            return stage
    raise UserError("stages: evaluate needs the stage pretrain, sft or dpo before it")


# ---------------------------------------------------------------- questions


def _questions(context: StageContext, model: Decoder, tokenizer: Tokenizer, result: StageResult) -> None:
    if lacking := sandbox.describe():
        context.say(lacking)
    rows = _rows(context)
    if not rows:
        return
    before = torch.get_num_threads()
    try:
        fit_threads(model, MAX_NUM_SEQS)
        scored = _play(context, model, tokenizer, rows)
    finally:
        torch.set_num_threads(before)
    for name, some in scored.items():
        untimed = ({key: value for key, value in row.items() if key != "seconds"} for row in some)
        result.artifacts.append(context.write_rows(f"answers/{name}.jsonl", untimed))
        if name != WITHOUT_TOOL:
            result.metrics += _of_kind(context, name, some)
    result.metrics += _over_kinds(context, scored, result.artifacts)


def _rows(context: StageContext) -> dict[str, list[Row]]:
    """Held-out conversations by kind; a line where there are fewer than the recipe asks for."""
    wanted = context.recipe.evaluate.questions
    if not wanted:
        context.say("evaluate.questions is empty: no questions are asked")
        return {}
    if "data" not in context.inputs:
        raise UserError("stages: evaluate.questions needs the stage data before evaluate")
    documents = sample_documents(context.inputs["data"] / DOCUMENTS, context.seed)
    rows: dict[str, list[Row]] = {}
    for kind, count in wanted.items():
        rows[kind] = conversations(kind, count, context.seed, "heldout", documents)
        if len(rows[kind]) < count:
            context.say(f"kind {kind}: {len(rows[kind])} different held-out questions, {count} were wanted")
    return rows


def _play(
    context: StageContext, model: Decoder, tokenizer: Tokenizer, rows: Mapping[str, list[Row]]
) -> dict[str, list[TimedQuestion]]:
    """Scores by kind; the calculator's questions also without any tool."""
    section = context.recipe.evaluate
    settings = Settings(section.temperature, section.max_new_tokens, context.seed)
    suites = {kind: (some, True) for kind, some in rows.items()}
    if "calculator" in rows:
        suites[WITHOUT_TOOL] = (rows["calculator"], False)
    scored: dict[str, list[TimedQuestion]] = {}
    total = sum(len(some) for some, _ in suites.values())
    with context.progress("held-out questions", total, "questions") as bar:
        for name, (some, with_tools) in suites.items():
            played = play(model, tokenizer, some, settings, with_tools, bar.advance)
            if played:
                scored[name] = played
            if len(played) < len(some):
                context.say(
                    f"{name}: {len(some) - len(played)} of {len(some)} questions are longer than the "
                    f"model's context of {model.config.max_position_embeddings} tokens and left out"
                )
    return scored


def _of_kind(context: StageContext, kind: str, scored: Sequence[TimedQuestion]) -> list[Metric]:
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
    context: StageContext, scored: Mapping[str, list[TimedQuestion]], artifacts: list[str]
) -> list[Metric]:
    """Metrics over all kinds, and those that compare with and without the tool."""
    asked = [row for name, some in scored.items() if name != WITHOUT_TOOL for row in some]
    if not asked:
        return []

    def metric(
        name: str, kind: Kind, raw: str, field: str, over: str | None = None, where: Any = None
    ) -> Metric:
        return context.metric(name, kind, raw, field, over, where, context.recipe.evaluate.confidence)

    keys = ("id", "kind", "needs_tool", "offered", "no_tool", "tool_calls", "sampled_tokens", "seconds")
    rows: list[Mapping[str, Any]] = [*asked]
    artifacts.append(context.write_rows(QUESTIONS, ({key: row[key] for key in keys} for row in rows)))
    write_json(context.folder / SAMPLES, samples(asked))
    artifacts.append(SAMPLES)
    metrics = [
        metric("tool_calls", "mean", QUESTIONS, "tool_calls"),
        metric("seconds_per_question", "mean", QUESTIONS, "seconds"),
    ]
    if any(row["offered"] and not row["needs_tool"] for row in asked):
        unneeded = {"needs_tool": 0, "offered": 1}
        metrics.append(metric("no_tool_when_not_needed", "proportion", QUESTIONS, "no_tool", where=unneeded))
    without = {row["id"]: row["right_answer"] for row in scored.get(WITHOUT_TOOL, ())}
    compared = [
        {"id": row["id"], "with_tool": row["right_answer"], "without_tool": without[row["id"]]}
        for row in scored.get("calculator", ())
        if row["id"] in without
    ]
    if compared:
        artifacts.append(context.write_rows(PAIRED, compared))
        metrics += [
            metric("answer_without_tool/calculator", "proportion", PAIRED, "without_tool"),
            metric("tool_gain", "difference", PAIRED, "with_tool", "without_tool"),
        ]
    return metrics


# ---------------------------------------------------------------- held-out text


def _text(context: StageContext, stage: str, model: Model, tokenizer: Tokenizer, result: StageResult) -> None:
    """Figures of held-out documents by the family's own measures, and the change since pretraining or a milestone."""
    if "shards" not in context.inputs:
        return
    shards = open_shards(context.inputs["shards"] / "shards", tokenizer_sha256=tokenizer.sha256)
    heldout = {
        domain: shard
        for (domain, split), shard in sorted(shards.items())
        if split == "heldout" and len(shard)
    }
    family = FAMILIES[model.config.family](context.recipe, tokenizer)
    window = context.recipe.pretrain.phases[-1].sequence_length  # as at the end of pretraining
    with context.progress(family.label, len(heldout), "domains") as bar:
        rows = family.heldout_rows(model, heldout, window, bar.advance)
    if not rows:
        return
    result.artifacts.append(context.write_rows(HELDOUT, rows))
    for figure in family.figures(list(heldout)):
        where = None if figure.domain is None else {"domain": figure.domain}
        confidence = context.recipe.evaluate.confidence if figure.kind == "proportion" else 0.95
        result.metrics.append(
            context.metric(figure.name, figure.kind, HELDOUT, figure.field, figure.over, where, confidence)
        )

    name, before = _compared_with(context, stage)
    if not before:
        return
    length = before[0].get("sequence_length", window)
    if length != window:
        shared = {row["domain"] for row in before}
        rows = family.heldout_rows(model, {d: s for d, s in heldout.items() if d in shared}, length)
    changes = [
        {"domain": row["domain"], "nats": row["nats"] - old["nats"], "tokens": row["tokens"]}
        for row, old in paired(rows, before)
    ]
    if not changes:
        return
    result.artifacts.append(context.write_rows(CHANGE, changes))
    ratio = "perplexity_ratio"
    result.metrics.append(context.metric(f"{ratio}@{name}", "exp-ratio", CHANGE, "nats", "tokens"))
    for domain in dict.fromkeys(row["domain"] for row in changes):
        where = {"domain": domain}
        result.metrics.append(
            context.metric(f"{ratio}/{domain}@{name}", "exp-ratio", CHANGE, "nats", "tokens", where=where)
        )


def _compared_with(context: StageContext, stage: str) -> tuple[str, list[dict[str, Any]]]:
    """Name and rows of what perplexity is compared with: the recipe's milestone, else the pretrained model. No rows
    where there are none, and of the pretrained model beside itself."""
    name = context.recipe.evaluate.compare_to or PRETRAINED
    if PRETRAINED not in context.inputs or name == stage:
        return name, []
    raw = HELDOUT if name == PRETRAINED else f"milestones/{name}.jsonl"
    path = context.inputs[PRETRAINED] / raw
    return name, read_rows(path) if path.exists() else []
