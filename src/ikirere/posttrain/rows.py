"""Rows of conversations: read from files, checked, and turned into ids with a loss mask."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ikirere.errors import UserError
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.chat_format import render


@dataclass(frozen=True)
class Encoded:
    """One conversation: `ids` int32 [n]; `trained` bool [n], True where the loss counts the prediction of an id."""

    ids: np.ndarray
    trained: np.ndarray
    name: str

    @property
    def places(self) -> int:
        """Places that it fills in a packed row: each id but the last predicts the next."""
        return len(self.ids) - 1


def encode(tokenizer: Tokenizer, row: Mapping[str, Any], name: str) -> Encoded:
    """A row through the chat template. Raises UserError naming the row where nothing would be trained."""
    rendered = render(tokenizer, row["messages"], row.get("tools"), require_mask=True, row=name)
    return Encoded(np.array(rendered.ids, np.int32), np.array(rendered.mask, bool), name)


def encode_all(
    tokenizer: Tokenizer,
    rows: Sequence[Mapping[str, Any]],
    sequence_length: int,
    say: Callable[[str], None],
) -> list[Encoded]:
    """All rows that fit a sequence; longer ones are left out and counted in one line.

    Raises UserError for an empty loss mask and where no row is left.
    """
    encoded = [encode(tokenizer, row, str(row.get("id", number))) for number, row in enumerate(rows, 1)]
    kept = [e for e in encoded if e.places <= sequence_length]
    longer = [e for e in encoded if e.places > sequence_length]
    if longer:
        say(
            f"{len(longer)} of {len(encoded)} conversations are longer than {sequence_length} tokens and left out, "
            f"such as {longer[0].name} with {len(longer[0].ids)}"
        )
    if not kept:
        raise UserError(f"sft.sequence_length: no conversation fits {sequence_length} tokens; raise it")
    return kept


def _problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f"a row is a JSON object, this is {type(row).__name__}"
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return "`messages` is a list of objects with `role` and `content`"
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        return "`tools` is a list of OpenAI tool definitions, or absent"
    return None


def _locate(name: str, recipe_folder: Path) -> Path:
    path = Path(name).expanduser()
    return path if path.is_absolute() else recipe_folder / path


def read_jsonl(name: str, recipe_folder: Path, key: str) -> list[tuple[str, dict[str, Any]]]:
    """(file:line, row) of a JSONL file named in the recipe under `key`.

    Raises UserError naming key, file and line for a file that cannot be read and a line that is not JSON.
    """
    path = _locate(name, recipe_folder)
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        with path.open(encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                try:
                    rows.append((f"{path}:{number}", json.loads(line)))
                except ValueError as error:
                    raise UserError(f"{path}:{number}: not JSON ({error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read ({error.strerror}); give a JSONL file") from None
    if not rows:
        raise UserError(f"{key}: {path} holds no rows")
    return rows


def read_conversations(name: str, recipe_folder: Path, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """`messages` + `tools` rows of a JSONL file, each checked as far as the template and the mask go.

    Raises UserError naming file and line.
    """
    rows = []
    for where, row in read_jsonl(name, recipe_folder, "sft.rows_files"):
        problem = _problem(row)
        if problem:
            raise UserError(f"{where}: {problem}")
        encode(tokenizer, row, where)
        rows.append({"id": str(row.get("id", where)), "kind": str(row.get("kind", "file")), **_standard(row)})
    return rows


def _standard(row: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a generated row, with what a file's row gives."""
    return {
        "messages": row["messages"],
        "tools": row.get("tools"),
        "answer": row.get("answer"),
        "expects_tool": row.get("expects_tool"),
        "expects_arguments": row.get("expects_arguments"),
    }
