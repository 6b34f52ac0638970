"""Public datasets whose columns are known: what `preset` on a hub source fills in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from ikirere.corpus.readers.arc import task_text
from ikirere.corpus.readers.formats.rows import Columns
from ikirere.corpus.readers.puzzles.maze import maze_text
from ikirere.corpus.readers.puzzles.sudoku import sudoku_text
from ikirere.recipe.data import Hub

_CALCULATOR_MARKS = re.compile(r"<<[^<>]*>>")  # GSM8K's marks for a calculator
_EVENT = re.compile(r"<issue_(?:start|comment|closed)>")  # between the events of a conversation


@dataclass(frozen=True)
class DatasetPreset:
    """A dataset of the hub and what its columns mean. types: of its columns, where the file format does not give them."""

    name: str
    columns: Columns = field(default_factory=Columns)
    config: str | None = None
    split: str = "train"
    types: tuple[tuple[str, str], ...] = ()


# A board of 81 digits would pass for a number.
_PUZZLE_TYPES = (("source", "string"), ("question", "string"), ("answer", "string"), ("rating", "int64"))


def question_and_answer(question: str, answer: str) -> str:
    """A word problem and its worked solution, without the marks for a calculator; the result stays after `####`."""
    return f"Question: {question.strip()}\nAnswer: {_CALCULATOR_MARKS.sub('', answer).strip()}"


def conversation(content: str) -> str:
    """An issue or pull request, its events as paragraphs."""
    return "\n\n".join(part.strip() for part in _EVENT.split(content) if part.strip())


def sudoku_rows(question: str, answer: str) -> str:
    """A puzzle and its solution, each 81 characters by row; `.` or `0` is a blank. Raises ValueError for others."""
    puzzle, solution = question.replace("0", ".").strip(), str(answer).strip()
    if len(puzzle) != 81 or len(solution) != 81:
        raise ValueError("no sudoku of 9 x 9")
    return sudoku_text(puzzle, solution)


def maze_rows(question: str, answer: str) -> str:
    """A square maze and the same with its path, each its rows end to end. Raises ValueError for others."""
    side = round(len(question) ** 0.5)
    if side * side != len(question) or len(answer) != len(question):
        raise ValueError("no square maze")
    cut = range(0, len(question), side)
    return maze_text([question[i : i + side] for i in cut], [answer[i : i + side] for i in cut])


PRESETS: dict[str, DatasetPreset] = {
    "arc-agi-1": DatasetPreset(
        "dataartist/arc-agi",
        Columns(("train", "test"), task_text, "Apache-2.0", group="id", path="id"),
        split="training",
    ),
    # Its training set holds 376 of the 400 evaluation tasks of ARC-AGI-1.
    "arc-agi-2": DatasetPreset(
        "arc-agi-community/arc-agi-2", Columns(("fewshots", "question"), task_text, "Apache-2.0")
    ),
    "arxiv": DatasetPreset(
        "common-pile/arxiv_papers_filtered",
        Columns(licence_field="metadata.license", url="metadata.url", path="id"),
    ),
    "codeparrot-clean": DatasetPreset(
        "codeparrot/codeparrot-clean",
        Columns(
            ("content",),
            licence_field="license",
            group="repo_name",
            url="https://github.com/{repo_name}/blob/HEAD/{path}",
            path="{repo_name}/{path}",
        ),
    ),
    "fineweb-edu": DatasetPreset(
        "HuggingFaceFW/fineweb-edu",
        Columns(licence="ODC-By-1.0", path="id", lang="language"),
        config="sample-10BT",
    ),
    "github-issues": DatasetPreset(
        "bigcode/the-stack-github-issues",
        Columns(
            ("content",),
            conversation,
            group="repo",
            url="https://github.com/{repo}/issues/{issue_number}",
            path="{repo}#{issue_number}",
        ),
    ),
    "gsm8k-train": DatasetPreset(
        "openai/gsm8k", Columns(("question", "answer"), question_and_answer, "MIT"), config="main"
    ),
    "maze-hard": DatasetPreset(
        "sapientinc/maze-30x30-hard-1k", Columns(("question", "answer"), maze_rows), types=_PUZZLE_TYPES
    ),
    "open-web-math": DatasetPreset("open-web-math/open-web-math", Columns(licence="ODC-By-1.0")),
    "openwebtext": DatasetPreset("Skylion007/openwebtext", Columns(licence="CC0-1.0")),
    # The collection itself is no longer distributed; this is its English part without copies.
    "openwebtext2": DatasetPreset("Geralt-Targaryen/openwebtext2"),
    # deepmind/pg19 is read by a program, which `datasets` no longer runs; this is the same in Parquet.
    "pg19": DatasetPreset(
        "emozilla/pg19", Columns(licence="LicenseRef-Public-Domain", path="short_book_title")
    ),
    "stackexchange": DatasetPreset(
        "common-pile/stackexchange_filtered",
        Columns(licence="CC-BY-SA-4.0", licence_field="metadata.license", url="metadata.url", path="id"),
    ),
    "sudoku-extreme": DatasetPreset(
        "sapientinc/sudoku-extreme", Columns(("question", "answer"), sudoku_rows), types=_PUZZLE_TYPES
    ),
    "the-stack-dedup": DatasetPreset(
        "bigcode/the-stack-dedup",
        Columns(
            ("content",),
            licence_field="max_stars_repo_licenses",
            group="max_stars_repo_name",
            url="https://github.com/{max_stars_repo_name}/blob/{max_stars_repo_head_hexsha}/{max_stars_repo_path}",
            path="{max_stars_repo_name}/{max_stars_repo_path}",
        ),
    ),
    "wikipedia": DatasetPreset(
        "wikimedia/wikipedia", Columns(licence="CC-BY-SA-4.0", path="title"), config="20231101.en"
    ),
}


def resolve_preset(config: Hub) -> DatasetPreset:
    """The dataset of a source: its preset's, in which the keys that the recipe gives win. Where the recipe names the
    dataset, the preset's configuration is not taken: a copy need not have it. A licence in the recipe is that of all
    rows unless it also names their column."""
    base = PRESETS[config.preset] if config.preset else DatasetPreset("")
    columns = base.columns
    changes: dict[str, Any] = {}
    if config.text_field is not None:
        changes |= {"text": (config.text_field,), "compose": None}
    if config.licence is not None or config.licence_field is not None:
        changes |= {"licence": config.licence or columns.licence, "licence_field": config.licence_field}
    if config.url_field is not None:
        changes["url"] = config.url_field
    if config.group_field is not None:
        changes["group"] = config.group_field
    own = config.dataset is not None
    return DatasetPreset(
        config.dataset or base.name,
        replace(columns, **changes),
        config.config or (None if own else base.config),
        # No preset of another split has one called `train`, so the default cannot be meant.
        base.split if config.split == "train" else config.split,
        base.types,
    )
