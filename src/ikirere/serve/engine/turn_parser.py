"""Reads one assistant turn as its tokens come: scratchpad, visible text, tool calls, end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ikirere.serve.engine.request import Event
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.chat_format import parse_assistant

Part = Literal["text", "scratchpad", "call"]


@dataclass(frozen=True)
class ChatTokens:
    """Ids of the special tokens that shape a turn."""

    eos: int
    end: int
    scratchpad: int
    scratchpad_end: int
    call: int
    call_end: int
    result: int
    result_end: int
    assistant: int
    never: tuple[int, ...]  # what an assistant may not write: roles, tool results, padding

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTokens:
        identity = tokenizer.id
        never = (
            "<pad>",
            "<bos>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<tool_result>",
            "</tool_result>",
        )
        return cls(
            eos=tokenizer.eos,
            end=tokenizer.end,
            scratchpad=identity("<scratchpad>"),
            scratchpad_end=identity("</scratchpad>"),
            call=identity("<call_tool>"),
            call_end=identity("</call_tool>"),
            result=identity("<tool_result>"),
            result_end=identity("</tool_result>"),
            assistant=identity("<|assistant|>"),
            never=tuple(identity(name) for name in never),
        )


class StopStrings:
    """Lets text through until one of the strings comes; holds back what may be the beginning of one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stop = stop
        self.held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """Text that can be shown now."""
        if self.hit or not text:
            return ""
        if not self.stop:
            return text
        self.held += text
        found = [place for place in (self.held.find(string) for string in self.stop) if place >= 0]
        if found:
            self.hit = True
            shown, self.held = self.held[: min(found)], ""
            return shown
        keep = max(self._overlap(string) for string in self.stop)
        cut = len(self.held) - keep
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown

    def flush(self) -> str:
        shown, self.held = self.held, ""
        return shown

    def _overlap(self, string: str) -> int:
        """Length of the longest end of the held text that begins `string`."""
        for length in range(min(len(string) - 1, len(self.held)), 0, -1):
            if self.held.endswith(string[:length]):
                return length
        return 0


class Turn:
    """One assistant turn. `push` each id; `finish` when no more come; then `message` is the turn."""

    def __init__(self, tokenizer: Tokenizer, marks: ChatTokens, stop: tuple[str, ...], chat: bool) -> None:
        self.tokenizer = tokenizer
        self.marks = marks
        self.chat = chat
        self.ids: list[int] = []
        self.part: Part = "text"
        self.calls = 0
        self.ended = False  # by <|end|> or <eos>
        self.text = ""
        self._stop = StopStrings(stop)
        self._decoder = tokenizer.stream_decoder()
        self._call_from = 0

    @property
    def stopped(self) -> bool:
        """A stop string came."""
        return self._stop.hit

    def push(self, token: int) -> list[Event]:
        """Events that this id completes."""
        self.ids.append(token)
        marks = self.marks
        if token in (marks.end, marks.eos):
            self.ended = True
            return self.finish()
        if not self.chat:
            return self._piece(self._decoder.push(token))
        if token in (marks.scratchpad, marks.scratchpad_end) and self.part != "call":
            return self._enter("scratchpad" if token == marks.scratchpad else "text")
        if token == marks.call:
            self.calls += 1
            self._call_from = len(self.ids) - 1
            return self._enter("call")
        if token == marks.call_end:
            return self._close_call()
        if self.part == "call":
            return []
        return self._piece(self._decoder.push(token))

    def finish(self) -> list[Event]:
        """Flush what is held back. Safe to call twice."""
        events = self._leave()
        held = self._stop.flush()
        if held:
            self.text += held
            events.append(Event("text", held))
        return events

    def message(self) -> dict[str, Any]:
        """The turn as an assistant message; its content is cut where a stop string came."""
        if not self.chat:
            return {"role": "assistant", "content": self.text}
        message = parse_assistant(self.tokenizer, self.ids)
        if self.stopped:
            message["content"] = self.text
        return message

    def _enter(self, part: Part) -> list[Event]:
        events = self._leave()
        self.part = part
        return events

    def _leave(self) -> list[Event]:
        events = self._piece(self._decoder.flush()) if self.part != "call" else []
        self._decoder = self.tokenizer.stream_decoder()
        return events

    def _close_call(self) -> list[Event]:
        if self.part != "call":
            return self._enter("text")
        self.part = "text"
        parsed = parse_assistant(self.tokenizer, self.ids[self._call_from :])
        if parsed.get("tool_calls"):
            return [Event("tool_call", data=dict(parsed["tool_calls"][0]["function"]))]
        return [Event("tool_call", data={"error": parsed.get("tool_call_error", "the call cannot be read")})]

    def _piece(self, text: str) -> list[Event]:
        if self.part == "scratchpad":
            return [Event("scratchpad", text)] if text else []
        shown = self._stop.push(text)
        self.text += shown
        return [Event("text", shown)] if shown else []
