"""Kind chat: small talk and questions about Python's objects. No tool is needed, even where tools are offered."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from ikirere.posttrain.generate.context import GeneratorContext
from ikirere.posttrain.generate.objects import facts
from ikirere.posttrain.generate.row import ConversationDraft
from ikirere.posttrain.generate.smalltalk import OPENINGS, TOPICS
from ikirere.posttrain.generate.word_lists import ITEMS, NAMES, PLACES

FACT_SHARE = 0.3
FACT_WORDINGS = (
    "What does {name} do?",
    "What is {name} in Python?",
    "What does Python's {name} do?",
    "Tell me what {name} does.",
    "Explain {name}.",
    "What is {name} for?",
    "Describe {name} in one line.",
    "What does the docstring of {name} say?",
    "In Python, what does {name} do?",
)


def _talk(rng: random.Random) -> tuple[str, str]:
    topic = rng.choice(TOPICS)
    values = {
        "name": rng.choice(NAMES),
        "item": rng.choice(ITEMS),
        "place": rng.choice(PLACES),
        "number": rng.randrange(2, 3000),
    }
    prompt = rng.choice(topic.prompts)
    opening = rng.choice(OPENINGS) if len(prompt) > 12 else ""
    draw = rng.random()
    if draw < 0.1:
        prompt = prompt.rstrip(".!?")
    if (draw > 0.9 or opening.endswith((", ", ": "))) and not prompt.startswith(("{", "I ", "Python")):
        prompt = prompt[0].lower() + prompt[1:]
    return opening + prompt.format(**values), rng.choice(topic.answers).format(**values)


def exchange(rng: random.Random, context: GeneratorContext) -> list[dict[str, Any]]:
    """A short earlier exchange of the context's split."""
    while True:
        prompt, answer = _talk(rng)
        if context.mine(f"chat {prompt}"):
            return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def drafts(context: GeneratorContext) -> Iterator[ConversationDraft]:
    """Endless. A question belongs to one split; what Python's objects do is asked in other words in each."""
    rng = context.rng
    while True:
        tools = context.tools() if context.split == "heldout" or context.maybe(0.8) else ()
        if context.maybe(FACT_SHARE):
            name, line = rng.choice(facts())
            question, answer = rng.choice(FACT_WORDINGS).format(name=name), line
            draft = ConversationDraft(question=question, reply=line, answer=answer, tools=tools)
        else:
            question, reply = _talk(rng)
            draft = ConversationDraft(question=question, reply=reply, tools=tools)
        if context.mine(f"chat {draft.question}"):
            yield draft
