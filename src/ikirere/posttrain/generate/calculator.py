"""Kind calculator: + - × of 2- to 4-digit operands, plain and as word problems, through the calculator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ikirere.posttrain.generate.arithmetic import problem
from ikirere.posttrain.generate.context import GeneratorContext
from ikirere.posttrain.generate.row import ConversationDraft, call_turns
from ikirere.tools.calculator import calculate, show
from ikirere.tools.registry import ToolCall


def exchange(context: GeneratorContext) -> list[dict[str, Any]]:
    """A whole earlier question with its call, for a conversation that continues."""
    asked = problem(context, (2, 3))
    result = show(calculate(asked.expression))
    call = ToolCall("calculator", {"expression": asked.expression})
    turns = call_turns(call, f"{asked.spoken}.", result)
    final = f"It is {result}." if asked.story else f"{result}."
    return [{"role": "user", "content": asked.question}, *turns, {"role": "assistant", "content": final}]


def drafts(context: GeneratorContext) -> Iterator[ConversationDraft]:
    """Endless. Operands are copied verbatim; one canonical expression per question."""
    while True:
        asked = problem(context, (2, 3, 4))
        yield ConversationDraft(
            question=asked.question,
            reply="It is {result}." if asked.story else "{result}.",
            tools=context.tools() if context.maybe(0.6) else ("calculator",),
            call=ToolCall("calculator", {"expression": asked.expression}),
            reasoning=f"{asked.spoken}.",
        )
