"""What counts as right, and suites played with a model that knows the answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "serve"))
import scripted_model
from scripted_model import Scripted, small_model, small_tokenizer

from ikirere.eval.score import final_text, json_equal, same_value, score
from ikirere.eval.suites import Settings, play, samples
from ikirere.posttrain.generate import conversations
from ikirere.posttrain.generate.row import question_of
from ikirere.serve.engine.request import Completion, FinishReason
from ikirere.tools import registry

ROW: dict[str, Any] = {
    "id": "calculator-heldout-1",
    "kind": "calculator",
    "messages": [{"role": "user", "content": "What is 12 * 3?"}],
    "tools": registry.definitions(["calculator", "python_exec"]),
    "answer": "36",
    "expects_tool": "calculator",
    "expects_arguments": {"expression": "12*3"},
}
CHAT = ROW | {"kind": "chat", "answer": None, "expects_tool": None, "expects_arguments": None}


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }


def done(*messages: dict[str, Any], calls: int | None = None, reason: FinishReason = "stop") -> Completion:
    made = sum(len(m.get("tool_calls", ())) for m in messages) if calls is None else calls
    return Completion([], "", reason, list(messages), made)


RESULT = {"role": "tool", "name": "calculator", "content": "36"}


def say(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def marks(row: dict[str, Any], completion: Completion) -> tuple[int, int, int, int]:
    made = score(row, completion)
    return made["right_tool"], made["right_arguments"], made["right_answer"], made["no_tool"]


@pytest.mark.parametrize(
    "completion,wanted",
    [
        (done(call("calculator", {"expression": "12*3"}), RESULT, say("36.")), (1, 1, 1, 0)),
        (done(call("calculator", {"expression": "3 * 12"}), RESULT, say("It is 36.")), (1, 1, 1, 0)),
        (done(call("calculator", {"expression": "12+3"}), RESULT, say("15.")), (1, 0, 0, 0)),
        (done(call("calculator", {"expression": "12*"}), RESULT, say("36.")), (1, 0, 1, 0)),
        (done(call("calculator", {"expression": "12*3", "x": 1}), RESULT, say("36.")), (1, 0, 1, 0)),
        (done(call("python_exec", {"code": "12*3"}), RESULT, say("36.")), (0, 0, 1, 0)),
        (done(say("36.")), (0, 0, 1, 1)),
        (done(say("12 and 36.")), (0, 0, 0, 1)),
        # A call that cannot be read is a call, and not a right one.
        (done(say(""), {"role": "tool", "name": "", "content": "error"}, say("36."), calls=1), (0, 0, 1, 0)),
        # A second call elsewhere makes the choice of tools wrong.
        (
            done(
                call("calculator", {"expression": "12*3"}),
                RESULT,
                call("python_exec", {"code": "1"}),
                say("36"),
            ),
            (0, 1, 1, 0),
        ),
        # Cut, or ended by a call: there is no final answer.
        (done(say("36"), reason="length"), (0, 0, 0, 1)),
        (done(call("get_weather", {}), reason="tool_calls"), (0, 0, 0, 0)),
    ],
)
def test_scores(completion: Completion, wanted: tuple[int, int, int, int]) -> None:
    assert marks(ROW, completion) == wanted


def test_where_no_tool_is_needed() -> None:
    assert marks(CHAT, done(say("Hello!")))[::3] == (1, 1)
    assert marks(CHAT, done(call("calculator", {"expression": "1"}), RESULT, say("x")))[::3] == (0, 0)
    assert marks(CHAT, done(say("x"), calls=1))[::3] == (0, 0)
    made = score(CHAT, done(say("Hello!")))
    assert (made["needs_tool"], made["has_answer"], made["offered"]) == (0, 0, 1)


def test_equalities() -> None:
    assert json_equal({"a": [1, "x"], "b": None}, {"b": None, "a": [1.0, "x"]})
    assert not json_equal({"a": True}, {"a": 1})
    assert not json_equal([1, 2], [1])
    assert same_value("(2+3)*4", "20") and not same_value("1/0", "1/0") and not same_value(3, "3")
    assert final_text(done()) == ""


def _script(row: dict[str, Any]) -> list[str]:
    """The turns of a row's right course, as the scripted model writes them."""
    import json

    turns = []
    begin = max(i for i, m in enumerate(row["messages"]) if m["role"] == "user") + 1
    for message in row["messages"][begin:]:
        if message["role"] != "assistant":
            continue
        thought = message.get("reasoning_content")
        text = f"<scratchpad>{thought}</scratchpad>" if thought else ""
        text += message["content"]
        for made in message.get("tool_calls", ()):
            body = json.dumps(made["function"], ensure_ascii=False)
            text += f"<call_tool>{body}</call_tool>"
        turns.append(text)
    return turns


@pytest.mark.parametrize("kind", ["calculator", "units", "chat"])
def test_a_model_that_does_the_right_thing_is_right(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small_tokenizer()
    rows: list[Any] = list(conversations(kind, 6, 3, "heldout", []))
    monkeypatch.setattr(scripted_model, "SCRIPT", {question_of(row): _script(row) for row in rows})
    reported: list[int] = []
    scored = play(
        Scripted(tokenizer), tokenizer, rows, Settings(max_num_seqs=4), on_done=lambda: reported.append(1)
    )
    assert len(reported) == len(scored) == 6
    assert [row["id"] for row in scored] == [row["id"] for row in rows]
    for row in scored:
        assert row["right_tool"] == 1 and row["finish_reason"] == "stop"
        assert row["right_arguments"] == row["needs_tool"]
        assert row["right_answer"] == row["has_answer"]
    shown = samples(scored)
    assert [s["kind"] for s in shown] == [kind] * 3 and all(s["right"] for s in shown)
    assert shown[0]["messages"][0]["role"] == "user"
    if kind == "calculator":
        without = play(Scripted(tokenizer), tokenizer, rows, Settings(), with_tools=False)
        assert {row["tool_calls"] for row in without} == {0}
        assert not any(row["right_answer"] for row in without)


def test_questions_that_do_not_fit_are_left_out() -> None:
    rows: list[Any] = list(conversations("calculator", 3, 1, "heldout", []))
    rows[1] = rows[1] | {"messages": [{"role": "user", "content": "word " * 400}]}
    scored = play(small_model(), small_tokenizer(), rows, Settings(max_new_tokens=4))
    assert [row["id"] for row in scored] == [rows[0]["id"], rows[2]["id"]]
    assert play(small_model(context=16), small_tokenizer(), rows, Settings()) == []
