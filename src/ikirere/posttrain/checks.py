"""What the stages sft and dpo refuse, hash and allow before their inputs exist."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ikirere.common.files import file_sha256, iterate_rows, json_sha256
from ikirere.errors import UserError
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Dpo, Sft
from ikirere.train.parallel import world_of
from ikirere.train.precision import check_precision

FIRST_ROWS = 100  # of each file: the others are checked when they are encoded


def check_training(recipe: Recipe, name: str, section: Sft | Dpo) -> None:
    """Raises UserError naming the key for formats and batches that cannot be trained."""
    check_precision(section.precision, f"{name}.precision")
    check_batch(name, section.batch_size, world_of(section.parallel).size)


def check_batch(name: str, batch_size: int, ranks: int) -> None:
    """Raises UserError for a batch that does not divide among the ranks."""
    if batch_size % ranks:
        raise UserError(f"{name}.batch_size: {batch_size} is not divisible by the {ranks} ranks")


def check_stages(recipe: Recipe, name: str, needed: Sequence[str]) -> None:
    """Raises UserError where a stage that `name` reads is not listed before it."""
    before = recipe.stages[: recipe.stages.index(name)]
    for stage in needed:
        if stage not in before:
            raise UserError(f"stages: {name} needs the stage {stage} before it")


def check_rows(
    key: str, names: Iterable[str], recipe_folder: Path, check: Callable[[Any, str], object]
) -> None:
    """Calls `check(row, "file:line")` with the first rows of each file that the recipe names under `key`.

    Raises UserError naming key or file and line.
    """
    for name in names:
        for where, row in islice(iterate_jsonl(name, recipe_folder, key), FIRST_ROWS):
            check(row, where)


def iterate_jsonl(name: str, recipe_folder: Path, key: str) -> Iterator[tuple[str, Any]]:
    """("file:line", row) of a JSONL file named in the recipe under `key`; blank lines are skipped.

    Raises UserError naming key, file and line for a file that cannot be read or is empty, and a line that is not JSON.
    """
    path = located(name, recipe_folder)
    if not path.is_file():
        raise UserError(f"{key}: {path} cannot be read (no such file); give a JSONL file")
    rows = 0
    for number, row in iterate_rows(path, blank_lines=True):
        rows += 1
        yield f"{path}:{number}", row
    if not rows:
        raise UserError(f"{key}: {path} holds no rows")


def located(name: str, recipe_folder: Path) -> Path:
    """The path of a file named in the recipe."""
    path = Path(name).expanduser()
    return path if path.is_absolute() else recipe_folder / path


def content_hash(names: Sequence[str], recipe_folder: Path) -> str:
    """Hash of the files' contents in order; a missing one counts as such, wherever it was."""
    paths = [located(name, recipe_folder) for name in names]
    return json_sha256([file_sha256(path) if path.is_file() else None for path in paths])


def settings(section: Sft | Dpo, without: Iterable[str]) -> Mapping[str, Any]:
    """`result_settings` without the keys whose files count by content or that only change what is measured."""
    left_out = set(without)
    return {key: value for key, value in section.result_settings().items() if key not in left_out}


def refused(changed: Iterable[str], allowed: Iterable[str]) -> list[str]:
    """The changed key paths that neither are in `allowed` nor lie below one that is, and the optimiser's name,
    with which the kept state does not fit."""
    free = tuple(allowed)
    return [
        key
        for key in changed
        if key.endswith(".optimizer.name")
        or not any(key == path or key.startswith(path + ".") for path in free)
    ]
