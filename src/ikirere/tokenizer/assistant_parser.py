"""The chat format read back: the ids that a model writes after <|assistant|>, to text, scratchpad and tool calls."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.chat_format import ChatTokens

Part = Literal["text", "scratchpad", "call"]


@dataclass(frozen=True)
class ParsedCall:
    """A tool call as the model wrote it. error: why it cannot be executed; `name` is then '' and `arguments` empty."""

    name: str
    arguments: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True)
class Delta:
    """What an id completed: whole characters of the content ("text") or the scratchpad, or a closed call ("call")."""

    part: Part
    text: str = ""
    call: ParsedCall | None = None


class AssistantParser:
    """Reads the turn that the model writes after <|assistant|>, id by id, up to <|end|> or <eos>.

    Any ids can be read. A call interrupts the text or scratchpad around it. A call that is not closed, not
    JSON, or not a name with an object of arguments is no call; the first such error is in `message`. Special tokens
    that an assistant cannot write are left out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens = ChatTokens.of(tokenizer)
        self._decoder = tokenizer.stream_decoder()
        self._written: dict[Part, list[str]] = {"text": [], "scratchpad": []}
        self._in_scratchpad = False
        self._call: list[int] | None = None  # ids of the call that is open
        self._calls: list[ParsedCall] = []
        self._errors: list[str] = []
        self.calls_opened = 0  # readable or not
        self.ended = False

    @property
    def part(self) -> Part:
        """The part to which the next id of text belongs."""
        if self._call is not None:
            return "call"
        return "scratchpad" if self._in_scratchpad else "text"

    def push(self, token: int) -> list[Delta]:
        """Reads one id and returns what it completed. Ids after the end are ignored."""
        tokens = self._tokens
        if self.ended:
            return []
        if token in (tokens.end, tokens.eos):
            self.ended = True
            return self.finish()
        if token == tokens.call_tool:
            deltas = self.finish()
            if self._call is not None:
                self._errors.append("a call was opened inside a call")
            self.calls_opened += 1
            self._call = []
            return deltas
        if token == tokens.call_tool_end:
            return self._close_call()
        if self._call is not None:
            self._call.append(token)
            return []
        if token in (tokens.scratchpad, tokens.scratchpad_end):
            deltas = self.finish()
            self._in_scratchpad = token == tokens.scratchpad
            return deltas
        return self._deltas(self._decoder.push(token))

    def finish(self) -> list[Delta]:
        """The text that is held back (unfinished characters as U+FFFD), where no more ids come."""
        deltas = self._deltas(self._decoder.flush())
        self._decoder = self._tokenizer.stream_decoder()  # each stretch of text is encoded by itself
        return deltas

    def message(self) -> dict[str, Any]:
        """`role`, `content`, and where there are any `reasoning_content`, `tool_calls` and `tool_call_error`."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._written["text"])}
        if self._written["scratchpad"]:
            message["reasoning_content"] = "".join(self._written["scratchpad"])
        if self._calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self._calls
            ]
        errors = self._errors if self._call is None else [*self._errors, "the call was not closed"]
        if errors:
            message["tool_call_error"] = errors[0]
        return message

    def _deltas(self, text: str) -> list[Delta]:
        if not text:
            return []
        self._written[self.part].append(text)
        return [Delta(self.part, text)]

    def _close_call(self) -> list[Delta]:
        if self._call is None:
            self._errors.append("a call was closed that was not opened")
            return self.finish()
        call = _parse_call(self._tokenizer.decode(self._call))
        self._call = None
        if call.error is None:
            self._calls.append(call)
        else:
            self._errors.append(call.error)
        return [Delta("call", call=call)]


def parse_assistant(tokenizer: Tokenizer, ids: Iterable[int]) -> dict[str, Any]:
    """The message that the model wrote after <|assistant|>, up to <|end|> or to where it stopped."""
    parser = AssistantParser(tokenizer)
    for token in ids:
        parser.push(token)
    parser.finish()
    return parser.message()


def _parse_call(text: str) -> ParsedCall:
    try:
        call = json.loads(text, parse_constant=_not_json)
        # An escape can spell a lone surrogate, and 1e999 is read as infinity: neither could be written again.
        json.dumps(call, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        return ParsedCall("", {}, f"not JSON: {error}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return ParsedCall("", {}, "the call has no name")
    if not isinstance(call.get("arguments"), dict):
        return ParsedCall("", {}, f"the arguments of {call['name']} are not an object")
    return ParsedCall(call["name"], call["arguments"])


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")
