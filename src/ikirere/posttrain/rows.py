"""Rows of conversations: read from files, checked, and turned into ids with a loss mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ikirere.errors import UserError
from ikirere.posttrain.checks import iterate_jsonl
from ikirere.posttrain.generate.row import Row
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.chat_format import check_messages, render


@dataclass(frozen=True)
class Encoded:
    """One conversation: `ids` int32 [n]; `trained` bool [n], True where the loss counts the prediction of an id."""

    ids: np.ndarray
    trained: np.ndarray
    name: str

    @property
    def length(self) -> int:
        """Positions that it fills in a packed row: each id but the last predicts the next."""
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
    kept = [e for e in encoded if e.length <= sequence_length]
    longer = [e for e in encoded if e.length > sequence_length]
    if longer:
        say(
            f"{len(longer)} of {len(encoded)} conversations are longer than {sequence_length} tokens and left out, "
            f"such as {longer[0].name} with {len(longer[0].ids)}"
        )
    if not kept:
        raise UserError(f"sft.sequence_length: no conversation fits {sequence_length} tokens; raise it")
    return kept


def check_conversation(row: Any, where: str) -> None:
    """Raises UserError naming `where` for a row that is not `messages` + `tools` in the field's standard form."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: a row is a JSON object, this is {type(row).__name__}")
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise UserError(f"{where}: `messages` is a list of objects with `role` and `content`")
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        raise UserError(f"{where}: `tools` is a list of OpenAI tool definitions, or absent")
    check_messages(messages, where)


def read_conversations(name: str, recipe_folder: Path, tokenizer: Tokenizer) -> list[Row]:
    """`messages` + `tools` rows of a JSONL file, each checked as far as the template and the mask go.

    Raises UserError naming file and line.
    """
    rows: list[Row] = []
    for where, row in iterate_jsonl(name, recipe_folder, "sft.rows_files"):
        check_conversation(row, where)
        encode(tokenizer, row, where)
        rows.append(
            {
                "id": str(row.get("id", Path(where).name)),
                "kind": str(row.get("kind", "file")),
                "messages": row["messages"],
                "tools": row.get("tools"),
                "answer": row.get("answer"),
                "expects_tool": row.get("expects_tool"),
                "expects_arguments": row.get("expects_arguments"),
            }
        )
    return rows
