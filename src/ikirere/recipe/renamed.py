"""Keys that were renamed: an old recipe is answered with the new name instead of "unknown key"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# (name of the holding section, old key) -> new key
RENAMED: dict[tuple[str, str], str] = {
    ("serve", "context"): "max_model_len",
    ("serve", "slots"): "max_num_seqs",
    ("near_duplicates", "rows"): "rows_per_band",
    ("hybrid", "local_chunk"): "window",
    ("hybrid", "global_stride"): "block_size",
}


def new_name(path: Sequence[int | str]) -> str | None:
    """The new name of the key at a path such as ("serve", "slots"), or None where it never had another."""
    return RENAMED.get((str(path[-2]), str(path[-1]))) if len(path) > 1 else None


def translated(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A section's values under today's names: for model folders, which outlive the recipe that made them."""
    return {RENAMED.get((section, key), key): value for key, value in values.items()}
