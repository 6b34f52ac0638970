"""Small integer programs with the trace of a run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import ClassVar

from ikirere.corpus.readers.puzzles.generator import verify

NAMES = "abcde"
LONGEST_TRACE, LARGEST_VALUE = 60, 10**6
_COMPARISONS = ("<", ">", "==", "<=")
_TRIES = 60  # draws of values until a run is short enough
_FIRST = 60  # values of the first variable are below


@dataclass(frozen=True)
class Line:
    """A line of a program: its indentation and its statement as words.

    `set a x op y`, `for i n`, `while a x` (as long as a is greater than x), `if x comparison y`, `else`.
    """

    depth: int
    words: tuple[str, ...]

    def source(self) -> str:
        """The line in Python."""
        kind, *rest = self.words
        if kind == "set":
            text = f"{rest[0]} = {' '.join(rest[1:])}"
        elif kind == "for":
            text = f"for {rest[0]} in range({rest[1]}):"
        elif kind == "while":
            text = f"while {rest[0]} > {rest[1]}:"
        else:
            text = " ".join(self.words) + ":"
        return "    " * self.depth + text


Program = tuple[Line, ...]


class _TooLong(Exception):
    pass


def _calculate(x: int, op: str, y: int) -> int:
    if op == "+":
        return x + y
    if op == "-":
        return x - y
    if op == "*":
        return x * y
    return x // y if op == "//" else x % y


def _compare(x: int, comparison: str, y: int) -> bool:
    if comparison == "<":
        return x < y
    if comparison == ">":
        return x > y
    return x == y if comparison == "==" else x <= y


class Run:
    """Runs a program line by line and notes what each line did, as (line number, note)."""

    def __init__(self, program: Program, values: dict[str, int]) -> None:
        self.program = program
        self.values = dict(values)
        self.trace: list[tuple[int, str]] = []
        self._block(0, len(program))

    def _value(self, word: str) -> int:
        return self.values[word] if word.isalpha() else int(word)

    def _set(self, at: int, name: str, value: int) -> None:
        if abs(value) > LARGEST_VALUE:
            raise _TooLong
        self.values[name] = value
        self._note(at, f"{name} = {value}")

    def _note(self, at: int, text: str) -> None:
        if len(self.trace) >= LONGEST_TRACE:
            raise _TooLong
        self.trace.append((at + 1, text))

    def _end(self, at: int) -> int:
        """The line after the block that begins after line `at`."""
        depth = self.program[at].depth
        end = at + 1
        while end < len(self.program) and self.program[end].depth > depth:
            end += 1
        return end

    def _block(self, at: int, end: int) -> None:
        while at < end:
            kind, *words = self.program[at].words
            if kind == "set":
                name, x, *more = words
                value = _calculate(self._value(x), more[0], self._value(more[1])) if more else self._value(x)
                self._set(at, name, value)
                at += 1
                continue
            after_block = self._end(at)
            if kind == "for":
                for i in range(int(words[1])):
                    self._set(at, words[0], i)
                    self._block(at + 1, after_block)
            elif kind == "while":
                while self._holds(at, self.values[words[0]] > self._value(words[1])):
                    self._block(at + 1, after_block)
            else:
                holds = self._holds(at, _compare(self._value(words[0]), words[1], self._value(words[2])))
                other = after_block < len(self.program) and self.program[after_block].words == ("else",)
                after = (
                    self._end(after_block)
                    if other and self.program[after_block].depth == self.program[at].depth
                    else after_block
                )
                if holds:
                    self._block(at + 1, after_block)
                elif after != after_block:
                    self._block(after_block + 1, after)
                after_block = after
            at = after_block

    def _holds(self, at: int, truth: bool) -> bool:
        self._note(at, "true" if truth else "false")
        return truth


def source(program: Program) -> str:
    """The program in Python."""
    return "\n".join(line.source() for line in program)


def random_program(draw: random.Random) -> Program:
    """Three to seven lines over two or three given variables, with a loop or a condition more often than not."""
    names = list(NAMES[: draw.randint(2, 3)])
    lines = list(_statements(draw, names, 0, draw.randint(3, 7)))
    return tuple(lines)


def _statements(draw: random.Random, names: list[str], depth: int, number: int) -> Iterator[Line]:
    while number > 0:
        kind = draw.random()
        if depth == 2 or number < 3 or kind < 0.4:
            yield _assignment(draw, names, depth)
            number -= 1
        elif kind < 0.6:
            yield Line(depth, ("for", "ij"[depth], str(draw.randint(2, 5))))
            inner = draw.randint(1, 2)
            yield from _statements(draw, [*names, "ij"[depth]], depth + 1, inner)
            number -= inner + 1
        elif kind < 0.75:
            name = draw.choice(names)
            yield Line(depth, ("while", name, str(draw.randint(0, 9))))
            # What is counted down is set by this line alone, so that the loop ends.
            if others := [n for n in names if n != name and n not in "ij"]:
                yield _assignment(draw, others, depth + 1, [*names])
            yield Line(depth + 1, ("set", name, name, "-", str(draw.randint(2, 9))))
            number -= 3
        else:
            x, y = draw.choice(names), str(draw.randint(0, 20))
            yield Line(depth, ("if", x, draw.choice(_COMPARISONS), draw.choice([y, *names])))
            yield _assignment(draw, names, depth + 1)
            number -= 2
            if draw.random() < 0.5:
                yield Line(depth, ("else",))
                yield _assignment(draw, names, depth + 1)
                number -= 1


def _assignment(draw: random.Random, names: list[str], depth: int, read: list[str] | None = None) -> Line:
    read = read or names
    target = draw.choice([n for n in names if n not in "ij"])
    op = draw.choice(("+", "+", "-", "-", "*", "//", "%"))
    if op in ("//", "%"):
        right = str(draw.randint(2, 9))
    else:
        right = draw.choice([draw.choice(read), str(draw.randint(1, 9))])
    return Line(depth, ("set", target, draw.choice(read), op, right))


class ProgramTraces:
    """A family is a program; its items are runs of it from other values, each traced by the interpreter above and
    checked against Python's own."""

    name: ClassVar[str] = "program_traces"
    items: ClassVar[int] = 4

    def __init__(self) -> None:
        self._drawn: dict[str, Program] = {}

    def key(self, draw: random.Random, number: str) -> str:
        while True:
            program = random_program(draw)
            text = source(program)
            try:
                # What runs shortly from the ends of the range of the first value does so, as good as always, from all.
                for first in (0, _FIRST - 1):
                    for largest in (1, 30):
                        run = Run(program, self._values(program, draw, first, largest))
            except _TooLong:
                continue
            if len(run.trace) > 3:
                self._drawn = {text: program}
                return text

    def family(self, key: str, draw: random.Random) -> tuple[Program, CodeType, int]:
        return self._drawn[key], compile(key, "<program>", "exec"), draw.randrange(_FIRST)

    def item(self, family: tuple[Program, CodeType, int], number: int, draw: random.Random) -> str:
        program, code, offset = family
        # The first value alone distinguishes the items of a family.
        first = (offset + 13 * number) % _FIRST
        for attempt in range(_TRIES):
            # Late tries begin at the values with which the program was tried out when it was drawn.
            late = attempt > _TRIES // 2
            values = self._values(
                program, draw, attempt % 2 * (_FIRST - 1) if late else first, 1 if late else 30
            )
            try:
                run = Run(program, values)
                break
            except _TooLong:
                continue
        else:
            raise RuntimeError(f"no short run of {source(program)!r} from {first}")
        ours = dict(values)
        exec(code, {"__builtins__": {"range": range}}, ours)
        verify(ours == run.values, "a program's run differs from Python's")
        given = len(values)
        lines = [f"{name} = {value}" for name, value in values.items()]
        lines += [line.source() for line in program] + [f"print({', '.join(values)})"]
        text = ["program:", *(f"{n} {line}" for n, line in enumerate(lines, 1)), "trace:"]
        text += [f"{n}: {lines[n - 1]}" for n in range(1, given + 1)]
        text += [f"{n + given}: {note}" for n, note in run.trace]
        return "\n".join([*text, "output:", " ".join(str(run.values[name]) for name in values)]) + "\n"

    def _values(self, program: Program, draw: random.Random, first: int, largest: int = 30) -> dict[str, int]:
        used = sorted({w for line in program for w in line.words if len(w) == 1 and w in NAMES})
        return {name: draw.randint(0, largest) if i else first for i, name in enumerate(used)}
