"""Line ends and indentation as tokens, without loss.

    def f(x):                       def f(x): <nl>
        if x:                       <indent> if x: <nl>
            return 1       ->       <indent> return 1 <nl>
                                    <nl>
        return 2                    <dedent> return 2 <nl>

A stack holds the indents of the blocks that are open. What the ids mean (`LineDecoder`):

- `<nl>` ends a line. If the next line holds more than spaces and tabs, the top of the stack is written in front of it.
- `<indent>` opens a block: the top of the stack and one unit more. The unit is four spaces at first; white space of up
  to `WIDEST` characters in front of `<indent>` on its line is that block's unit, and the unit from there on.
- `<dedent>` closes a block. `<tab>` is a tab.
- All other white space is text: what is left of a line's indent, and all of a blank line.
- A line end that is text, not `<nl>`, leaves the next line as it is written.
- Any other special token closes all blocks and makes the unit four spaces again.

Every sequence of ids is valid: `<dedent>` without a block and `<indent>` in `DEEPEST` blocks do nothing.

The encoder (`lay_out`) decides from left to right, so that a prompt is cut as the same text was in training. It writes
a text with one control character for each of `<indent>`, `<dedent>` and `<tab>`, which the vocabulary's pieces never
hold; a text with such characters of its own is encoded unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ikirere.tokenizer.specials import DEDENT, INDENT, NEWLINE, TAB

DEEPEST = 64  # blocks within each other; bounds memory on hostile text and ids
WIDEST = 8  # characters of a unit, for the same reason
FIRST_UNIT = "    "
UNITS = (FIRST_UNIT, "\t", "  ", "   ", "        ")  # units that a text may declare where no block is open
IN, OUT, TABBED = "\x0e", "\x0f", "\x10"  # stand-ins for <indent>, <dedent>, <tab>
MARKS = {"\n": NEWLINE, IN: INDENT, OUT: DEDENT, TABBED: TAB}
# What stands in front of a line's own text. It ends in a mark, or is empty.
OPENING = f"(?:[ \\t]{{0,{WIDEST}}}[\\x0e-\\x10])*"

_OWN_MARKS = re.compile("[\x0e-\x10]")
_LINE = re.compile("\n([ \t]*)(?=[^ \t\n])")  # the beginning of a line that holds more than white space
_MARK = re.compile("[\n\x0e-\x10]+")
_REMEMBERED = 4_000_000  # characters of cached steps; the cache is emptied when there are more

Key = tuple[tuple[str, ...], str]  # indents of the open blocks, and the unit
ROOT: Key = ((), FIRST_UNIT)


def lay_out(text: str) -> str | None:
    """The text with stand-ins for the layout's tokens instead of the white space that they encode.

    None where the text holds stand-ins of its own, or where the decoder does not restore every line's indent.
    """
    if IN in text or OUT in text or TABBED in text:
        return None
    parts = _LINE.split("\n" + text)
    indents = parts[1::2]
    starts = _forth.run(indents)
    if _back.run(starts) != indents:
        return None
    parts[1::2] = starts
    return "".join(parts)[1:]


def own_lines(text: str) -> Iterator[str]:
    """The text of each line without what becomes tokens (line end, indent); empty lines are left out."""
    for line in _MARK.split(lay_out(_OWN_MARKS.sub(" ", text)) or text):
        if line:
            yield line


class LineDecoder:
    """Ids to bytes: `text` for the bytes of ordinary ids, a method for each token of the layout.

    White space in front of a line's own text is held back until it is known whether the line is blank.
    """

    def __init__(self) -> None:
        self._open: list[bytes] = []
        self._unit = FIRST_UNIT.encode()
        self._held = bytearray()
        self._opening = True  # no text of the line has come yet

    @classmethod
    def at(cls, key: Key) -> LineDecoder:
        """At the beginning of a line, with these blocks open."""
        decoder = cls()
        decoder._open = [indent.encode() for indent in key[0]]
        decoder._unit = key[1].encode()
        return decoder

    @property
    def key(self) -> Key:
        return tuple(indent.decode() for indent in self._open), self._unit.decode()

    def text(self, data: bytes) -> bytes:
        """The bytes that an ordinary id with these bytes completes."""
        if not self._opening:
            return data
        own = data.lstrip(b" \t")
        if not own:
            self._held += data
            return b""
        self._opening = False
        indent = b"" if own.startswith(b"\n") else self._top()
        return indent + self._release() + data

    def newline(self) -> bytes:
        """The bytes that `<nl>` completes."""
        self._opening = True
        return self._release() + b"\n"

    def indent(self) -> bytes:
        """Opens a block; completes no bytes."""
        if len(self._open) < DEEPEST:
            if 0 < len(self._held) <= WIDEST:
                self._unit = self._release()
            self._open.append(self._top() + self._unit)
        return b""

    def dedent(self) -> bytes:
        """Closes a block; completes no bytes."""
        if self._open:
            self._open.pop()
        return b""

    def tab(self) -> bytes:
        return self.text(b"\t")

    def end(self) -> bytes:
        """The bytes that are still held back; closes all blocks."""
        rest = self._release()
        self._open.clear()
        self._unit = FIRST_UNIT.encode()
        self._opening = True
        return rest

    def drop(self) -> None:
        """Forgets the bytes that are held back, which have been shown already."""
        self._held.clear()

    def _release(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        return held

    def _top(self) -> bytes:
        return self._open[-1] if self._open else b""


# ---------------------------------------------------------------- whole texts at once


def _do(key: Key, indent: str) -> tuple[str, Key]:
    """The beginning of a line with this indent, line end and stand-ins included, where `key`'s blocks are open; and the
    blocks that are open after it."""
    blocks, unit = key
    kept = len(blocks)
    while kept and not indent.startswith(blocks[kept - 1]):
        kept -= 1
    marks = "\n" + OUT * (len(blocks) - kept)
    blocks = blocks[:kept]
    rest = indent[len(blocks[-1]) if blocks else 0 :]
    if rest and kept < DEEPEST:
        if not blocks and rest != unit and rest in UNITS:
            unit = rest
            marks += TABBED if rest == "\t" else rest
        if rest == unit:
            return marks + IN, ((*blocks, indent), unit)
    return marks + rest, (blocks, unit)


def _undo(key: Key, start: str) -> tuple[str, Key]:
    """The indent that the beginning of a line encodes, and the blocks that are open after it; inverse of `_do`."""
    decoder = LineDecoder.at(key)
    steps = {"\n": decoder.newline, IN: decoder.indent, OUT: decoder.dedent, TABBED: decoder.tab}
    for character in start:
        steps[character]() if character in steps else decoder.text(character.encode())
    return decoder.text(b"|")[:-1].decode(), decoder.key


class _Steps(dict[str, "tuple[str, _Steps]"]):
    """For one set of open blocks: the beginning of a line -> its translation, and the steps that follow."""

    def __init__(self, machine: _Machine, key: Key) -> None:
        super().__init__()
        self._machine, self._key = machine, key

    def __missing__(self, start: str) -> tuple[str, _Steps]:
        made, key = self._machine.step(self._key, start)
        self._machine.remembered(len(start) + len(made))
        found = self[start] = made, self._machine.steps(key)
        return found


class _Machine:
    """Translates the beginnings of a text's lines in order. It caches its steps: one seen before is a dict look-up."""

    def __init__(self, step: Callable[[Key, str], tuple[str, Key]]) -> None:
        self.step = step
        self._known: dict[Key, _Steps] = {}
        self._size = 0

    def run(self, starts: list[str]) -> list[str]:
        steps = self.steps(ROOT)
        made = []
        for start in starts:
            found, steps = steps[start]
            made.append(found)
        return made

    def remembered(self, size: int) -> None:
        self._size += size + 100
        if self._size > _REMEMBERED:
            self._known, self._size = {}, 0

    def steps(self, key: Key) -> _Steps:
        if key not in self._known:
            self._known[key] = _Steps(self, key)
        return self._known[key]


_forth = _Machine(_do)
_back = _Machine(_undo)
