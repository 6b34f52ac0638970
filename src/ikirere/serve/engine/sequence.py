"""A request on its way: what is fed next, what came out, when it is over. No tensors here."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ikirere.serve.engine.request import Completion, Event, FinishReason, Request, Scored
from ikirere.serve.engine.sampling import RowSettings, TokenLogprob
from ikirere.serve.engine.turn_parser import ChatTokens, Turn
from ikirere.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class ParsedCall:
    """A tool call that the engine is to answer; `error` where it cannot be read."""

    name: str
    arguments: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True)
class ToolReply:
    """What a tool said."""

    name: str
    ok: bool
    content: str


class Sequence:
    """State of one request.

    `pending` are the ids to feed next: the prompt at first, then the sampled id, or a tool result's forced
    ids. `fed` counts the ids that the cache holds. `calls` is non-empty while tools are awaited.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        marks: ChatTokens,
        capacity: int,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.request = request
        self.tokenizer = tokenizer
        self.marks = marks
        self.capacity = capacity
        self.on_event = on_event
        self.row = -1  # of the cache; -1: none
        self.order = 0  # of arrival
        self.fed = 0
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
        self.turn = self._new_turn()
        for token in request.start:
            self._emit_all(self.turn.push(token))

    def _new_turn(self) -> Turn:
        return Turn(self.tokenizer, self.marks, self.request.stop, self.request.chat)

    # ------------------------------------------------------------ what the engine asks

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
            banned = self.marks.never
            if self.tool_calls + self.turn.calls >= request.max_tool_calls:
                banned = (*banned, self.marks.call)
        if request.ignore_end:
            banned = (*banned, self.marks.end, self.marks.eos)
        uniform = self.random.random() if request.temperature > 0 else 0.0
        return RowSettings(
            request.temperature, request.top_k, request.top_p, uniform, banned, request.logit_bias
        )

    # ------------------------------------------------------------ what the engine tells

    def feed(self, count: int) -> None:
        """`count` of the pending ids are in the cache now."""
        self.fed += count
        del self.pending[:count]

    def accept(self, token: int, score: TokenLogprob | None) -> None:
        """A sampled id."""
        if self.request.max_new_tokens == 0:  # the prompt was to be scored, no more
            self._finish("length", keep_turn=False)
            return
        turn = self.turn
        self.sampled += 1
        self.ids.append(token)
        if score is not None:
            special = token in self.tokenizer.special_ids
            self.logprobs.append(Scored("mark" if special else turn.part, score))
        self._emit_all(turn.push(token))
        if turn.ended:
            self._end_turn()
        elif turn.stopped:
            self._finish("stop")
        elif self.sampled >= self.request.max_new_tokens or self.fed >= self.capacity:
            self._finish("length")
        else:
            self.pending = [token]

    def answer(self, answers: list[ToolReply]) -> None:
        """The tools' results: forced ids, in the template's form, before the next assistant turn."""
        self.calls = []
        forced: list[int] = []
        for answer in answers:
            self.messages.append({"role": "tool", "name": answer.name, "content": answer.content})
            self._emit(Event("tool_result", answer.content, {"name": answer.name, "ok": answer.ok}))
            forced += [self.marks.result, *self.tokenizer.encode(answer.content), self.marks.result_end]
        forced.append(self.marks.assistant)
        self.turn = self._new_turn()
        if self.fed + 1 + len(forced) > self.capacity:
            self._finish("length", keep_turn=False)
            return
        self.ids += forced
        self.pending = [self.marks.end, *forced]

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
        """Close the turn: its message, its text and its calls are the request's now."""
        message = self.turn.message()
        self.messages.append(message)
        self.text += self.turn.text
        self.tool_calls += self.turn.calls
        return message

    def _finish(self, reason: FinishReason, keep_turn: bool = True) -> None:
        self.finish_reason = reason
        self.pending = []
        if keep_turn:
            self._emit_all(self.turn.finish())
            if self.turn.ids or not self.messages:
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
