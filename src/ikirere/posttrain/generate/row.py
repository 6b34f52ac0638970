"""A generated conversation, and the one rule that decides whether an answer is right."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from ikirere.tools.registry import ToolCall, definitions

Split = Literal["train", "heldout"]
HELDOUT_SHARE = 10  # one key in so many is held out

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


class Row(TypedDict):
    """One conversation, ready for the chat template and for checking.

    messages: standard chat messages; the last user message is the question, what follows is the right continuation.
    tools: OpenAI definitions offered, None where there are none. answer: what a right final answer gives.
    """

    id: str
    kind: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    answer: str | None
    expects_tool: str | None
    expects_arguments: dict[str, Any] | None


@dataclass
class ConversationDraft:
    """What a generator gives: a question and the way to its answer.

    answer: None where many answers are right. reply: the final answer's text; `{result}` in it stands for the
    result of `call`, which `conversations` executes. reasoning: the scratchpad's text, in the first turn.
    """

    question: str
    reply: str
    answer: str | None = None
    tools: tuple[str, ...] = ()
    call: ToolCall | None = None
    reasoning: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


def digest(text: str) -> int:
    """A number that depends on the text alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(key: str, one_in: int = HELDOUT_SHARE) -> Split:
    """The split that a key (operands, a word, a question) belongs to, always the same one."""
    return "heldout" if digest(key) % one_in == 0 else "train"


def call_turns(call: ToolCall, reasoning: str | None, result: str) -> list[dict[str, Any]]:
    """The assistant's call and the tool's answer."""
    function = {"name": call.name, "arguments": dict(call.arguments)}
    turn: dict[str, Any] = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }
    if reasoning:
        turn["reasoning_content"] = reasoning
    return [turn, {"role": "tool", "name": call.name, "content": result}]


def build(kind: str, split: Split, draft: ConversationDraft, result: str | None) -> Row:
    """The row of a draft, with the result of its call."""
    messages: list[dict[str, Any]] = [*draft.history, {"role": "user", "content": draft.question}]
    reply, answer = draft.reply, draft.answer
    if draft.call is not None:
        assert result is not None
        messages += call_turns(draft.call, draft.reasoning, result)
        reply, answer = reply.replace("{result}", result), result
    final: dict[str, Any] = {"role": "assistant", "content": reply}
    if draft.call is None and draft.reasoning:
        final["reasoning_content"] = draft.reasoning
    messages.append(final)
    return {
        "id": f"{kind}-{split}-{digest(draft.question):016x}",
        "kind": kind,
        "messages": messages,
        "tools": definitions(draft.tools) if draft.tools else None,
        "answer": answer,
        "expects_tool": draft.call.name if draft.call else None,
        "expects_arguments": dict(draft.call.arguments) if draft.call else None,
    }


def question_of(row: Row) -> str:
    """The text of the last user message."""
    return next(m["content"] for m in reversed(row["messages"]) if m["role"] == "user")


def prompt_of(row: Row) -> list[dict[str, Any]]:
    """The messages up to the last user message, that one included."""
    messages = row["messages"]
    last = max(i for i, m in enumerate(messages) if m["role"] == "user")
    return list(messages[: last + 1])


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").removeprefix("It is ").strip()


def answer_is_right(answer: str, text: str) -> bool:
    """Whether a final answer gives `answer`.

    A number: it is the text's last number, digit for digit, and every other number of the text equals it.
    Anything else: the text is the answer, except for white space, a leading "It is" and a last full stop.
    """
    if _NUMBER.fullmatch(answer):
        found = _NUMBER.findall(text)
        return bool(found) and all(number == answer for number in found)
    return _plain(text) == _plain(answer)
