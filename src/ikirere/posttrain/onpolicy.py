"""Pairs whose rejected turn the model wrote itself: sampled, and kept where it is wrong or longer."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ikirere.posttrain.generate.row import Row, answer_is_right
from ikirere.posttrain.pairs import BREVITY, CORRECTNESS, TOOL, Message, PairRow, Turn, make_pair, turns
from ikirere.serve.engine.engine import Engine
from ikirere.serve.engine.request import Completion, Request
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.chat_format import render

TEMPERATURE = 0.9
ATTEMPTS = 4  # samples per pair wanted, after which sampling ends with what it has
LONGEST = 96  # tokens of one sample
ROUND = 128  # requests handed to the engine at a time
LONGER = 1.5  # a right answer is worse where it has this many times the right turn's tokens


def _call_of(message: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    calls = message.get("tool_calls")
    return (calls[0]["function"]["name"], calls[0]["function"]["arguments"]) if calls else None


def judge(turn: Turn, sampled: Message, tokens: int, right_tokens: int) -> str | None:
    """Why a sampled turn is worse than the right one; None where it is not."""
    wanted, made = _call_of(turn.right), _call_of(sampled)
    if (wanted is None) != (made is None) or (wanted and made and wanted[0] != made[0]):
        return TOOL
    if wanted != made or len(sampled.get("tool_calls") or ()) > 1:
        return CORRECTNESS
    answer = turn.row.get("answer")
    if wanted is None and answer is not None and not answer_is_right(str(answer), str(sampled["content"])):
        return CORRECTNESS
    return BREVITY if tokens > right_tokens * LONGER + 4 else None


def _request(tokenizer: Tokenizer, turn: Turn, max_length: int, seed: int) -> Request | None:
    prompt = render(tokenizer, turn.prompt, turn.row.get("tools"), add_generation_prompt=True).ids
    if len(prompt) + 8 >= max_length:
        return None
    return Request(prompt, min(LONGEST, max_length - len(prompt) - 1), temperature=TEMPERATURE, seed=seed)


def _kept(tokenizer: Tokenizer, turn: Turn, completion: Completion) -> PairRow | None:
    sampled = completion.messages[0] if completion.messages else None
    # A turn that was cut or cannot be read as a message would be rendered as something the model never wrote.
    if completion.finish_reason == "length" or sampled is None or "tool_call_error" in sampled:
        return None
    right = render(tokenizer, [*turn.prompt, turn.right], turn.row.get("tools"))
    start = len(render(tokenizer, turn.prompt, turn.row.get("tools"), add_generation_prompt=True).ids)
    reason = judge(turn, sampled, completion.sampled, len(right.ids) - start)
    if reason is None or not (sampled.get("content") or sampled.get("tool_calls")):
        return None
    return make_pair(turn, sampled, reason, True)


def sampled_pairs(
    engine: Engine,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    count: int,
    seed: int,
    sequence_length: int,
    on_round: Callable[[int], None] | None = None,
) -> list[PairRow]:
    """At most `count` pairs from `ATTEMPTS * count` samples, every kind of row as often as any other.

    Ends early where a round brings none. Deterministic for engine, rows and seed. on_round: called with the number of pairs
    that each round brought.
    """
    rng = random.Random(f"onpolicy/{seed}")
    by_kind: dict[str, list[Turn]] = {}
    for row in rows:
        by_kind.setdefault(str(row["kind"]), []).extend(turns(row))
    for some in by_kind.values():
        rng.shuffle(some)
    kinds = sorted(by_kind)
    max_length = min(sequence_length, engine.max_model_len)
    pairs: dict[str, PairRow] = {}
    asked = 0
    while len(pairs) < count and asked < ATTEMPTS * count and kinds:
        batch: list[tuple[Turn, Request]] = []
        for _ in range(min(ROUND, ATTEMPTS * count - asked)):
            kind = kinds[asked % len(kinds)]
            turn = by_kind[kind][asked // len(kinds) % len(by_kind[kind])]
            request = _request(tokenizer, turn, max_length, seed * 1_000_003 + asked)
            asked += 1
            if request is not None:
                batch.append((turn, request))
        before = len(pairs)
        for (turn, _), completion in zip(batch, engine.generate([request for _, request in batch])):
            pair = _kept(tokenizer, turn, completion)
            if pair is not None and len(pairs) < count:
                pairs.setdefault(repr((pair["prompt"], pair["rejected"])), pair)
        if on_round is not None:
            on_round(len(pairs) - before)
        if len(pairs) == before:
            break
    return list(pairs.values())
