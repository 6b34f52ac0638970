"""The server as its clients see it: a real process, the official openai client, plain sockets."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

HERE = Path(__file__).parent
QUESTION = "What is 4821 * 37?"
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "mine",
            "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
        },
    }
]


class Server:
    """A server process with the scripted model."""

    def __init__(self, delay: float = 0.0) -> None:
        command = [sys.executable, str(HERE / "scripted_model.py"), "0", str(delay)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.base = self.process.stdout.readline().strip()
        self.client = openai.OpenAI(base_url=f"{self.base}/v1", api_key="none", max_retries=0, timeout=30)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.base}/health", timeout=5).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise AssertionError("the server did not start")

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = httpx.get(f"{self.base}/metrics").text
        return sum(float(v) for v in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))

    def chat(self, text: str, **more: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(model="scripted", messages=messages, **more)

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(f"{self.base}{path}", json=body, timeout=30)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def slow() -> Iterator[Server]:
    running = Server(delay=0.02)
    yield running
    running.stop()


def test_models(server: Server) -> None:
    assert [model.id for model in server.client.models.list()] == ["scripted"]
    assert server.client.models.retrieve("scripted").owned_by == "ikirere"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("other")
    health = httpx.get(f"{server.base}/health").json()
    assert health == {"status": "ok", "model": "scripted"}


def test_chat(server: Server) -> None:
    answer = server.chat("hello")
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello! How can I help?")
    assert choice.finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert server.chat(parts).choices[0].message.content == "Hello! How can I help?"  # type: ignore[arg-type]


def test_the_engine_runs_its_own_tools(server: Server) -> None:
    message = server.chat(QUESTION).choices[0].message
    assert message.content == "It is 178377."
    assert message.reasoning_content == "4821 * 37 needs the calculator."
    assert message.tool_calls is None
    assert message.tool_events == [
        {"type": "call", "name": "calculator", "arguments": {"expression": "4821 * 37"}},
        {"type": "result", "name": "calculator", "content": "178377"},
    ]


def test_a_stream(server: Server) -> None:
    chunks = list(server.chat(QUESTION, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert "".join(d.content or "" for d in deltas) == "It is 178377."
    assert (
        "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
        == "4821 * 37 needs the calculator."
    )
    events = [event for d in deltas for event in getattr(d, "tool_events", None) or []]
    assert [event["type"] for event in events] == ["call", "result"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert len(deltas) > 10


def test_a_stream_on_the_wire(server: Server) -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    with httpx.stream("POST", f"{server.base}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert "usage" not in json.loads(lines[-2].removeprefix("data: "))


def test_the_clients_tools_are_the_clients_to_run(server: Server) -> None:
    answer = server.chat(QUESTION, tools=TOOLS)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "calculator")
    assert json.loads(call.function.arguments) == {"expression": "4821 * 37"}
    messages = [
        {"role": "user", "content": QUESTION},
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "from the client"},
    ]
    final = server.client.chat.completions.create(model="scripted", messages=messages, tools=TOOLS)  # type: ignore[arg-type]
    assert final.choices[0].message.content == "It is from the client."


def test_the_clients_tools_in_a_stream(server: Server) -> None:
    chunks = list(server.chat(QUESTION, tools=TOOLS, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [(call.index, call.function.name) for call in calls] == [(0, "calculator")]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_call_that_nobody_can_run_goes_to_the_client(server: Server) -> None:
    chunks = list(server.chat("unknown tool", stream=True))
    assert not any(getattr(chunk.choices[0].delta, "tool_events", None) for chunk in chunks)
    [call] = chunks[-1].choices[0].delta.tool_calls
    assert (call.function.name, chunks[-1].choices[0].finish_reason) == ("get_weather", "tool_calls")


def test_tool_choice(server: Server) -> None:
    none = server.chat(QUESTION, tool_choice="none").choices[0]
    assert none.finish_reason == "stop" and "tool_events" not in (none.message.model_extra or {})
    forced = server.chat("unknown tool", tools=TOOLS, tool_choice="required").choices[0]
    assert forced.message.tool_calls[0].function.name == "get_weather"
    with pytest.raises(openai.BadRequestError, match="tool_choice names no tool"):
        server.chat("hello", tools=TOOLS, tool_choice={"type": "function", "function": {"name": "x"}})


def test_stop_n_seed_and_limits(server: Server) -> None:
    counted = server.chat("count", stop=["5 6"]).choices[0]
    assert (counted.message.content, counted.finish_reason) == ("0 1 2 3 4 ", "stop")
    answer = server.chat("count", n=3, max_tokens=6, seed=4, temperature=0.5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert answer.usage.completion_tokens == 18
    assert server.chat("count", max_completion_tokens=4).usage.completion_tokens == 4
    chunks = list(server.chat("hello", n=2, stream=True))
    for index in range(2):
        mine = [c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == index]
        assert "".join(mine) == "Hello! How can I help?"


def test_chat_logprobs(server: Server) -> None:
    choice = server.chat("hello", logprobs=True, top_logprobs=2).choices[0]
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries) == choice.message.content
    assert bytes(b for entry in entries for b in entry.bytes).decode() == choice.message.content
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in entries)
    chunks = list(server.chat("hello", logprobs=True, stream=True))
    streamed = [e.token for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert "".join(streamed) == choice.message.content


def test_completions(server: Server) -> None:
    create = server.client.completions.create
    ids = server.post("/v1/completions", {"model": "scripted", "prompt": "x", "max_tokens": 1})
    assert ids.status_code == 500  # the script has nothing for text that is no conversation
    assert ids.json()["error"]["type"] == "server_error"
    prompt = [14, *range(100, 110), 16, 15]  # <|user|> … <|end|><|assistant|>
    text = create(model="scripted", prompt=[prompt, prompt], max_tokens=8, echo=True, logprobs=1)
    assert [choice.index for choice in text.choices] == [0, 1]
    scores = text.choices[0].logprobs
    assert scores.token_logprobs[0] is None and all(value <= 0 for value in scores.token_logprobs[1:])
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.text_offset) == len(prompt) + 8
    assert "".join(scores.tokens) == text.choices[0].text
    assert "You" in text.choices[0].text
    plain = create(model="scripted", prompt=prompt, max_tokens=8)
    streamed = "".join(
        c.choices[0].text for c in create(model="scripted", prompt=prompt, max_tokens=8, stream=True)
    )
    assert streamed == plain.choices[0].text and plain.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "body,status,said",
    [
        ({"temperature": 9}, 400, "temperature: .*less than or equal to 2"),
        ({"temperature": "hot"}, 400, "temperature: "),
        ({"messages": []}, 400, "messages: "),
        ({"messages": [{"role": "oracle", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "long " * 3000}]}, 400, "the context holds 1024"),
        ({"mesages": []}, 400, "unknown parameter: mesages"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"stop": ["a"] * 17}, 400, "at most 16"),
        ({"top_logprobs": 2}, 400, "needs logprobs"),
        ({"stream_options": {"include_usage": True}}, 400, "stream: true"),
        ({"model": "other"}, 404, "'other' does not exist"),
    ],
)
def test_bad_bodies(server: Server, body: dict[str, Any], status: int, said: str) -> None:
    good = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
    response = server.post("/v1/chat/completions", good | body)
    error = response.json()["error"]
    assert response.status_code == status, error
    assert re.search(said, error["message"]), error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_other_errors(server: Server) -> None:
    broken = httpx.post(
        f"{server.base}/v1/chat/completions", content="{", headers={"content-type": "application/json"}
    )
    assert broken.status_code == 400 and "not JSON" in broken.json()["error"]["message"]
    assert server.post("/v1/embeddings", {}).status_code == 404
    assert httpx.get(f"{server.base}/v1/completions").status_code == 405
    with pytest.raises(openai.BadRequestError) as raised:
        server.chat("long " * 3000)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="outside the vocabulary"):
        server.client.completions.create(model="scripted", prompt=[5000])


def test_the_page_needs_nothing_from_elsewhere(server: Server) -> None:
    response = httpx.get(server.base)
    assert response.status_code == 200 and "<title>scripted" in response.text
    assert not re.findall(r"(?:src|href)=\"(?!data:)", response.text)
    assert not re.findall(r"https?://(?!www\.w3\.org)", response.text)
    assert "script-src 'sha256-" in response.headers["content-security-policy"]


def test_metrics(server: Server) -> None:
    before = {
        name: server.metric(f"ikirere_{name}") for name in ("tool_calls_total", "generated_tokens_total")
    }
    usage = server.chat(QUESTION).usage
    assert server.metric("ikirere_tool_calls_total") == before["tool_calls_total"] + 1
    assert (
        server.metric("ikirere_generated_tokens_total")
        == before["generated_tokens_total"] + usage.completion_tokens
    )
    assert server.metric("ikirere_queue_running") == server.metric("ikirere_queue_waiting") == 0
    for name in ("time_to_first_token", "time_per_token", "request"):
        assert server.metric(f"ikirere_{name}_seconds_count") > 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_aborts_its_request(slow: Server, stream: bool) -> None:
    ended = slow.metric("ikirere_requests_total")
    body = {"model": "scripted", "messages": [{"role": "user", "content": "count"}], "stream": stream}
    host, port = slow.base.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + content)
        deadline = time.monotonic() + 15
        while not slow.metric("ikirere_queue_running"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    while slow.metric("ikirere_queue_running"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert slow.metric("ikirere_requests_total") == ended + 1
    assert re.search(r'finish_reason="abort"} \d', httpx.get(f"{slow.base}/metrics").text)


def test_requests_share_the_engine(slow: Server) -> None:
    # Four answers one after the other would take four times as long, at any load; three trials as others run beside.
    ratios = []
    for _ in range(3):
        began = time.monotonic()
        alone = slow.chat("count", max_tokens=40)
        single = time.monotonic() - began
        began = time.monotonic()
        answer = slow.chat("count", max_tokens=40, n=4)
        ratios.append((time.monotonic() - began) / single)
        assert {choice.message.content for choice in answer.choices} == {alone.choices[0].message.content}
        if ratios[-1] < 3:
            break
    assert min(ratios) < 3, ratios


def test_a_signal_ends_the_server_even_while_it_writes() -> None:
    server = Server(delay=0.02)
    stream = server.chat("count", stream=True)
    for _ in range(3):
        next(stream)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 15
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{server.base}/health", timeout=2)
