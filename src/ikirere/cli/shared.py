"""What commands have in common: arguments, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe's YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the recipe's.")
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def end(action: Callable[[], int | None], resumable: bool = False) -> None:
    """Run a command's action; mistakes of the user are one line and exit code 2."""
    from ikirere.programme.failures import guard

    raise typer.Exit(guard(lambda: action() or 0, resumable=resumable))
