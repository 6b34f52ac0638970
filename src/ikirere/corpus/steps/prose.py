"""What of a text is prose: code, markup and formulas are cut out before anybody asks which language it is."""

from __future__ import annotations

import re

from ikirere.recipe.data import Data

WINDOW = 6_000  # characters at each of the beginning, middle and end of a long text that are looked at
# A line whose bytes, blanks aside, are by more than this share ASCII digits and punctuation is code or a
# table.
MAX_SYMBOLS = 0.35

_FENCE = re.compile(r"^[ \t]*(```+|~~~+).*?(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_DISPLAY = re.compile(
    r"\$\$.*?\$\$|\\\[.*?\\\]"
    r"|\\begin\{(equation|align|gather|multline|eqnarray|tikzpicture|lstlisting|verbatim|array)(\*?)\}"
    r".*?\\end\{\1\2\}",
    re.DOTALL,
)
_INLINE = re.compile(r"\$[^$\n]{1,300}\$|\\\(.{1,300}?\\\)|`[^`\n]{1,300}`")
# Names and targets, which are in no language: what they take in braces is looked at no further.
_REFERENCE = re.compile(
    r"\\(?:label|ref|eqref|cref|Cref|cite\w*|input|include\w*|usepackage|documentclass|begin|end|olfileid|href"
    r"|url)"
    r"\*?(?:\[[^\]\n]*\])?(?:\{[^{}\n]*\})?"
)
_COMMAND = re.compile(r"\\[A-Za-z@]+\*?")
_BRACES = str.maketrans("{}~", "   ")
_TAG = re.compile(r"<[A-Za-z/!?][^<>]{0,400}>|&#?\w{1,10};")
_URL = re.compile(r"(?:https?|ftp|file)://[^\s)>\]]+")
_TARGET = re.compile(r"\](?:\([^)\n]*\)|\[[^\]\n]*\])")
_SYMBOL = re.compile(r"[!-@\[-`{-~]")


def _windows(text: str) -> list[str]:
    if len(text) <= 3 * WINDOW:
        return [text]
    middle = (len(text) - WINDOW) // 2
    return [text[:WINDOW], text[middle : middle + WINDOW], text[-WINDOW:]]


def _lines(text: str) -> str:
    kept = []
    for line in text.split("\n"):
        line = line.strip()
        n_bytes = len(line) if line.isascii() else len(line.encode())
        if line and len(_SYMBOL.findall(line)) <= MAX_SYMBOLS * (n_bytes - line.count(" ")):
            kept.append(line)
    return "\n".join(kept)


def prose(text: str) -> str:
    """The text's prose: without fenced and inline code, tags, links' targets, formulas and TeX commands, and
    without lines that are mostly digits and punctuation.

    Of a text of more than 18,000 characters its beginning, middle and end are looked at. Code that is
    indented and reads like words is not recognised.
    """
    found = []
    for part in _windows(text):
        if "```" in part or "~~~" in part:
            part = _FENCE.sub("\n", part)
        if "<" in part or "&" in part:
            part = _TAG.sub(" ", _COMMENT.sub(" ", part))
        if "$" in part or "\\" in part:
            part = _DISPLAY.sub(" ", part)
        if "://" in part:
            part = _URL.sub(" ", part)
        if "](" in part or "][" in part:
            part = _TARGET.sub(" ", part)
        if "$" in part or "\\" in part or "`" in part:
            part = _INLINE.sub(" ", part)
        if "\\" in part:
            part = _COMMAND.sub(" ", _REFERENCE.sub(" ", part)).translate(_BRACES)
        found.append(_lines(part))
    return "\n".join(filter(None, found))


def sample(text: str, characters: int) -> str:
    """A third of `characters` each from the beginning, middle and end of the text, blanks made single."""
    text = " ".join(text.split())
    if len(text) <= characters:
        return text
    third = characters // 3
    middle = (len(text) - third) // 2
    return " ".join((text[:third], text[middle : middle + third], text[-third:]))


def code_domains(data: Data) -> tuple[str, ...]:
    """The domains that hold code, which steps made for prose leave alone unless a recipe names them."""
    return data.normalise.code_domains if data.normalise else ("code",)
