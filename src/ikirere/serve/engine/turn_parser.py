"""One assistant turn as events: the chat format's parser with stop strings, or plain text."""

from __future__ import annotations

from typing import Any

from ikirere.serve.engine.request import Event
from ikirere.tokenizer.assistant_parser import AssistantParser, Delta, Part
from ikirere.tokenizer.base import Tokenizer


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
        found = [start for start in (self.held.find(string) for string in self.stop) if start >= 0]
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


class TurnParser:
    """One assistant turn. `push` each id; `finish` when no more come; then `message` is the turn.

    chat: read scratchpad, text and tool calls. False: all ids but <|end|> and <eos> are text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], chat: bool) -> None:
        self.ids: list[int] = []
        self.text = ""  # shown: without what stop strings hold back or cut
        self._chat = AssistantParser(tokenizer) if chat else None
        self._ends = (tokenizer.end, tokenizer.eos)
        self._decoder = tokenizer.stream_decoder()
        self._stop = StopStrings(stop)

    @property
    def ended(self) -> bool:
        """<|end|> or <eos> came."""
        return bool(self.ids) and self.ids[-1] in self._ends

    @property
    def stopped(self) -> bool:
        """A stop string came."""
        return self._stop.hit

    @property
    def part(self) -> Part:
        """The part to which the next id belongs."""
        return "text" if self._chat is None else self._chat.part

    @property
    def calls_opened(self) -> int:
        """Tool calls begun, readable or not."""
        return 0 if self._chat is None else self._chat.calls_opened

    def push(self, token: int) -> list[Event]:
        """Events that this id completes."""
        self.ids.append(token)
        if self._chat is not None:
            events = [event for delta in self._chat.push(token) for event in self._events(delta)]
        else:
            events = [] if self.ended else self._show(self._decoder.push(token))
        return events + self.finish() if self.ended else events

    def finish(self) -> list[Event]:
        """Flush what is held back. Safe to call twice."""
        if self._chat is not None:
            events = [event for delta in self._chat.finish() for event in self._events(delta)]
        else:
            events = self._show(self._decoder.flush())
        held = self._stop.flush()
        self.text += held
        return [*events, Event("text", held)] if held else events

    def message(self) -> dict[str, Any]:
        """The turn as an assistant message; its content is cut where a stop string came."""
        if self._chat is None:
            return {"role": "assistant", "content": self.text}
        message = self._chat.message()
        return {**message, "content": self.text} if self.stopped else message

    def _events(self, delta: Delta) -> list[Event]:
        if delta.call is not None:
            call = delta.call
            known = {"name": call.name, "arguments": call.arguments}
            return [Event("tool_call", data=known if call.error is None else {"error": call.error})]
        return self._show(delta.text) if delta.part == "text" else [Event("scratchpad", delta.text)]

    def _show(self, text: str) -> list[Event]:
        shown = self._stop.push(text)
        self.text += shown
        return [Event("text", shown)] if shown else []
