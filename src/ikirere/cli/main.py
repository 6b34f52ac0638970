"""The verbs. Nothing is imported before it is needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ikirere import __version__
from ikirere.cli.data import app as data_app
from ikirere.cli.shared import AsJson, Overrides, RecipeFile, RunFolder, end
from ikirere.cli.tokenizer import app as tokenizer_app

app = typer.Typer(
    name="ikirere",
    help="A foundry for small language models: one recipe from raw text to a served, tool-using model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="The whole programme, shrunk to minutes.")
    ] = False,
    run_folder: Annotated[
        Path | None, typer.Option(help="Where to write; default: runs/NAME or runs/NAME-rehearsal.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
) -> None:
    """Run a recipe, or continue where it was left."""

    def action() -> int:
        from ikirere.programme.commands import run_recipe
        from ikirere.stages import load_stage

        return run_recipe(recipe, overrides or [], rehearse, run_folder, until, load_stage)

    end(action, resumable=True)


@app.command()
def plan(recipe: RecipeFile, overrides: Overrides = None, json: AsJson = False) -> None:
    """Parameters, FLOPs, memory, hours and contradictions of a recipe. Runs nothing."""

    def action() -> None:
        from ikirere.recipe.load import load_recipe
        from ikirere.recipe.planner import plan as make_plan
        from ikirere.recipe.planner import render

        made = make_plan(load_recipe(recipe, overrides or []))
        if json:
            _print_json(made.to_json())
        else:
            print(render(made), end="")

    end(action)


@app.command()
def status(run: RunFolder, json: AsJson = False) -> None:
    """Stages, metrics and gates of a run."""

    def action() -> None:
        from ikirere.programme.console import show_status
        from ikirere.programme.progress import console
        from ikirere.programme.status import status as read_status

        if json:
            _print_json(read_status(run))
        else:
            show_status(run, console())

    end(action)


@app.command()
def verify(run: RunFolder) -> None:
    """Hash every artifact again and derive every metric and verdict again."""

    def action() -> int:
        from ikirere.programme.verify import verify_and_say

        return verify_and_say(run, print)

    end(action)


@app.command()
def chat(
    run: RunFolder,
    tools: Annotated[bool, typer.Option("--tools/--no-tools", help="Let the model call its tools.")] = True,
) -> None:
    """Talk to a run's model in the terminal."""

    def action() -> None:
        from ikirere.serve.terminal import chat as talk

        talk(run, tools=tools)

    end(action)


@app.command()
def serve(
    run: RunFolder,
    host: Annotated[
        str | None, typer.Option(help="Address; default: the recipe's.", show_default=False)
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; default: the recipe's.", show_default=False)] = None,
) -> None:
    """Serve a run's model: a web page and an OpenAI-compatible endpoint."""

    def action() -> None:
        from ikirere.serve.http.api import serve as listen

        listen(run, host, port)

    end(action)


@app.command()
def report(run: RunFolder) -> None:
    """Make a run's report again from what the run folder holds."""

    def action() -> int:
        from ikirere.programme.commands import remake_report
        from ikirere.stages import load_stage

        return remake_report(run, load_stage)

    end(action)


@app.command()
def version() -> None:
    """Print the version."""
    print(f"ikirere {__version__}")


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False))


def main() -> None:
    """Entry point of the `ikirere` command."""
    # torch's threads wait for each other by spinning, with GNU's default for milliseconds. Where other programs hold a
    # core, that makes small operations tens of times slower; this much less costs nothing on a machine of one's own.
    # It must be said before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    app()


if __name__ == "__main__":
    main()
