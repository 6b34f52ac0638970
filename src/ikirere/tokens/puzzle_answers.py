"""Where the answer of a puzzle document begins, form by form, for models that fill in whole answers.

Worked steps between question and answer would reveal the answer to a model that sees both ways, so they are left out.
One function per form of `corpus.readers.puzzles` and `corpus.readers.arc`; offsets are in characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_INPUT = re.compile(r"^input:\n", re.M)
_OUTPUT = re.compile(r"^output:\n", re.M)


@dataclass(frozen=True)
class AnswerSpan:
    """The answer extends from `start` to the document's end.

    left_out: ranges before it that are not shown. begins: where what is shown may begin, rising, from 0; a question
    that is too long loses what is before one of the later ones (whole demonstrations).
    """

    start: int
    left_out: tuple[tuple[int, int], ...] = ()
    begins: tuple[int, ...] = (0,)


def pairs(text: str) -> AnswerSpan | None:
    """Blocks `input:`, grid, `output:`, grid (ARC, grid transforms): the last output. Intermediate grids of the last
    pair (`after STEP:`) are left out; demonstrations keep theirs."""
    inputs = [m.start() for m in _INPUT.finditer(text)]
    outputs = list(_OUTPUT.finditer(text))
    if not inputs or not outputs or outputs[-1].start() < inputs[-1]:
        return None
    marker = outputs[-1]
    step = text.find("\nafter ", inputs[-1], marker.start())
    worked = ((step + 1, marker.start()),) if step >= 0 else ()
    return AnswerSpan(marker.end(), worked, (0, *(i for i in inputs if i > 0)))


def program(text: str) -> AnswerSpan | None:
    """A program and its output; the trace of the run is left out."""
    if not text.startswith("program:\n"):
        return None
    trace, output = text.find("\ntrace:\n"), text.rfind("\noutput:\n")
    if not 0 <= trace < output:
        return None
    return AnswerSpan(output + len("\noutput:\n"), ((trace + 1, output + 1),))


def sudoku(text: str) -> AnswerSpan | None:
    """A board and its solution; the order in which cells are filled is left out."""
    marker = "\nsolution:\n"
    at = text.rfind(marker)
    if not text.startswith("sudoku with ") or at < 0:
        return None
    steps = text.find("\nfilling the cell", 0, at)
    return AnswerSpan(at + len(marker), ((steps + 1, at + 1),) if steps >= 0 else ())


def maze(text: str) -> AnswerSpan | None:
    """A maze and the same with its path; the number of steps and the moves are left out."""
    found = re.search(r"^shortest path(, \d+ steps):\n(.*\n)", text, re.M)
    if not text.startswith("maze:\n") or found is None:
        return None
    return AnswerSpan(found.end(), (found.span(1), found.span(2)))


def graph(text: str) -> AnswerSpan | None:
    """A graph, a question, and the way with its length or the parts; the settled nodes are left out."""
    if not text.startswith("graph with "):
        return None
    if found := re.search(r"^shortest way from .*:\n((?:.*\n)*?)(?=way: )", text, re.M):
        return AnswerSpan(found.end(), (found.span(1),))
    parts = re.search(r"^connected parts:\n", text, re.M)
    return AnswerSpan(parts.end()) if parts else None


FORMS: tuple[Callable[[str], AnswerSpan | None], ...] = (program, sudoku, maze, graph, pairs)


def find_answer(text: str) -> AnswerSpan | None:
    """The answer by the first form that matches the text; None where none matches and for an empty answer."""
    for form in FORMS:
        if (found := form(text)) is not None:
            return found if text[found.start :].strip() else None
    return None
