"""The local mirror: a folder of corpora and benchmarks for machines without a network."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "IKIRERE_DATA"


def mirror() -> Path | None:
    """The folder that IKIRERE_DATA names, or None where it is not set."""
    value = os.environ.get(VARIABLE)
    return Path(value) if value else None
