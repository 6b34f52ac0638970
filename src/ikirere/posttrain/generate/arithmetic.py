"""Arithmetic questions: operands, wording, canonical expression. Shared by the kinds calculator and direct."""

from __future__ import annotations

from dataclasses import dataclass

from ikirere.posttrain.generate.context import GeneratorContext
from ikirere.posttrain.generate.word_lists import BOXES, ITEMS, NAMES, PLACES
from ikirere.posttrain.generate.wordings import OPERATIONS, Wordings

STORY_SHARE = 0.35
PREFIXES = ("Hi, ", "Hello! ", "Please: ", "Quick question: ", "Next: ", "Hey, ")


@dataclass(frozen=True)
class Problem:
    """A question and its canonical expression `a op b` without spaces."""

    question: str
    a: int
    b: int
    operation: Wordings
    story: bool

    @property
    def expression(self) -> str:
        return f"{self.a}{self.operation.symbol}{self.b}"

    @property
    def spoken(self) -> str:
        return f"{self.a} {self.operation.spoken} {self.b}"


def _operand(context: GeneratorContext, digits: tuple[int, ...]) -> int:
    count = context.rng.choice(digits)
    return context.rng.randrange(10 ** (count - 1), 10**count)


def _fill(context: GeneratorContext, wording: str, a: int, b: int) -> str:
    name, other = context.rng.sample(NAMES, 2)
    return wording.format(
        a=a,
        b=b,
        name=name,
        other=other,
        item=context.choose(ITEMS),
        box=context.choose(BOXES),
        place=context.choose(PLACES),
    )


def _vary(context: GeneratorContext, question: str) -> str:
    """Small differences of hand: a greeting, no capital, no last mark."""
    draw = context.rng.random()
    if draw < 0.06:
        return context.choose(PREFIXES) + question[0].lower() + question[1:]
    if draw < 0.12:
        return question[0].lower() + question[1:]
    if draw < 0.18 and question[-1] in ".?":
        return question[:-1].rstrip(" =")
    return question


def pair_key(a: int, b: int) -> str:
    """Two operands in either order, whatever the operation: a pair belongs to one split only."""
    return f"operands {min(a, b)} {max(a, b)}"


def problem(context: GeneratorContext, digits: tuple[int, ...]) -> Problem:
    """A question about two operands of the context's split, with so many digits each."""
    rng = context.rng
    while True:
        a, b = _operand(context, digits), _operand(context, digits)
        if context.mine(pair_key(a, b)):
            break
    operation = rng.choice(OPERATIONS)
    story = context.maybe(STORY_SHARE)
    if operation.symbol == "-" and a < b and (story or context.maybe(0.7)):
        a, b = b, a
    wording = rng.choice(operation.of(story, context.split == "heldout"))
    question = _fill(context, wording, a, b)
    return Problem(question if story else _vary(context, question), a, b, operation, story)
