"""What checkpoints a stage's folder holds, read from their listings alone (no tensors, no torch).

A checkpoint is a folder `step-000400/` whose `files.json` lists step, config (the key of the settings it was made
with), the sha256 of every other file, and where known tokens, loss and purpose (`milestone <name>`, `last`, '').
`train.checkpoint` writes and validates them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

LISTING = "files.json"
NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint. tokens, loss (nats): None where its listing does not hold them. key: "" where it is damaged."""

    path: Path
    step: int
    bytes: int
    key: str
    tokens: int | None = None
    loss: float | None = None
    purpose: str = ""


def catalogue(folder: Path) -> list[CheckpointInfo]:
    """The checkpoints below a folder by rising step; damaged listings have no key. [] where there are none."""
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        match = NAME.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        try:
            listed = json.loads((path / LISTING).read_bytes())
            if not isinstance(listed, dict):
                listed = {}
        except (OSError, ValueError):
            listed = {}
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        found.append(
            CheckpointInfo(
                path,
                int(match[1]),
                size,
                str(listed.get("config", "")),
                listed.get("tokens"),
                listed.get("loss"),
                str(listed.get("purpose", "")),
            )
        )
    return sorted(found, key=lambda info: info.step)
