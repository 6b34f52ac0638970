"""Kind direct: arithmetic questions without tools, which the model must answer by itself."""

from __future__ import annotations

from collections.abc import Iterator

from ikirere.posttrain.generate.arithmetic import problem
from ikirere.posttrain.generate.context import GeneratorContext
from ikirere.posttrain.generate.row import ConversationDraft
from ikirere.tools.calculator import calculate, show


def drafts(context: GeneratorContext) -> Iterator[ConversationDraft]:
    """Endless. A third has operands of one or two digits, the others those of kind calculator."""
    while True:
        asked = problem(context, (1, 2) if context.maybe(0.33) else (2, 3, 4))
        answer = show(calculate(asked.expression))
        yield ConversationDraft(question=asked.question, reply=f"{answer}.", answer=answer)
