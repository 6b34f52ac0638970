"""Wordings of arithmetic questions. `{a}` and `{b}` are the operands; the canonical expression is always a op b.

`Stories` are one-step word problems; in those of subtraction a is the larger number. The last wordings of each
list are kept for held-out questions.
"""

from __future__ import annotations

from dataclasses import dataclass

HELDOUT_SHARE = 0.1


@dataclass(frozen=True)
class Wordings:
    """Ways to ask for one operation."""

    symbol: str
    spoken: str
    plain: tuple[str, ...]
    stories: tuple[str, ...]

    def of(self, story: bool, heldout: bool) -> tuple[str, ...]:
        """The wordings of one sort: training's, or with `heldout` all."""
        every = self.stories if story else self.plain
        return every if heldout else every[: len(every) - max(1, round(len(every) * HELDOUT_SHARE))]


ADD = Wordings(
    "+",
    "plus",
    plain=(
        "What is {a} + {b}?",
        "What is {a}+{b}?",
        "{a} + {b}",
        "{a}+{b}",
        "{a} + {b} = ?",
        "Compute {a} + {b}.",
        "Calculate {a} + {b}.",
        "What is {a} plus {b}?",
        "How much is {a} plus {b}?",
        "How much is {a} + {b}?",
        "Add {a} and {b}.",
        "Add {a} to {b}.",
        "Please add {a} and {b}.",
        "Find the sum of {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "Sum {a} and {b}.",
        "What do you get when you add {a} and {b}?",
        "What do {a} and {b} add up to?",
        "Tell me {a} plus {b}.",
        "I need {a} + {b}.",
        "Work out {a} plus {b}.",
        "Can you add {a} and {b} for me?",
        "What number is {a} plus {b}?",
        "Give me the total of {a} and {b}.",
        "What is {a} increased by {b}?",
    ),
    stories=(
        "{name} has {a} {item} and gets {b} more. How many {item} does {name} have now?",
        "{name} has {a} {item} and buys {b} more. How many are there?",
        "{name} found {a} {item} and {other} found {b}. How many {item} did they find together?",
        "A {place} has {a} {item}. It receives {b} more. How many {item} does it have?",
        "There are {a} {item} on one table and {b} on another. How many {item} are there in all?",
        "{name} read {a} pages and then {b} pages. How many pages is that?",
        "A {place} sold {a} {item} in the morning and {b} in the evening. How many did it sell?",
        "{name} has {a} {item}. {other} gives {name} {b} more. How many {item} are there now?",
        "One box holds {a} {item} and another holds {b}. How many {item} do they hold in total?",
        "{name} paid {a} coins for {item} and {b} coins for bread. How many coins did {name} pay?",
        "A train had {a} passengers and {b} more got on. How many passengers are there?",
        "{name} walked {a} steps and then {b} steps. How many steps in all?",
        "There were {a} {item} in the {place}. Then {b} were added. How many are there now?",
        "{name} collected {a} {item} and {other} collected {b}. How many do they have together?",
    ),
)

SUBTRACT = Wordings(
    "-",
    "minus",
    plain=(
        "What is {a} - {b}?",
        "What is {a}-{b}?",
        "{a} - {b}",
        "{a}-{b}",
        "{a} - {b} = ?",
        "Compute {a} - {b}.",
        "Calculate {a} - {b}.",
        "What is {a} minus {b}?",
        "How much is {a} minus {b}?",
        "How much is {a} - {b}?",
        "Subtract {b} from {a}.",
        "Please subtract {b} from {a}.",
        "Take {b} away from {a}.",
        "What is {a} less {b}?",
        "What is the difference of {a} and {b}?",
        "Find the difference between {a} and {b}.",
        "Tell me {a} minus {b}.",
        "I need {a} - {b}.",
        "Work out {a} minus {b}.",
        "What do you get when you subtract {b} from {a}?",
        "Can you subtract {b} from {a} for me?",
        "What number is {a} minus {b}?",
        "What is {a} take away {b}?",
        "What remains of {a} after taking {b}?",
        "What is {a} decreased by {b}?",
    ),
    stories=(
        "{name} has {a} {item} and gives away {b}. How many {item} are left?",
        "{name} has {a} {item} and loses {b}. How many {item} does {name} have now?",
        "{name} had {a} {item} and sold {b}. How many are left?",
        "A {place} has {a} {item}. It sells {b}. How many {item} remain?",
        "There were {a} {item} in the {place}. Then {b} were taken. How many are left?",
        "A book has {a} pages. {name} has read {b}. How many pages are left?",
        "{name} had {a} coins and spent {b}. How many coins are left?",
        "A train had {a} passengers and {b} got off. How many passengers remain?",
        "{name} baked {a} cakes and {other} ate {b}. How many cakes are left?",
        "There are {a} {item} and {b} of them are broken. How many are not broken?",
        "{name} has {a} {item} and {other} has {b}. How many more does {name} have?",
        "Of {a} {item}, {b} are red. How many are not red?",
        "{name} needs {a} {item} and has {b}. How many are missing?",
        "A {place} had {a} {item} and used {b} of them. How many {item} are left?",
    ),
)

MULTIPLY = Wordings(
    "*",
    "times",
    plain=(
        "What is {a} * {b}?",
        "What is {a}*{b}?",
        "What is {a} x {b}?",
        "{a} * {b}",
        "{a}*{b}",
        "{a} x {b}",
        "{a} × {b}",
        "What is {a} × {b}?",
        "{a} * {b} = ?",
        "Compute {a} * {b}.",
        "Calculate {a} * {b}.",
        "Calculate {a} x {b}.",
        "What is {a} times {b}?",
        "How much is {a} times {b}?",
        "How much is {a} * {b}?",
        "Multiply {a} by {b}.",
        "Multiply {a} and {b}.",
        "Please multiply {a} by {b}.",
        "Find the product of {a} and {b}.",
        "What is the product of {a} and {b}?",
        "Tell me {a} times {b}.",
        "I need {a} * {b}.",
        "Work out {a} times {b}.",
        "Can you multiply {a} by {b} for me?",
        "What do you get when you multiply {a} by {b}?",
        "What number is {a} times {b}?",
        "What is {a} multiplied by {b}?",
    ),
    stories=(
        "There are {a} {box} with {b} {item} each. How many {item} are there?",
        "{name} has {a} {box} with {b} {item} in each. How many {item} does {name} have?",
        "A {place} has {a} {box} of {b} {item} each. How many {item} is that?",
        "{name} buys {a} {item} for {b} coins each. How many coins does {name} pay?",
        "{name} reads {a} pages a day for {b} days. How many pages is that?",
        "A machine makes {a} {item} an hour. How many does it make in {b} hours?",
        "{name} walks {a} steps a day. How many steps is that in {b} days?",
        "Each of {a} children has {b} {item}. How many {item} do they have?",
        "A hall has {a} rows with {b} seats each. How many seats are there?",
        "One ticket costs {a} coins. How much do {b} tickets cost?",
        "{name} packs {a} {box} and puts {b} {item} in each. How many {item} are packed?",
        "A {place} sells {a} {item} a day. How many does it sell in {b} days?",
        "There are {a} shelves and each holds {b} {item}. How many {item} do they hold?",
        "{name} plants {a} rows of {b} trees. How many trees is that?",
    ),
)

OPERATIONS = (ADD, SUBTRACT, MULTIPLY)
