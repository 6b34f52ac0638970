"""What an evaluation item is, and how the rows of each family of sets become items."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ikirere.corpus.contamination.grid_pairs import Pair, board
from ikirere.corpus.readers.puzzles.grids import to_grid
from ikirere.errors import UserError

Row = Mapping[str, Any]
Family = Callable[[Iterable[Row]], Iterator["Item"]]

# Names under which sets keep an item's own id; without one an item is named by its position in the set.
ID_FIELDS = ("task_id", "id", "question_id", "name", "fname", "idx")
FILE, NUMBER = (
    "_file",
    "_number",
)  # what readers add to each row: the file's stem, and its position in the set
# Prompt templates around the item: they differ from harness to harness and are no part of what leaks.
LABELS = re.compile(
    r"^(?:Passage|Context|Question|Choices|Answer|Q|A):[^\S\n]*|^[A-E]\.[^\S\n]+"
    r"|\bAnswer ?[1-9]:[^\S\n]*|^Answer format:.*$|\APlease choose the correct answer to the question:\s*",
    re.M,
)
INSTRUCTION = re.compile(
    r"\ABelow is an instruction.*?### Instruction:\s*|\s*### (?:Input|Response):\s*", re.S
)
SPEECHES = 40  # of a play, in one item


class SetMissing(UserError):
    """A known evaluation set that is neither in the mirror nor to be had from the hub."""


@dataclass(frozen=True, slots=True)
class Item:
    """One evaluation item.

    question: what is asked, or the whole passage where the passage itself is evaluated. answer: reference
    answer, choices, solution; '' where the set has none. grids: (input, output) pairs of a grid task, tests
    last, `tests` of them; None for text. passage: also a document that is a piece of this text is a leak.
    """

    id: str
    question: str
    answer: str = ""
    grids: tuple[Pair, ...] | None = None
    tests: int = 0
    passage: bool = False

    @property
    def text(self) -> str:
        return f"{self.question}\n{self.answer}" if self.answer else self.question


def flat(value: Any) -> str:
    """The text of a cell: nested lists line by line; of an object its `content` (a message), `text` (choices
    with labels), `turns` (of a dialogue) or else all values. None and booleans have no text."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, Mapping):
        for name in ("content", "text", "turns"):
            if name in value:
                return flat(value[name])
        return flat(list(value.values()))
    if isinstance(value, (list, tuple)):
        return "\n".join(text for v in value if (text := flat(v)))
    return str(value)


def pick(row: Row, columns: str) -> str:
    """Text of columns without prompt templates: `a+b|c` joins a and b where the row has both, else takes c;
    '' asks for nothing. Raises KeyError with the expression where the row has none of them."""
    if not columns:
        return ""
    for names in (joined.split("+") for joined in columns.split("|")):
        if all(name in row for name in names):
            text = "\n".join(flat(row[name]) for name in names)
            if "###" in text:
                text = INSTRUCTION.sub("\n", text)
            return LABELS.sub("", text).strip()
    raise KeyError(columns)


def own_id(row: Row) -> str:
    for name in ID_FIELDS:
        if row.get(name) not in (None, ""):
            return str(row[name])
    return str(row[NUMBER])


def fields(question: str, answer: str = "", passage: bool = False) -> Family:
    """One item per row, from columns as `pick` reads them."""

    def items(rows: Iterable[Row]) -> Iterator[Item]:
        for row in rows:
            yield Item(own_id(row), pick(row, question), pick(row, answer), passage=passage)

    return items


def subjects(rows: Iterable[Row]) -> Iterator[Item]:
    """MMLU: a file per subject; ids are subject/row."""
    for row in rows:
        subject = row.get("subject") or row[FILE].removesuffix("_test").removesuffix("_dev")
        choices = pick(row, "choices" if "choices" in row else "choice0+choice1+choice2+choice3")
        yield Item(f"{subject}/{row[NUMBER]}", pick(row, "question"), choices)


def hellaswag(rows: Iterable[Row]) -> Iterator[Item]:
    """Context and the right ending. On disk six lines: activity and context, index of the right ending, four
    endings; on the hub a row."""
    lines: list[str] = []
    number = 0
    for row in rows:
        if "endings" in row:
            gold = int(row.get("label") or 0)
            context, endings = f"{row.get('activity_label', '')}: {row['ctx']}", list(row["endings"])
        else:
            lines.append(row["text"])
            if len(lines) < 6:
                continue
            context, gold, endings = lines[0], int(lines[1]), lines[2:]
            lines = []
        yield Item(str(number), context, endings[gold])
        number += 1
    if lines:
        raise ValueError(f"{len(lines)} lines after the last item of six")


def winogrande(rows: Iterable[Row]) -> Iterator[Item]:
    """The whole right sentence."""
    for row in rows:
        if "context_options" in row:
            text = f"{row['context_options'][int(row['gold'])]} {row['continuation']}"
        else:
            right = row["option2"] if str(row.get("answer")) == "2" else row["option1"]
            text = str(row["sentence"]).replace("_", str(right))
        yield Item(str(row[NUMBER]), text)


def articles(rows: Iterable[Row]) -> Iterator[Item]:
    """WikiText: lines, an article from each heading of the first level (` = Title = `) to the next."""
    lines: list[str] = []
    title, number = "", 0
    for row in rows:
        line = row["text"]
        if found := re.fullmatch(r"\s*= ([^=].*[^=]) =\s*", line):
            if lines:
                yield Item(f"{number}: {title}", "\n".join(lines), passage=True)
                number += 1
            title, lines = found[1], []
        if line.strip():
            lines.append(line.strip())
    if lines:
        yield Item(f"{number}: {title}", "\n".join(lines), passage=True)


def play(rows: Iterable[Row]) -> Iterator[Item]:
    """A long text in pieces of some forty paragraphs, for half of a piece is a leak and half of the whole
    need not be there."""
    pieces: list[list[str]] = [[]]
    blank = False
    paragraphs = 0
    for row in rows:
        line = row["text"].strip()
        if line and blank:
            paragraphs += 1
            if paragraphs % SPEECHES == 0:
                pieces.append([])
        blank = not line
        if line:
            pieces[-1].append(line)
    for number, piece in enumerate(pieces):
        if piece:
            yield Item(str(number), "\n".join(piece), passage=True)


def grid_tasks(rows: Iterable[Row]) -> Iterator[Item]:
    """ARC: a JSON object per task, with `train` and `test` lists of input and output grids. A test pair
    without its output is left out."""
    for row in rows:
        pairs: list[Pair] = []
        tests = 0
        for part in ("train", "test"):
            for pair in row[part]:
                if pair.get("output") is not None:
                    pairs.append((to_grid(pair["input"]), to_grid(pair["output"])))
                    tests += part == "test"
        yield Item(str(row.get("id") or row[FILE]), "", grids=tuple(pairs), tests=tests)


def boards(rows: Iterable[Row]) -> Iterator[Item]:
    """Sudoku and mazes of the hub: a square board and its solution as one string of characters each."""
    for row in rows:
        pair = board(str(row["question"])), board(str(row["answer"]))
        yield Item(str(row[NUMBER]), "", grids=(pair,), tests=1)


def attacks(rows: Iterable[Row]) -> Iterator[Item]:
    """One object of lists of prompts by kind."""
    for row in rows:
        for kind, prompts in row.items():
            if isinstance(prompts, list):
                for number, prompt in enumerate(prompts):
                    yield Item(f"{kind}/{number}", str(prompt))
