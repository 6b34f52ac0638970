"""Preference pairs: a prompt with a right answer and one that is wrong, rambling or of the wrong tool.

A pair is about one assistant turn: the first (call a tool or answer) or the one after a tool's result. Rejected
turns are either corrupted here from the right one, or written by the model itself (`onpolicy.py`).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ikirere.errors import UserError
from ikirere.posttrain.checks import iterate_jsonl
from ikirere.posttrain.dpo import EncodedPair
from ikirere.posttrain.generate.row import Row
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.chat_format import check_messages, render

Message = dict[str, Any]

CORRECTNESS, BREVITY, TOOL = "correctness", "brevity", "tool choice"


class PairRow(TypedDict):
    """TRL's explicit-prompt form with tools; `reason` is what makes the rejected turn worse."""

    id: str
    kind: str
    reason: str
    on_policy: bool
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None


@dataclass(frozen=True)
class Turn:
    """One assistant turn of a conversation: what came before it and the right message."""

    row: Row
    number: int
    prompt: list[Message]
    right: Message


def turns(row: Row) -> list[Turn]:
    """The assistant turns that follow the last user message."""
    messages = row["messages"]
    last_user = max(i for i, m in enumerate(messages) if m["role"] == "user")
    positions = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i > last_user]
    return [
        Turn(row, n, list(messages[:position]), dict(messages[position]))
        for n, position in enumerate(positions)
    ]


def make_pair(turn: Turn, rejected: Message, reason: str, on_policy: bool) -> PairRow:
    """A pair of the turn's right message and a worse one."""
    return {
        "id": f"{turn.row['id']}/{turn.number}/{'sampled' if on_policy else 'made'}/{reason}",
        "kind": str(turn.row["kind"]),
        "reason": reason,
        "on_policy": on_policy,
        "prompt": turn.prompt,
        "chosen": [turn.right],
        "rejected": [rejected],
        "tools": turn.row.get("tools"),
    }


# ---------------------------------------------------------------- corruptions

RAMBLINGS = (
    "Let me think about this. The question is a good one. The answer is {a} That is my answer: {a}",
    "That is a very good question, and I am glad that you ask. After some thought I can say: {a}",
    "{a} I hope that this helps. If it does not help, please ask again, and I will say it again: {a}",
    "To answer this, one has to look at what was asked. Having done that, I would say that it is this: {a}",
    "{a} {a} {a} As I said before: {a}",
)


def _slip(text: str, rng: random.Random) -> str:
    """One digit changed, or where there is none one letter."""
    positions = [i for i, c in enumerate(text) if c.isdigit()]
    if positions:
        position = rng.choice(positions)
        return (
            text[:position]
            + rng.choice([d for d in "0123456789" if d != text[position]])
            + text[position + 1 :]
        )
    positions = [i for i, c in enumerate(text) if c.isalpha()]
    if not positions:
        return text + "s"
    position = rng.choice(positions)
    letters = [c for c in "aeionrst" if c != text[position].lower()]
    return text[:position] + rng.choice(letters) + text[position + 1 :]


def _numbers(text: str) -> list[tuple[int, int]]:
    spans, start = [], None
    for i, c in enumerate(text + " "):
        if c.isdigit() and start is None:
            start = i
        elif not c.isdigit() and start is not None:
            spans.append((start, i))
            start = None
    return spans


def _other_operand(text: str, rng: random.Random) -> str:
    """One number replaced by another of the same length."""
    spans = _numbers(text)
    if not spans:
        return _slip(text, rng)
    first, last = rng.choice(spans)
    number = text[first:last]
    while number == text[first:last]:
        number = "".join(rng.choice("0123456789" if i else "123456789") for i in range(last - first))
    return text[:first] + number + text[last:]


def _other_operator(text: str, rng: random.Random) -> str:
    positions = [i for i, c in enumerate(text) if c in "+-*/" and i]
    if not positions:
        return _slip(text, rng)
    position = rng.choice(positions)
    return text[:position] + rng.choice([o for o in "+-*/" if o != text[position]]) + text[position + 1 :]


def _changed_call(right: Message, change: Callable[[str, random.Random], str], rng: random.Random) -> Message:
    message = copy.deepcopy(right)
    arguments = message["tool_calls"][0]["function"]["arguments"]
    for name, value in arguments.items():
        arguments[name] = change(str(value), rng)
    return message


def _answered_at_once(turn: Turn, rng: random.Random) -> Message:
    """A guess in position of a call: plausible, as a model that does not look it up would write it."""
    answer = turn.row.get("answer") or "yes"
    return {"role": "assistant", "content": f"{_slip(str(answer), rng) if rng.random() < 0.7 else answer}."}


def _needless_call(turn: Turn, rng: random.Random) -> Message:
    names = [t["function"]["name"] for t in turn.row.get("tools") or ()]
    name = rng.choice(names)
    key = "expression" if name == "calculator" else "code"
    number = rng.randrange(2, 100)
    text = (
        f"{number}{rng.choice('+-*')}{rng.randrange(2, 100)}"
        if key == "expression"
        else f"len('{turn.row['kind']}')"
    )
    call = {"type": "function", "function": {"name": name, "arguments": {key: text}}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _ramble(right: Message, rng: random.Random) -> Message:
    return {**right, "content": rng.choice(RAMBLINGS).format(a=right["content"])}


def _of_call(turn: Turn, rng: random.Random) -> Iterator[tuple[Message, str]]:
    yield _changed_call(turn.right, _other_operand, rng), CORRECTNESS
    yield _changed_call(turn.right, _other_operator, rng), CORRECTNESS
    yield _changed_call(turn.right, _slip, rng), CORRECTNESS
    yield _answered_at_once(turn, rng), TOOL


def _of_answer(turn: Turn, others: Sequence[str], rng: random.Random) -> Iterator[tuple[Message, str]]:
    content = str(turn.right["content"])
    yield _ramble(turn.right, rng), BREVITY
    if turn.row.get("answer") is not None:
        slipped = content.replace(str(turn.row["answer"]), _slip(str(turn.row["answer"]), rng))
        yield {**turn.right, "content": slipped}, CORRECTNESS
    different = [other for other in others if other != content]
    if turn.number == 0 and different:
        yield {**turn.right, "content": rng.choice(different)}, CORRECTNESS
    if turn.number == 0 and turn.row.get("tools"):
        yield _needless_call(turn, rng), TOOL


def made_pairs(rows: Sequence[Row], count: int, seed: int) -> list[PairRow]:
    """`count` pairs corrupted from the rows' right turns, no two alike; fewer where the rows give no more.

    Rows are visited in turn, one corruption of one turn each time, so that kinds and reasons are spread evenly.
    """
    rng = random.Random(f"pairs/{seed}")
    by_kind: dict[str, list[str]] = {}
    for row in rows:
        by_kind.setdefault(str(row["kind"]), []).append(str(row["messages"][-1]["content"]))
    streams = [iter(_corruptions(row, by_kind[str(row["kind"])], rng)) for row in rows]
    rng.shuffle(streams)
    pairs: list[PairRow] = []
    seen: set[str] = set()
    while streams and len(pairs) < count:
        left = []
        for stream in streams:
            pair = next(stream, None)
            if pair is None:
                continue
            left.append(stream)
            key = repr((pair["prompt"], pair["rejected"]))
            if pair["rejected"] != pair["chosen"] and key not in seen and len(pairs) < count:
                seen.add(key)
                pairs.append(pair)
        streams = left
    return pairs


def _corruptions(row: Row, others: Sequence[str], rng: random.Random) -> Iterator[PairRow]:
    found = []
    for turn in turns(row):
        made = _of_call(turn, rng) if turn.right.get("tool_calls") else _of_answer(turn, others, rng)
        found += [make_pair(turn, message, reason, False) for message, reason in made]
    rng.shuffle(found)
    yield from found


# ---------------------------------------------------------------- to ids


def encode_pair(tokenizer: Tokenizer, pair: Mapping[str, Any], name: str) -> EncodedPair:
    """Both conversations as ids. Raises UserError naming the pair where an answer is empty or both are equal."""
    ids = []
    prompt = render(tokenizer, pair["prompt"], pair.get("tools"), add_generation_prompt=True, row=name).ids
    for side in ("chosen", "rejected"):
        whole = render(
            tokenizer,
            [*pair["prompt"], *pair[side]],
            pair.get("tools"),
            require_mask=True,
            row=f"{name}, {side}",
        )
        if whole.ids[: len(prompt)] != prompt or len(whole.ids) == len(prompt):
            raise UserError(
                f"{name}: `{side}` does not continue `prompt`; it is to begin with an assistant message"
            )
        ids.append(np.array(whole.ids, np.int32))
    if np.array_equal(ids[0], ids[1]):
        raise UserError(f"{name}: `chosen` and `rejected` are the same; drop the pair")
    return EncodedPair(ids[0], ids[1], len(prompt), name)


def check_pair(row: Any, where: str) -> None:
    """Raises UserError naming `where` for a row that is not `prompt`, `chosen` and `rejected` as lists of messages."""
    for key in ("prompt", "chosen", "rejected"):
        value = row.get(key) if isinstance(row, dict) else None
        if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
            raise UserError(f"{where}: `{key}` is a list of objects with `role` and `content`")
        check_messages(value, f"{where}, {key}")


def read_pairs(name: str, recipe_folder: Path, tokenizer: Tokenizer) -> list[PairRow]:
    """`prompt`, `chosen`, `rejected` (lists of messages) and `tools` of a JSONL file, each checked by encoding it.

    Raises UserError naming file and line.
    """
    pairs: list[PairRow] = []
    for where, row in iterate_jsonl(name, recipe_folder, "dpo.pairs_files"):
        check_pair(row, where)
        encode_pair(tokenizer, row, where)
        pairs.append(
            {
                "id": str(row.get("id", Path(where).name)),
                "kind": str(row.get("kind", "file")),
                "reason": str(row.get("reason", "file")),
                "on_policy": bool(row.get("on_policy", False)),
                "prompt": row["prompt"],
                "chosen": row["chosen"],
                "rejected": row["rejected"],
                "tools": row.get("tools"),
            }
        )
    return pairs


def encode_pairs(
    tokenizer: Tokenizer, pairs: Sequence[PairRow], sequence_length: int, say: Callable[[str], None]
) -> tuple[list[PairRow], list[EncodedPair]]:
    """The pairs that fit a sequence, with their ids; longer ones are left out and counted in one line.

    Raises UserError where none is left.
    """
    encoded = [encode_pair(tokenizer, pair, pair["id"]) for pair in pairs]
    kept = [i for i, e in enumerate(encoded) if e.length <= sequence_length]
    if len(kept) < len(encoded):
        say(
            f"{len(encoded) - len(kept)} of {len(encoded)} pairs are longer than {sequence_length} tokens and left out"
        )
    if not kept:
        raise UserError(f"dpo.sequence_length: no pair fits {sequence_length} tokens; raise it")
    return [pairs[i] for i in kept], [encoded[i] for i in kept]
