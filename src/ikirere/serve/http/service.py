"""What the routes share: the model, its defaults, usage, envelopes, token spellings."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from ikirere.serve.engine.request import Completion, Event, Request
from ikirere.serve.engine.worker import GenerationHandle, Worker
from ikirere.serve.http.protocol import Sampling
from ikirere.tokenizer.base import Tokenizer


@dataclass
class Service:
    """A served model.

    tools: names offered, and run by the engine, where a client gives no tools of its own.
    temperature: used where a client gives none. notice: a line about the model; None: nothing to report.
    """

    name: str
    tokenizer: Tokenizer
    worker: Worker
    max_model_len: int
    created: int
    tools: tuple[str, ...] = ()
    temperature: float = 0.0
    max_tool_calls: int = 4
    notice: str | None = None

    def sampling(self, body: Sampling, prompt_tokens: int, max_tokens: int | None) -> dict[str, Any]:
        """The settings that both endpoints share. The answer is bounded by what the context leaves."""
        available = max(1, self.max_model_len - prompt_tokens)
        return {
            "max_new_tokens": available if max_tokens is None else min(max_tokens, available),
            "temperature": self.temperature if body.temperature is None else body.temperature,
            "top_k": max(0, body.top_k or 0),
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "stop": tuple(body.stop or ()),
            "logit_bias": body.logit_bias or {},
            "ignore_end": bool(body.ignore_eos),
        }

    def choices(self, fixed: dict[str, Any], count: int | None, seed: int | None) -> list[Request]:
        """`count` requests that differ in their seeds; without a seed each call draws its own."""
        first = secrets.randbits(62) if seed is None else seed
        return [Request(**fixed, seed=first + number) for number in range(count or 1)]

    def submit(self, requests: Sequence[Request]) -> list[GenerationHandle]:
        """Queue all or none."""
        handles: list[GenerationHandle] = []
        try:
            for request in requests:
                handles.append(self.worker.submit(request))
        except Exception:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def envelope(
        self, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The outer object of an answer, or of every chunk of a stream."""
        prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
        body: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.name,
            "choices": choices,
        }
        return body | {"usage": usage} if usage is not None else body

    def usage(self, completions: Sequence[Completion], prompts: int = 1) -> dict[str, Any]:
        """Token counts. The choices of one prompt count it once."""
        each = max(1, len(completions) // prompts)
        prompt = sum(completion.prompt_tokens for completion in completions[::each])
        sampled = sum(completion.sampled for completion in completions)
        return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


async def merge(handles: Sequence[GenerationHandle]) -> AsyncIterator[tuple[int, Event]]:
    """Events of several generations as they come, with the generation's number. Leaving it aborts those that still run."""
    if len(handles) == 1:
        async for event in handles[0].events():
            yield 0, event
        return
    ready: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()

    async def pump(number: int, handle: GenerationHandle) -> None:
        try:
            async for event in handle.events():
                ready.put_nowait((number, event))
        except Exception as error:
            ready.put_nowait((number, error))

    pumps = [asyncio.create_task(pump(number, handle)) for number, handle in enumerate(handles)]
    try:
        left = len(pumps)
        while left:
            number, item = await ready.get()
            if isinstance(item, Exception):
                raise item
            left -= item.kind == "done"
            yield number, item
    finally:
        for task in pumps:
            task.cancel()
        for handle in handles:
            handle.cancel()


def stop_reason(completion: Completion) -> str:
    """OpenAI's finish_reason."""
    return "stop" if completion.finish_reason == "abort" else completion.finish_reason


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token as text; one that is part of a character as its bytes, as OpenAI writes them."""
    data = tokenizer.decode_bytes([token], keep_special=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def bytes_of(tokenizer: Tokenizer, token: int) -> list[int]:
    """A token's bytes."""
    return list(tokenizer.decode_bytes([token], keep_special=True))
