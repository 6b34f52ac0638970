"""Plays held-out questions through the engine: one suite per kind, with the row's tools or without any."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from ikirere.eval.score import ScoredQuestion, score
from ikirere.model.decoder import Decoder
from ikirere.posttrain.generate.row import Row, prompt_of
from ikirere.serve.engine.engine import Engine
from ikirere.serve.engine.request import Request
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.chat_format import render

MAX_NUM_SEQS = 32
RESULT_TOKENS = 1024  # of context for tools' results, beside prompt and answer
SHORTEST_ANSWER = 8  # tokens that the model's context must leave for a question to be asked


@dataclass(frozen=True)
class Settings:
    """How answers are sampled. temperature 0 is greedy; a seed matters above 0 only."""

    temperature: float = 0.0
    max_new_tokens: int = 128
    seed: int = 0
    max_num_seqs: int = MAX_NUM_SEQS


class TimedQuestion(ScoredQuestion):
    """A scored question, with the seconds per question of its suite."""

    seconds: float


class SampledConversation(TypedDict):
    """A conversation to show, and whether it went right."""

    id: str
    kind: str
    right: bool
    expected: str | None
    messages: list[dict[str, Any]]


def play(
    model: Decoder,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    settings: Settings,
    with_tools: bool = True,
    on_done: Callable[[], None] | None = None,
) -> list[TimedQuestion]:
    """Scores (see `score`) of each row's question, in the rows' order, with `seconds` per question of the suite.

    with_tools: offer the row's tools, and let the engine run them. False: the same question with no tools in the
    prompt, and no call possible, so that the model has to answer by itself.
    Rows whose prompt does not fit the model's context are left out; compare lengths to see how many.
    """
    limit = model.config.max_position_embeddings
    asked: list[tuple[Row, Request]] = []
    for number, row in enumerate(rows):
        request = _request(tokenizer, row, settings, with_tools, settings.seed * 1_000_003 + number)
        if len(request.prompt) + SHORTEST_ANSWER < limit:
            asked.append((row, request))
    if not asked:
        return []
    longest = max(len(request.prompt) for _, request in asked)
    max_model_len = min(limit, longest + settings.max_new_tokens + RESULT_TOKENS)
    engine = Engine(model, tokenizer, min(settings.max_num_seqs, len(asked)), max_model_len)
    began = time.perf_counter()
    try:
        done = engine.generate(
            [request for _, request in asked], (lambda *_: on_done()) if on_done is not None else None
        )
    finally:
        engine.close()
    seconds = (time.perf_counter() - began) / len(asked)
    return [{**score(row, completion), "seconds": seconds} for (row, _), completion in zip(asked, done)]


def _request(tokenizer: Tokenizer, row: Row, settings: Settings, with_tools: bool, seed: int) -> Request:
    tools = row["tools"] if with_tools else None
    prompt = render(tokenizer, prompt_of(row), tools, add_generation_prompt=True, row=str(row["id"])).ids
    return Request(
        prompt,
        settings.max_new_tokens,
        temperature=settings.temperature,
        seed=seed,
        execute_tools=frozenset(tool["function"]["name"] for tool in tools or ()),
        max_tool_calls=4 if tools else 0,  # where none is offered none can be called
    )


def samples(scored: Sequence[ScoredQuestion], per_kind: int = 3) -> list[SampledConversation]:
    """Conversations to show: of each kind some that went well and, where there is one, one that went wrong."""
    shown: list[SampledConversation] = []
    for kind in dict.fromkeys(str(row["kind"]) for row in scored):
        mine = [row for row in scored if row["kind"] == kind]
        wrong = [row for row in mine if not _went_well(row)][:1]
        right = [row for row in mine if _went_well(row)][: per_kind - len(wrong)]
        for row in (*right, *wrong):
            shown.append(
                {
                    "id": row["id"],
                    "kind": kind,
                    "right": _went_well(row),
                    "expected": row["answer"],
                    "messages": [{"role": "user", "content": row["question"]}, *row["messages"]],
                }
            )
    return shown


def _went_well(row: ScoredQuestion) -> bool:
    return bool(row["right_tool"] and (row["right_answer"] or not row["has_answer"]))
