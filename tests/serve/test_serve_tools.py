"""The tool loop, token for token, with a model that follows a script."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from scripted_model import SCRIPT, Scripted, small_tokenizer

from ikirere.serve.engine.engine import Engine
from ikirere.serve.engine.request import Completion, Event, Request
from ikirere.tokenizer import chat_format as chat
from ikirere.tools import registry
from ikirere.tools.result import ToolResult

ALL = frozenset(registry.TOOLS)


def ask(question: str, execute: frozenset[str] = ALL, limit: int = 500, **more: Any) -> Request:
    prompt = chat.render(
        small_tokenizer(), [{"role": "user", "content": question}], add_generation_prompt=True
    )
    return Request(prompt.ids, limit, execute_tools=execute, **more)


def run(*requests: Request, max_num_seqs: int = 4) -> list[Completion]:
    tokenizer = small_tokenizer()
    return Engine(Scripted(tokenizer), tokenizer, max_num_seqs=max_num_seqs).generate(requests)


def test_a_round_trip() -> None:
    tokenizer = small_tokenizer()
    [done] = run(ask("What is 4821 * 37?"))
    call = {
        "type": "function",
        "function": {"name": "calculator", "arguments": {"expression": "4821 * 37"}},
    }
    assert done.messages == [
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "4821 * 37 needs the calculator.",
            "tool_calls": [call],
        },
        {"role": "tool", "name": "calculator", "content": "178377"},
        {"role": "assistant", "content": "It is 178377."},
    ]
    assert (done.text, done.finish_reason, done.tool_calls) == ("It is 178377.", "stop", 1)
    # What was fed is what training would have rendered, so the model sees what it learnt from.
    question = [{"role": "user", "content": "What is 4821 * 37?"}]
    rendered = chat.render(tokenizer, [*question, *done.messages]).ids
    assert chat.render(tokenizer, question, add_generation_prompt=True).ids + done.ids == rendered
    forced = tokenizer.encode("178377")
    assert done.sampled == len(done.ids) - len(forced) - 3


def test_the_events_of_a_round_trip() -> None:
    tokenizer = small_tokenizer()
    events = list(Engine(Scripted(tokenizer), tokenizer).stream(ask("What is 4821 * 37?")))
    kinds = [event.kind for event in events]
    assert [k for i, k in enumerate(kinds) if i == 0 or kinds[i - 1] != k] == [
        "scratchpad",
        "tool_call",
        "tool_result",
        "text",
        "done",
    ]

    def joined(kind: str) -> str:
        return "".join(event.text for event in events if event.kind == kind)

    assert joined("scratchpad") == "4821 * 37 needs the calculator."
    assert joined("text") == "It is 178377."
    [call] = [event for event in events if event.kind == "tool_call"]
    assert call.data == {"name": "calculator", "arguments": {"expression": "4821 * 37"}}
    [result] = [event for event in events if event.kind == "tool_result"]
    assert (result.text, result.data) == ("178377", {"name": "calculator", "ok": True})


def test_many_conversations_at_once_give_what_each_gives_alone() -> None:
    questions = [q for q in SCRIPT if q != "count"] * 2
    together = run(*(ask(question) for question in questions), max_num_seqs=5)
    alone = [run(ask(question), max_num_seqs=1)[0] for question in questions]
    assert [done.messages for done in together] == [done.messages for done in alone]


def test_two_calls_in_one_turn() -> None:
    [done] = run(ask("both"))
    assert [m["content"] for m in done.messages] == ["", "2", "5", "Two and 5."]
    assert done.tool_calls == 2


@pytest.mark.parametrize(
    "question,said", [("broken", "error: not JSON"), ("divide", "error: division by zero")]
)
def test_the_model_reads_what_failed(question: str, said: str) -> None:
    [done] = run(ask(question))
    assert done.messages[1]["role"] == "tool"
    assert done.messages[1]["content"].startswith(said)
    assert done.text.endswith(done.messages[1]["content"])
    assert done.finish_reason == "stop"


def test_a_call_to_a_tool_that_is_not_ours_ends_the_request() -> None:
    [done] = run(ask("unknown tool"))
    assert done.finish_reason == "tool_calls"
    assert done.messages[-1]["tool_calls"][0]["function"]["name"] == "get_weather"
    [client] = run(ask("What is 4821 * 37?", execute=frozenset()))
    assert (client.finish_reason, len(client.messages), client.tool_calls) == ("tool_calls", 1, 1)


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_the_budget_of_calls_is_kept(budget: int) -> None:
    [done] = run(ask("greedy for tools", limit=200, max_tool_calls=budget))
    assert done.tool_calls == budget
    assert sum(1 for m in done.messages if m["role"] == "tool") == budget
    assert done.finish_reason in ("stop", "length")


def test_a_slow_tool_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release = threading.Event()

    def slow(name: str, arguments: dict[str, Any]) -> ToolResult:
        assert release.wait(30)
        return ToolResult(True, "late")

    monkeypatch.setattr(registry, "execute", slow)
    tokenizer = small_tokenizer()
    engine = Engine(Scripted(tokenizer), tokenizer, max_num_seqs=3)
    waits = engine.submit(ask("python"))
    others = [engine.submit(ask("hello")) for _ in range(4)]
    while not all(other.done for other in others):
        engine.step()
    assert not waits.done
    release.set()
    while not waits.done:
        engine.step()
    assert waits.completion().text == "late"


def test_a_tool_that_is_awaited_can_be_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release = threading.Event()
    monkeypatch.setattr(registry, "execute", lambda *_: release.wait(30) and ToolResult(True, "late"))
    tokenizer = small_tokenizer()
    engine = Engine(Scripted(tokenizer), tokenizer, max_num_seqs=1)
    sequence = engine.submit(ask("python"))
    while not sequence.calls:
        engine.step()
    engine.abort(sequence)
    assert (sequence.finish_reason, engine.busy) == ("abort", False)
    release.set()
    assert engine.generate([ask("hello")])[0].text == "Hello! How can I help?"


def test_stop_strings_end_the_text_before_them() -> None:
    events: list[Event] = []
    tokenizer = small_tokenizer()
    engine = Engine(Scripted(tokenizer), tokenizer)
    sequence = engine.submit(ask("count", stop=("12 13", "never")), events.append)
    while not sequence.done:
        engine.step()
    done = sequence.completion()
    wanted = " ".join(str(n) for n in range(12)) + " "
    assert (done.text, done.finish_reason) == (wanted, "stop")
    assert done.messages == [{"role": "assistant", "content": wanted}]
    assert "".join(event.text for event in events if event.kind == "text") == wanted


def test_a_cut_answer_says_so() -> None:
    [done] = run(ask("count", limit=7))
    assert (done.finish_reason, done.sampled) == ("length", 7)
    assert SCRIPT["count"][0].startswith(done.text)
    [cut] = run(ask("What is 4821 * 37?", limit=12))
    assert cut.finish_reason == "length"


def test_characters_come_whole() -> None:
    tokenizer = small_tokenizer()
    events = list(Engine(Scripted(tokenizer), tokenizer).stream(ask("rwanda")))
    assert all("�" not in event.text for event in events)
    assert events[-1].data.text == SCRIPT["rwanda"][0]


def test_a_turn_can_be_made_to_begin_with_a_call() -> None:
    tokenizer = small_tokenizer()
    start = (tokenizer.id("<call_tool>"),)
    [done] = run(ask("divide", execute=frozenset(), start=start))
    assert done.ids[:1] == list(start)
    assert done.finish_reason == "tool_calls"


def test_results_that_do_not_fit_end_the_answer() -> None:
    tokenizer = small_tokenizer()
    request = ask("What is 4821 * 37?")
    full = run(request)[0]
    for max_model_len in range(len(request.prompt) + 1, len(request.prompt) + len(full.ids) + 1):
        engine = Engine(Scripted(tokenizer), tokenizer, max_num_seqs=1, max_model_len=max_model_len)
        done = engine.generate([request])[0]
        if max_model_len < len(request.prompt) + len(full.ids) - 1:
            assert done.finish_reason == "length"
        assert len(request.prompt) + len(done.ids) <= max_model_len + 1
