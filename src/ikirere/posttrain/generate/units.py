"""Kind units: unit conversions, answered through the calculator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ikirere.posttrain.generate.context import GeneratorContext
from ikirere.posttrain.generate.row import ConversationDraft
from ikirere.tools.calculator import calculate, show
from ikirere.tools.registry import ToolCall

LONGEST = 9  # characters of a result: longer ones are fractions that nobody would ask for


@dataclass(frozen=True)
class Conversion:
    """`rule` is the canonical expression with {v} for the value."""

    source: str
    target: str
    rule: str


CONVERSIONS = tuple(
    Conversion(*row)
    for row in (
        ("kilometres", "metres", "{v}*1000"),
        ("metres", "kilometres", "{v}/1000"),
        ("metres", "centimetres", "{v}*100"),
        ("centimetres", "metres", "{v}/100"),
        ("metres", "millimetres", "{v}*1000"),
        ("centimetres", "millimetres", "{v}*10"),
        ("millimetres", "centimetres", "{v}/10"),
        ("kilograms", "grams", "{v}*1000"),
        ("grams", "kilograms", "{v}/1000"),
        ("tonnes", "kilograms", "{v}*1000"),
        ("litres", "millilitres", "{v}*1000"),
        ("millilitres", "litres", "{v}/1000"),
        ("hours", "minutes", "{v}*60"),
        ("minutes", "hours", "{v}/60"),
        ("minutes", "seconds", "{v}*60"),
        ("seconds", "minutes", "{v}/60"),
        ("hours", "seconds", "{v}*3600"),
        ("days", "hours", "{v}*24"),
        ("hours", "days", "{v}/24"),
        ("weeks", "days", "{v}*7"),
        ("days", "weeks", "{v}/7"),
        ("years", "months", "{v}*12"),
        ("months", "years", "{v}/12"),
        ("feet", "inches", "{v}*12"),
        ("inches", "feet", "{v}/12"),
        ("yards", "feet", "{v}*3"),
        ("inches", "centimetres", "{v}*2.54"),
        ("miles", "kilometres", "{v}*1.609344"),
        ("pounds", "kilograms", "{v}*0.45359237"),
        ("kilobytes", "bytes", "{v}*1024"),
        ("megabytes", "kilobytes", "{v}*1024"),
        ("bytes", "bits", "{v}*8"),
        ("bits", "bytes", "{v}/8"),
        ("dozens", "pieces", "{v}*12"),
        ("degrees Celsius", "degrees Fahrenheit", "{v}*9/5+32"),
        ("degrees Fahrenheit", "degrees Celsius", "({v}-32)*5/9"),
    )
)

WORDINGS = (
    "Convert {v} {source} to {target}.",
    "Convert {v} {source} into {target}.",
    "What is {v} {source} in {target}?",
    "How much is {v} {source} in {target}?",
    "How many {target} are {v} {source}?",
    "Express {v} {source} in {target}.",
    "Turn {v} {source} into {target}.",
    "{v} {source} in {target}?",
    "{v} {source} to {target}",
    "Please convert {v} {source} to {target}.",
    "I have {v} {source}. What is that in {target}?",
    "How many {target} is {v} {source}?",
    "Give {v} {source} in {target}.",
    "Change {v} {source} to {target}.",
)
HELDOUT_WORDINGS = ("Can you write {v} {source} as {target}?",)


def drafts(context: GeneratorContext) -> Iterator[ConversationDraft]:
    """Endless. Only values whose result is short; value and units together belong to one split."""
    rng = context.rng
    wordings = WORDINGS + (HELDOUT_WORDINGS if context.split == "heldout" else ())
    while True:
        conversion = rng.choice(CONVERSIONS)
        value = rng.randrange(2, 10 ** rng.choice((1, 2, 3, 4)) + 2)
        if not context.mine(f"units {value} {conversion.source} {conversion.target}"):
            continue
        expression = conversion.rule.format(v=value)
        if len(show(calculate(expression))) > LONGEST:
            continue
        yield ConversationDraft(
            question=rng.choice(wordings).format(v=value, source=conversion.source, target=conversion.target),
            reply="{result} " + conversion.target + ".",
            tools=context.tools() if context.maybe(0.7) else ("calculator",),
            call=ToolCall("calculator", {"expression": expression}),
            reasoning=f"{conversion.source} to {conversion.target}: {expression}.",
        )
