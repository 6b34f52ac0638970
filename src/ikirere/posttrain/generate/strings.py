"""Kind strings: questions about words of the documents, answered by one line of Python.

The line names the word first, quoted and after a space as in the question, so that a small model can copy it
by what comes before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ikirere.errors import UserError
from ikirere.posttrain.generate.context import GeneratorContext
from ikirere.posttrain.generate.row import ConversationDraft
from ikirere.tools.registry import ToolCall

ORDINALS = ("first", "second", "third", "fourth", "fifth")


@dataclass(frozen=True)
class Task:
    """`wordings` and `code` share their fields: {w}, {x}, {y} words, {c}, {d} letters, {n} and {i} a position.

    The last wording is kept for held-out questions. `words`: how many words it is about.
    """

    name: str
    code: str
    wordings: tuple[str, ...]
    words: int = 1


TASKS = (
    Task(
        "reverse",
        "w = '{w}'; w[::-1]",
        (
            "Reverse '{w}'.",
            "Reverse the word '{w}'.",
            "Spell '{w}' backwards.",
            "What is '{w}' backwards?",
            "Write '{w}' in reverse.",
            "Turn '{w}' around.",
        ),
    ),
    Task(
        "count",
        "w = '{w}'; w.count('{c}')",
        (
            "How many '{c}' are in '{w}'?",
            "How many times does '{c}' occur in '{w}'?",
            "Count the letter '{c}' in '{w}'.",
            "Count '{c}' in '{w}'.",
            "How often is '{c}' in '{w}'?",
        ),
    ),
    Task(
        "upper",
        "w = '{w}'; w.upper()",
        (
            "Write '{w}' in upper case.",
            "Make '{w}' upper case.",
            "Put '{w}' in capitals.",
            "What is '{w}' in capital letters?",
            "Uppercase '{w}'.",
        ),
    ),
    Task(
        "length",
        "w = '{w}'; len(w)",
        (
            "How long is '{w}'?",
            "How many letters has '{w}'?",
            "How many letters are in '{w}'?",
            "What is the length of '{w}'?",
            "Count the letters of '{w}'.",
        ),
    ),
    Task(
        "place",
        "w = '{w}'; w[{i}]",
        (
            "What is the {n} letter of '{w}'?",
            "Which letter is {n} in '{w}'?",
            "Give me the {n} letter of '{w}'.",
            "Name the {n} letter in '{w}'.",
        ),
    ),
    Task(
        "last",
        "w = '{w}'; w[-1]",
        (
            "What is the last letter of '{w}'?",
            "Which letter is last in '{w}'?",
            "What letter does '{w}' end with?",
            "Give me the last letter of '{w}'.",
        ),
    ),
    Task(
        "letters",
        "w = '{w}'; ''.join(sorted(w))",
        (
            "Sort the letters of '{w}'.",
            "Put the letters of '{w}' in order.",
            "Sort '{w}' by letter.",
            "Order the letters in '{w}'.",
        ),
    ),
    Task(
        "replace",
        "w = '{w}'; w.replace('{c}', '{d}')",
        (
            "Replace '{c}' with '{d}' in '{w}'.",
            "In '{w}' replace '{c}' with '{d}'.",
            "Change '{c}' to '{d}' in '{w}'.",
            "Swap '{c}' for '{d}' in '{w}'.",
        ),
    ),
    Task(
        "words",
        "w = '{w} {x} {y}'; ' '.join(sorted(w.split()))",
        (
            "Sort the words '{w} {x} {y}'.",
            "Put the words '{w} {x} {y}' in order.",
            "Order '{w} {x} {y}' by the alphabet.",
            "Sort '{w} {x} {y}'.",
        ),
        words=3,
    ),
    Task(
        "join",
        "w = '{w}' + '{x}'; w",
        (
            "Join '{w}' and '{x}'.",
            "Put '{w}' and '{x}' together.",
            "Write '{w}' and '{x}' as one word.",
            "Glue '{w}' and '{x}' together.",
        ),
        words=2,
    ),
    Task(
        "title",
        "w = '{w}'; w.title()",
        (
            "Write '{w}' with a capital.",
            "Capitalise '{w}'.",
            "Begin '{w}' with a capital letter.",
            "Give '{w}' a capital.",
        ),
    ),
)


def _draft(context: GeneratorContext, task: Task) -> ConversationDraft:
    rng = context.rng
    words = rng.sample(context.words, task.words)
    word = words[0]
    letter = rng.choice(word) if context.maybe(0.85) else rng.choice("abcdefghiklmnoprstuvw")
    position = rng.randrange(min(len(word), len(ORDINALS)))
    values = {
        "w": word,
        "x": words[1] if len(words) > 1 else "",
        "y": words[2] if len(words) > 2 else "",
        "c": letter,
        "d": rng.choice([c for c in "aeioustnr" if c != letter]),
        "n": ORDINALS[position],
        "i": position,
    }
    wordings = task.wordings if context.split == "heldout" else task.wordings[:-1]
    return ConversationDraft(
        question=rng.choice(wordings).format(**values),
        reply="{result}.",
        tools=context.tools() if context.maybe(0.7) else ("python_exec",),
        call=ToolCall("python_exec", {"code": task.code.format(**values)}),
        reasoning="Python can tell.",
    )


def drafts(context: GeneratorContext) -> Iterator[ConversationDraft]:
    """Endless. Words come from the documents; each belongs to one split. Raises UserError for too few."""
    if len(context.words) < 20:
        raise UserError(
            "kind strings: the documents hold fewer than 20 words to ask about; leave the kind out"
        )
    while True:
        yield _draft(context, context.rng.choice(TASKS))
