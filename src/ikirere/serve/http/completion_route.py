"""`/v1/completions`: text or token ids continued as plain text, with `echo` and `logprobs` as lm-eval needs them."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator
from typing import Any

from ikirere.serve.engine.request import Completion, Request
from ikirere.serve.engine.sampling import TokenLogprob
from ikirere.serve.engine.worker import GenerationHandle
from ikirere.serve.http.protocol import CompletionRequest
from ikirere.serve.http.service import Service, merge, spelled, stop_reason

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def build(service: Service, body: CompletionRequest) -> list[Request]:
    """Requests for all choices of all prompts, a prompt's choices together."""
    requests: list[Request] = []
    for prompt in body.prompts():
        ids = service.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        limit = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        fixed = dict(
            service.sampling(body, len(ids), limit),
            prompt=ids,
            chat=False,
            max_tool_calls=0,
            logprobs=body.logprobs,
            prompt_logprobs=bool(body.echo) and (body.logprobs is not None or limit == 0),
        )
        requests += service.choices(fixed, body.n, body.seed)
    return requests


async def answer(
    service: Service, body: CompletionRequest, handles: list[GenerationHandle]
) -> dict[str, Any]:
    """The body of a `text_completion`."""
    completions = [await handle.completion() for handle in handles]
    choices = []
    for index, (handle, completion) in enumerate(zip(handles, completions)):
        prompt = _prompt_text(service, body, handle.request) if body.echo else ""
        choices.append(
            {
                "index": index,
                "text": prompt + completion.text,
                "logprobs": _logprobs(service, body, handle.request, completion),
                "finish_reason": stop_reason(completion),
            }
        )
    return service.envelope("text_completion", choices, service.usage(completions, len(body.prompts())))


async def chunks(
    service: Service, body: CompletionRequest, handles: list[GenerationHandle]
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream, all under one id. Log-probabilities come with each choice's last chunk."""
    envelope = service.envelope("text_completion", [])

    def choice(index: int, text: str, **more: Any) -> dict[str, Any]:
        return envelope | {
            "choices": [{"index": index, "text": text, "logprobs": None, "finish_reason": None} | more]
        }

    if body.echo:
        for index, handle in enumerate(handles):
            yield choice(index, _prompt_text(service, body, handle.request))
    completions: dict[int, Completion] = {}
    async for index, event in merge(handles):
        if event.kind == "text":
            yield choice(index, event.text)
        elif event.kind == "done":
            completions[index] = event.data
            scores = _logprobs(service, body, handles[index].request, event.data)
            yield choice(index, "", finish_reason=stop_reason(event.data), logprobs=scores)
    if body.stream_options is not None and body.stream_options.include_usage:
        ordered = [completions[index] for index in sorted(completions)]
        yield envelope | {"usage": service.usage(ordered, len(body.prompts()))}


def _prompt_text(service: Service, body: CompletionRequest, request: Request) -> str:
    return service.tokenizer.decode(request.prompt, keep_special=True)


def _logprobs(
    service: Service, body: CompletionRequest, request: Request, completion: Completion
) -> dict[str, Any] | None:
    """Tokens, their scores, alternatives and offsets in the text, the prompt's first where it is echoed."""
    if body.logprobs is None:
        return None
    scores: list[TokenLogprob | None] = []
    ids: list[int] = []
    if body.echo:
        ids += request.prompt
        scores += completion.prompt_logprobs or []
    for scored in completion.logprobs or ():
        if scored.part == "text":
            ids.append(scored.score.id)
            scores.append(scored.score)
    tokenizer = service.tokenizer
    tokens = [spelled(tokenizer, token) for token in ids]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets, offset = [], 0
    for token in ids:
        offsets.append(offset)
        offset += len(decoder.decode(tokenizer.decode_bytes([token], keep_special=True)))
    return {
        "tokens": tokens,
        "token_logprobs": [None if score is None else max(score.logprob, -9999.0) for score in scores],
        "top_logprobs": [None if score is None else _alternatives(service, score) for score in scores],
        "text_offset": offsets,
    }


def _alternatives(service: Service, score: TokenLogprob) -> dict[str, float]:
    """Spelling -> log-probability, the chosen token always among them; of equal spellings the likelier stays."""
    found: dict[str, float] = {}
    for token, value in (*score.top, (score.id, score.logprob)):
        found.setdefault(spelled(service.tokenizer, token), max(value, -9999.0))
    return found
