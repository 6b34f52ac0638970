"""Talk to a model in a terminal, or through a pipe: one question per line in, answers out.

In a terminal the scratchpad and the tools stand dim between question and answer. Where the output is a pipe,
only answers go to it; the scratchpad and the tools go to the error stream.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ikirere.serve.engine.cpu_threads import fit_threads
from ikirere.serve.engine.engine import Engine
from ikirere.serve.engine.request import Completion, Event, Request
from ikirere.serve.load import load_run_model, model_name
from ikirere.tokenizer.chat_format import render
from ikirere.tools import registry

PROMPT = "› "
RESERVED = 64  # tokens of context kept free for an answer; the oldest exchanges are dropped for it
HELP = "/reset starts a new chat · /tools switches the tools · /exit or Ctrl-D ends · Ctrl-C stops an answer"


class Screen:
    """Where things are written. Answers go to `answers`, all else to `aside`."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.answers = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.aside = self.answers
        if not sys.stdout.isatty():
            self.aside = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._open: str | None = None  # the kind of line that is being written

    def write(self, kind: str, text: str) -> None:
        """A piece of the scratchpad or of the answer, as it comes."""
        if self._open != kind:
            self.close()
            self._open = kind
            if kind == "scratchpad":
                self.aside.print("┊ ", end="", style="dim")
        if kind == "scratchpad":
            self.aside.print(visible(text), end="", style="dim italic")
        else:
            self.answers.print(visible(text), end="")

    def note(self, text: str, style: str = "dim") -> None:
        """A whole line beside the conversation."""
        self.close()
        self.aside.print(visible(text), style=style)

    def close(self) -> None:
        """End the line that is open."""
        if self._open is not None:
            (self.aside if self._open == "scratchpad" else self.answers).print()
            self._open = None
            self.answers.file.flush()


def visible(text: str) -> str:
    """Text without control characters: what a model writes must not steer the terminal."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else "�" for c in text)


class Conversation:
    """Messages so far, and the settings of the next request."""

    def __init__(self, engine: Engine, tools: Sequence[str], temperature: float, max_new_tokens: int) -> None:
        self.engine = engine
        self.tools = tuple(tools)
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.messages: list[dict[str, Any]] = []
        self.forgotten = 0  # exchanges

    def ask(self, question: str) -> Iterator[Event]:
        """Events of the answer. The exchange is remembered when "done" has come, and not otherwise.

        Raises UserError where the question alone is longer than the context.
        """
        asked = [*self.messages, {"role": "user", "content": question}]
        prompt = self._render(asked)
        while len(prompt) > self.engine.max_model_len - RESERVED and asked[0] is not asked[-1]:
            following = [i for i, message in enumerate(asked) if i and message["role"] == "user"]
            asked = asked[following[0] :]
            self.forgotten += 1
            prompt = self._render(asked)
        request = Request(
            prompt=prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            execute_tools=frozenset(self.tools),
            max_tool_calls=4 if self.tools else 0,
        )
        for event in self.engine.stream(request):
            if event.kind == "done":
                self.messages = [*asked, *event.data.messages]
            yield event

    def _render(self, messages: list[dict[str, Any]]) -> list[int]:
        tools = registry.definitions(self.tools) if self.tools else None
        return render(self.engine.tokenizer, messages, tools, add_generation_prompt=True).ids


def chat(
    path: str | Path,
    tools: bool = True,
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    notice: str | None = None,
) -> None:
    """Chat with a run's model, or a Hugging Face folder's, until /exit or the end of the input.

    notice: a line printed first (through a pipe to the error stream), such as that the model is stale.

    Raises UserError where there is no model at `path`.
    """
    model, tokenizer, folder = load_run_model(path)
    offered = tuple(registry.TOOLS) if tools else ()
    fit_threads(model)
    engine = Engine(model, tokenizer, max_num_seqs=1)
    conversation = Conversation(engine, offered, temperature, max_new_tokens)
    screen = Screen()
    if notice is not None:
        screen.note(notice, style="yellow")
    if screen.interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (line editing and history for input())
        size = model.num_parameters() / 1e6
        screen.note(
            f"{model_name(folder)} · {size:.1f}M parameters · {_tools_line(conversation.tools)}", style="bold"
        )
        screen.note(HELP)
    try:
        _loop(conversation, screen, tuple(registry.TOOLS))
    finally:
        engine.close()


def _tools_line(tools: Sequence[str]) -> str:
    return f"tools {', '.join(tools)}" if tools else "no tools"


def _loop(conversation: Conversation, screen: Screen, all_tools: tuple[str, ...]) -> None:
    while (line := _read(screen)) is not None:
        question = line.strip()
        if question in ("/exit", "/quit"):
            return
        if question == "/reset":
            conversation.messages = []
            screen.note("a new conversation")
        elif question == "/tools":
            conversation.tools = () if conversation.tools else all_tools
            screen.note(_tools_line(conversation.tools))
        elif question.startswith("/") and len(question.split()) == 1:
            screen.note(HELP)
        elif question:
            _answer(conversation, screen, question)


def _read(screen: Screen) -> str | None:
    """The next line; None at the end of the input or on Ctrl-C."""
    try:
        return input(PROMPT if screen.interactive else "")
    except EOFError:
        pass
    except KeyboardInterrupt:
        screen.aside.print()
    return None


def _answer(conversation: Conversation, screen: Screen, question: str) -> None:
    forgotten, began = conversation.forgotten, time.perf_counter()
    try:
        for event in conversation.ask(question):
            if conversation.forgotten > forgotten:
                forgotten = conversation.forgotten
                screen.note(
                    f"(the context holds {conversation.engine.max_model_len} tokens: the oldest exchange is forgotten)"
                )
            _show(screen, event)
            if event.kind == "done":
                _close(screen, event.data, time.perf_counter() - began)
    except KeyboardInterrupt:
        screen.note("(stopped; this exchange is not remembered)")


def _show(screen: Screen, event: Event) -> None:
    if event.kind in ("text", "scratchpad"):
        screen.write(event.kind, event.text)
    elif event.kind == "tool_call":
        if "error" in event.data:
            screen.note(f"→ a call that cannot be read: {event.data['error']}", style="yellow")
        else:
            arguments = event.data["arguments"]
            shown = ", ".join(v if isinstance(v, str) else json.dumps(v) for v in arguments.values())
            screen.note(f"→ {event.data['name']}({shown})", style="cyan")
    elif event.kind == "tool_result":
        screen.note(f"← {event.text}", style="cyan" if event.data["ok"] else "yellow")


def _close(screen: Screen, completion: Completion, seconds: float) -> None:
    screen.close()
    if completion.finish_reason == "length":
        screen.note("(cut at the length limit)", style="yellow")
    elif completion.finish_reason == "tool_calls":
        screen.note("(the model called a tool that is not here)", style="yellow")
    elif not completion.text:
        screen.note("(no answer)")
    if screen.interactive:
        screen.note(f"{completion.sampled} tokens · {completion.sampled / max(seconds, 1e-9):.0f} tokens/s\n")
