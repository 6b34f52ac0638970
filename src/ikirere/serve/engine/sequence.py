"""The state of one request: what the model is fed next, what it wrote, when it is over. No tensors here."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ikirere.serve.engine.request import Completion, Event, FinishReason, Request, Scored
from ikirere.serve.engine.sampling import RowSettings, TokenLogprob
from ikirere.serve.engine.turn_parser import TurnParser
from ikirere.tokenizer.assistant_parser import ParsedCall
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.chat_format import ChatTokens, tool_result_ids
from ikirere.tools.result import ToolResult


class Sequence:
    """State of one request.

    `pending`: ids to feed next (the prompt at first, then the sampled id, or the ids of tools' results).
    `num_computed_tokens`: ids that the cache holds. `calls`: the tool calls whose results are awaited.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        chat_tokens: ChatTokens,
        max_model_len: int,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.request = request
        self.tokenizer = tokenizer
        self.chat_tokens = chat_tokens
        self.max_model_len = max_model_len
        self.on_event = on_event
        self.row = -1  # of the cache; -1: none
        self.order = 0  # of arrival
        self.num_computed_tokens = 0
        self.pending: list[int] = [*request.prompt, *request.start]
        self.ids: list[int] = list(request.start)
        self.messages: list[dict[str, Any]] = []
        self.text = ""
        self.tool_calls = 0
        self.sampled = 0
        self.calls: list[ParsedCall] = []
        self.finish_reason: FinishReason | None = None
        self.logprobs: list[Scored] = []
        self.prompt_logprobs: list[TokenLogprob | None] = [None]
        self.random = random.Random(request.seed)
        self.parser = self._new_parser()
        for token in request.start:
            self._emit_all(self.parser.push(token))

    def _new_parser(self) -> TurnParser:
        return TurnParser(self.tokenizer, self.request.stop, self.request.chat)

    # ------------------------------------------------------------ read by the engine

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    @property
    def ready(self) -> bool:
        """Has exactly one id to feed, so it belongs to the decode step."""
        return not self.done and not self.calls and len(self.pending) == 1

    @property
    def prefilling(self) -> bool:
        return not self.done and not self.calls and len(self.pending) > 1

    def settings(self) -> RowSettings:
        """How to sample the next id. Draws this request's next uniform number."""
        request = self.request
        banned: tuple[int, ...] = ()
        if request.chat:
            banned = self.chat_tokens.forbidden
            if self.tool_calls + self.parser.calls_opened >= request.max_tool_calls:
                banned = (*banned, self.chat_tokens.call_tool)
        if request.ignore_end:
            banned = (*banned, self.chat_tokens.end, self.chat_tokens.eos)
        uniform = self.random.random() if request.temperature > 0 else 0.0
        return RowSettings(
            request.temperature, request.top_k, request.top_p, uniform, banned, request.logit_bias
        )

    # ------------------------------------------------------------ updated by the engine

    def advance(self, count: int) -> None:
        """`count` of the pending ids are in the cache now."""
        self.num_computed_tokens += count
        del self.pending[:count]

    def append_token(self, token: int, score: TokenLogprob | None) -> None:
        """Take a sampled id. score: its log-probability, where the request asks for it."""
        if self.request.max_new_tokens == 0:  # the prompt was to be scored, no more
            self._finish("length", keep_turn=False)
            return
        parser = self.parser
        self.sampled += 1
        self.ids.append(token)
        if score is not None:
            special = token in self.tokenizer.special_ids
            self.logprobs.append(Scored("special" if special else parser.part, score))
        self._emit_all(parser.push(token))
        if parser.ended:
            self._end_turn()
        elif parser.stopped:
            self._finish("stop")
        elif self.sampled >= self.request.max_new_tokens or self.num_computed_tokens >= self.max_model_len:
            self._finish("length")
        else:
            self.pending = [token]

    def append_tool_results(self, results: list[ToolResult]) -> None:
        """Take the results of `calls`, in their order. Their ids are fed before the next assistant turn."""
        for call, result in zip(self.calls, results, strict=True):
            self.messages.append({"role": "tool", "name": call.name, "content": result.content})
            self._emit(Event("tool_result", result.content, {"name": call.name, "ok": result.ok}))
        self.calls = []
        forced = tool_result_ids(self.tokenizer, [result.content for result in results])
        self.parser = self._new_parser()
        if self.num_computed_tokens + 1 + len(forced) > self.max_model_len:
            self._finish("length", keep_turn=False)
            return
        self.ids += forced
        self.pending = [self.chat_tokens.end, *forced]

    def abort(self) -> None:
        if not self.done:
            self.calls = []
            self._finish("abort")

    # ------------------------------------------------------------ inside

    def _end_turn(self) -> None:
        message = self._keep_turn()
        error = message.get("tool_call_error")
        wanted = [call["function"] for call in message.get("tool_calls", ())]
        executed = self.request.execute_tools
        if wanted and any(call["name"] not in executed for call in wanted):
            self._finish("tool_calls", keep_turn=False)
        elif not wanted and not error:
            self._finish("stop", keep_turn=False)
        elif self.sampled >= self.request.max_new_tokens:
            self._finish("length", keep_turn=False)
        else:
            self.calls = [ParsedCall(call["name"], call["arguments"]) for call in wanted]
            if error:
                self.calls.append(ParsedCall("", {}, error))

    def _keep_turn(self) -> dict[str, Any]:
        """Add the turn's message, text and number of calls to those of the request; returns the message."""
        message = self.parser.message()
        self.messages.append(message)
        self.text += self.parser.text
        self.tool_calls += self.parser.calls_opened
        return message

    def _finish(self, reason: FinishReason, keep_turn: bool = True) -> None:
        self.finish_reason = reason
        self.pending = []
        if keep_turn:
            self._emit_all(self.parser.finish())
            if self.parser.ids or not self.messages:
                self._keep_turn()
        self._emit(Event("done", data=self.completion()))

    def completion(self) -> Completion:
        """The result as it stands."""
        asked = self.request.logprobs is not None
        return Completion(
            ids=self.ids,
            text=self.text,
            finish_reason=self.finish_reason or "abort",
            messages=self.messages,
            tool_calls=self.tool_calls,
            logprobs=self.logprobs if asked else None,
            prompt_logprobs=self.prompt_logprobs if self.request.prompt_logprobs else None,
            prompt_tokens=len(self.request.prompt),
            sampled=self.sampled,
        )

    def _emit(self, event: Event) -> None:
        if self.on_event is not None:
            self.on_event(event)

    def _emit_all(self, events: list[Event]) -> None:
        for event in events:
            self._emit(event)
