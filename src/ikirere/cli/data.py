"""`ikirere data`: build the documents of a recipe; push, pull and verify snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ikirere.cli.shared import Overrides, RecipeFile, end

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Build, push, pull and verify data.")
snapshot = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Versioned sets in the hub's dataset layout."
)
app.add_typer(snapshot, name="snapshot")


@app.command()
def build(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run_folder: Annotated[Path | None, typer.Option(help="Where to write; default: runs/NAME.")] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="As the programme's rehearsal reads it.")
    ] = False,
    max_bytes: Annotated[
        int | None,
        typer.Option(help="Read at most this much text of each source; the rest as the recipe sets.", min=1),
    ] = None,
) -> None:
    """Read, clean, compare, split and seal a recipe's data: its `data` stage, with every ledger."""

    def action() -> int:
        from ikirere.programme.commands import run_recipe
        from ikirere.recipe.load import load_recipe
        from ikirere.stages import load_stage

        keys = list(overrides or [])
        if max_bytes is not None:
            for i, source in enumerate(load_recipe(recipe, keys).data.sources):
                keys.append(f"data.sources.{i}.max_bytes={min(source.max_bytes or max_bytes, max_bytes)}")
        return run_recipe(recipe, keys, rehearse, run_folder, "data", load_stage)

    end(action, resumable=True)


@snapshot.command()
def push(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, or its data folder.", show_default=False)
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A folder, or hf://USER/NAME.", show_default=False)
    ],
) -> None:
    """Put a run's sets and mixtures into a snapshot. A version that is there never changes."""

    def action() -> None:
        from ikirere.corpus.publish.snapshot import push as put

        put(run / "data" if (run / "data").is_dir() else run, target)

    end(action)


@snapshot.command()
def pull(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, or hf://USER/NAME.", show_default=False)
    ],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.", show_default=False)],
) -> None:
    """Copy a snapshot and verify it."""

    def action() -> None:
        from ikirere.corpus.publish.snapshot import pull as get

        get(source, target)

    end(action)


@snapshot.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A snapshot, or a run's data folder.", show_default=False)
    ],
) -> None:
    """Hash every file of a snapshot again and name what differs from its manifest."""

    def action() -> int:
        from ikirere.corpus.publish.manifest import read_manifests
        from ikirere.corpus.publish.manifest import verify as check

        wrong = check(folder)
        for line in wrong:
            print(line)
        if not wrong:
            print(f"{len(read_manifests(folder))} manifests and their files are as written")
        return 1 if wrong else 0

    end(action)
