"""Scores one answered question. The rules:

- **call**: every opened `<call_tool>` counts, one that cannot be read too: it is a call, not a correct abstention.
- **right tool**: where a tool is expected, at least one call, all readable and all to that tool; where none is
  expected, no call.
- **right arguments**: the first call's arguments equal the expected ones as JSON (key order aside; 1 and 1.0 are
  equal, 1 and true are not). For the calculator an expression of the same value is right as well.
- **right answer**: the final message ends by itself and its content passes
  `posttrain.generate.answer_is_right`, the one rule by which training pairs are judged too: for a number, it is
  the last number of the text, digit for digit, and the text holds no other number; for anything else, the text is
  the answer, except for white space, a leading "It is" and a last full stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from ikirere.posttrain.generate import answer_is_right
from ikirere.posttrain.generate.row import Row, question_of
from ikirere.serve.engine.request import Completion
from ikirere.tools.calculator import CalculatorError, calculate


class ScoredQuestion(TypedDict):
    """A question, the messages produced, and its scores as 0 or 1.

    needs_tool, offered, has_answer: which scores mean something for this row.
    """

    id: str
    kind: str
    question: str
    answer: str | None
    expects_tool: str | None
    expects_arguments: dict[str, Any] | None
    messages: list[dict[str, Any]]
    finish_reason: str
    needs_tool: int
    offered: int
    has_answer: int
    tool_calls: int
    sampled_tokens: int
    no_tool: int
    right_tool: int
    right_arguments: int
    right_answer: int


def score(row: Row, completion: Completion) -> ScoredQuestion:
    """The scores of a row's question as it was answered."""
    calls = calls_of(completion.messages)
    expected = row["expects_tool"]
    no_call = completion.tool_calls == 0
    all_readable = len(calls) == completion.tool_calls
    right_tool = all_readable and bool(calls) and all(call["name"] == expected for call in calls)
    answer = row["answer"]
    return {
        "id": row["id"],
        "kind": row["kind"],
        "question": question_of(row),
        "answer": answer,
        "expects_tool": expected,
        "expects_arguments": row["expects_arguments"],
        "messages": completion.messages,
        "finish_reason": completion.finish_reason,
        "needs_tool": int(expected is not None),
        "offered": int(bool(row["tools"])),
        "has_answer": int(answer is not None),
        "tool_calls": completion.tool_calls,
        "sampled_tokens": completion.sampled,
        "no_tool": int(no_call),
        "right_tool": int(right_tool if expected is not None else no_call),
        "right_arguments": int(_right_arguments(expected, row["expects_arguments"], calls)),
        "right_answer": int(answer is not None and answer_is_right(str(answer), final_text(completion))),
    }


def calls_of(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All readable calls of a conversation: {"name", "arguments"}."""
    return [call["function"] for message in messages for call in message.get("tool_calls") or ()]


def final_text(completion: Completion) -> str:
    """The content of the answer's last message; '' where the answer was cut or ends in a call."""
    if completion.finish_reason != "stop" or not completion.messages:
        return ""
    last = completion.messages[-1]
    return str(last["content"]) if last["role"] == "assistant" else ""


def _right_arguments(
    tool: str | None, expected: Mapping[str, Any] | None, calls: list[dict[str, Any]]
) -> bool:
    if tool is None or not calls or calls[0]["name"] != tool:
        return False
    given = calls[0]["arguments"]
    if json_equal(given, expected):
        return True
    if tool != "calculator" or expected is None or set(given) != {"expression"}:
        return False
    return same_value(given["expression"], expected["expression"])


def json_equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, true does not equal 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(json_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(json_equal(x, y) for x, y in zip(a, b))
    return bool(a == b)


def same_value(a: Any, b: Any) -> bool:
    """Whether the calculator gives the same number for both expressions."""
    if not isinstance(a, str) or not isinstance(b, str):
        return False
    try:
        return calculate(a) == calculate(b)
    except CalculatorError:
        return False
