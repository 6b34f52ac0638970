"""`/v1/chat/completions`: from OpenAI's body to a request of the engine, and from its events to OpenAI's answers.

Beyond OpenAI's fields: `reasoning_content` (the scratchpad) in message and delta; `tool_events` in message and
delta, the calls that the engine itself ran and their results; `trace` in each choice (in a stream: in its last
chunk), all assistant and tool messages of the answer, to be sent back as history.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

from ikirere.serve.engine.request import Completion, Event, Request, Scored
from ikirere.serve.engine.worker import GenerationHandle
from ikirere.serve.http.protocol import ChatRequest, NamedTool
from ikirere.serve.http.service import Service, bytes_of, merge, spelled, stop_reason
from ikirere.tokenizer.chat_format import forced_call_ids, render
from ikirere.tools import registry


def build(service: Service, body: ChatRequest) -> list[Request]:
    """One request per choice. Raises UserError for messages that do not fit the template."""
    tokenizer = service.tokenizer
    offered: list[dict[str, Any]] = []
    executed: frozenset[str] = frozenset()
    if body.tool_choice != "none":
        if body.tools is not None:
            offered = [tool.model_dump(exclude_none=True) for tool in body.tools]
        else:
            executed = frozenset(service.tools)
            offered = registry.definitions(service.tools)
    prompt = render(
        tokenizer, [message.plain() for message in body.messages], offered or None, add_generation_prompt=True
    ).ids
    limit = body.max_tool_calls if body.max_tool_calls is not None else service.max_tool_calls
    if body.tools and body.parallel_tool_calls is False:
        limit = min(limit, 1)
    fixed = dict(
        service.sampling(body, len(prompt), body.max_completion_tokens or body.max_tokens),
        prompt=prompt,
        execute_tools=executed,
        max_tool_calls=limit if offered else 0,
        start=tuple(_start(service, body)) if offered else (),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return service.choices(fixed, body.n, body.seed)


def _start(service: Service, body: ChatRequest) -> list[int]:
    """The ids that make the turn a call where the client requires one."""
    if isinstance(body.tool_choice, NamedTool):
        return forced_call_ids(service.tokenizer, body.tool_choice.function.name)
    return forced_call_ids(service.tokenizer) if body.tool_choice == "required" else []


# ---------------------------------------------------------------- whole answers


async def answer(service: Service, body: ChatRequest, handles: list[GenerationHandle]) -> dict[str, Any]:
    """The body of a `chat.completion`."""
    completions = [await handle.completion() for handle in handles]
    choices = [_choice(service, index, completion) for index, completion in enumerate(completions)]
    return service.envelope("chat.completion", choices, service.usage(completions))


def _choice(service: Service, index: int, completion: Completion) -> dict[str, Any]:
    produced = completion.messages
    reasoning = "\n".join(m["reasoning_content"] for m in produced if m.get("reasoning_content"))
    message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if completion.finish_reason == "tool_calls":
        message["tool_calls"] = [client_call(call["function"]) for call in produced[-1]["tool_calls"]]
        message["content"] = completion.text or None
    events = tool_events(produced)
    if events:
        message["tool_events"] = events
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(service, completion.logprobs),
        "finish_reason": stop_reason(completion),
        "trace": produced,
    }


def tool_events(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls that were answered, and the answers, in order."""
    events: list[dict[str, Any]] = []
    for position, message in enumerate(messages):
        if message["role"] == "tool":
            events.append({"type": "result", "name": message["name"], "content": message["content"]})
        elif any(later["role"] == "tool" for later in messages[position:]):
            for call in message.get("tool_calls", ()):
                events.append({"type": "call", **call["function"]})
            if message.get("tool_call_error"):
                events.append({"type": "call", "error": message["tool_call_error"]})
    return events


def client_call(function: dict[str, Any]) -> dict[str, Any]:
    """A call in OpenAI's form, arguments as JSON text."""
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _logprobs(service: Service, scored: list[Scored] | None) -> dict[str, Any] | None:
    """Scores of the visible text's tokens."""
    if scored is None:
        return None
    content = []
    for entry in scored:
        if entry.part == "text":
            own = _token(service, entry.score.id, entry.score.logprob)
            own["top_logprobs"] = [_token(service, token, value) for token, value in entry.score.top]
            content.append(own)
    return {"content": content, "refusal": None}


def _token(service: Service, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": spelled(service.tokenizer, token),
        "logprob": max(logprob, -9999.0),
        "bytes": bytes_of(service.tokenizer, token),
    }


# ---------------------------------------------------------------- streams


async def chunks(
    service: Service, body: ChatRequest, handles: list[GenerationHandle]
) -> AsyncIterator[dict[str, Any]]:
    """The `chat.completion.chunk` bodies, all under one id."""
    envelope = service.envelope("chat.completion.chunk", [])
    streams = [_Stream(service, index, bool(body.tools), handle) for index, handle in enumerate(handles)]
    for index in range(len(streams)):
        yield envelope | {"choices": [_delta(index, {"role": "assistant", "content": ""})]}
    completions: list[Completion] = []
    async for index, event in merge(handles):
        if event.kind == "done":
            completions.append(event.data)
        for choice in streams[index].choices(event):
            yield envelope | {"choices": [choice]}
    if body.stream_options is not None and body.stream_options.include_usage:
        yield envelope | {"usage": service.usage(completions)}


class _Stream:
    """One choice of a stream."""

    def __init__(self, service: Service, index: int, for_client: bool, handle: GenerationHandle) -> None:
        self.service, self.index, self.for_client, self.handle = service, index, for_client, handle
        self.called = 0
        self.scored = 0

    def choices(self, event: Event) -> list[dict[str, Any]]:
        """The choice objects that an event becomes."""
        if event.kind == "text":
            return [self._with_logprobs({"content": event.text})]
        if event.kind == "scratchpad":
            return [_delta(self.index, {"reasoning_content": event.text})]
        if event.kind == "tool_call" and not self.for_client:
            if "error" not in event.data and event.data["name"] not in self.service.tools:
                return []  # nobody here runs it: it goes to the client with the last chunk
            return [_delta(self.index, {"tool_events": [{"type": "call", **event.data}]})]
        if event.kind == "tool_call" and "error" not in event.data:
            call = {"index": self.called, **client_call(event.data)}
            self.called += 1
            return [_delta(self.index, {"tool_calls": [call]})]
        if event.kind == "tool_result":
            result = {"type": "result", "name": event.data["name"], "content": event.text}
            return [_delta(self.index, {"tool_events": [result]})]
        if event.kind == "done":
            return self._last(event.data)
        return []

    def _with_logprobs(self, delta: dict[str, Any]) -> dict[str, Any]:
        choice = _delta(self.index, delta)
        sequence = self.handle.sequence
        if sequence is not None and sequence.request.logprobs is not None:
            fresh = sequence.logprobs[self.scored :]
            self.scored += len(fresh)
            choice["logprobs"] = _logprobs(self.service, fresh)
        return choice

    def _last(self, completion: Completion) -> list[dict[str, Any]]:
        delta: dict[str, Any] = {}
        if completion.finish_reason == "tool_calls" and not self.for_client:
            # A tool that the server does not have was called: the client gets it after all.
            calls = completion.messages[-1]["tool_calls"]
            delta["tool_calls"] = [{"index": i, **client_call(c["function"])} for i, c in enumerate(calls)]
        choice = self._with_logprobs(delta)
        return [choice | {"finish_reason": stop_reason(completion), "trace": completion.messages}]


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
