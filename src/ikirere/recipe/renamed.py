"""Keys that were renamed or removed: an old recipe is answered with what holds today instead of "unknown key"."""

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
# (name of the holding section, old key) -> what holds without it
REMOVED: dict[tuple[str, str], str] = {
    ("evaluate", "benchmarks"): "no built stage measures benchmarks; describe them under planned.benchmarks",
    ("hybrid", "global_tokens"): "each block always has a learned summary (learned_summaries)",
    ("hybrid", "streaming_links"): "context parallelism always passes blocks around a ring",
}


def old_key(path: Sequence[int | str]) -> str | None:
    """What to do about the key at a path such as ("serve", "slots"); None where it never was a key."""
    at = (str(path[-2]), str(path[-1])) if len(path) > 1 else ("", "")
    if at in RENAMED:
        return f"was renamed; write {RENAMED[at]} instead"
    return f"was removed; leave it out: {REMOVED[at]}" if at in REMOVED else None


def translated(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A section's values under today's keys: for model folders, which outlive the recipe that made them."""
    return {
        RENAMED.get((section, key), key): value
        for key, value in values.items()
        if (section, key) not in REMOVED
    }
