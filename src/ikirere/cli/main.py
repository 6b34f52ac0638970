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
    rebuild: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE", help="Make this stage again; what is there is set aside. May be repeated."
        ),
    ] = None,
    go_on: Annotated[
        bool,
        typer.Option(
            "--go-on", help="Go on with a training that has begun, with the settings as they are now."
        ),
    ] = False,
) -> None:
    """Run a recipe, or continue where it was left. Ends with 3 where the verdict is DO NOT SHIP."""

    def action() -> int:
        from ikirere.programme.commands import run_recipe
        from ikirere.programme.runner import Options
        from ikirere.stages import MODULES, load_stage

        options = Options(rebuild=frozenset(rebuild or ()), go_on=go_on)
        return run_recipe(recipe, overrides or [], rehearse, run_folder, until, load_stage, options, MODULES)

    end(action, resumable=True)


@app.command()
def plan(recipe: RecipeFile, overrides: Overrides = None, json: AsJson = False) -> None:
    """Parameters, FLOPs, memory, hours and contradictions of a recipe. Runs nothing."""

    def action() -> None:
        from ikirere.programme.preflight import load_stages, refusals
        from ikirere.recipe.load import load_recipe
        from ikirere.recipe.planner import plan as make_plan
        from ikirere.recipe.planner import render
        from ikirere.stages import load_stage

        loaded = load_recipe(recipe, overrides or [])
        stages = load_stages(loaded, load_stage)
        refused = refusals(loaded, recipe.resolve().parent, stages)
        made = make_plan(
            loaded, refused, frozenset(name for name, stage in stages.items() if stage is not None)
        )
        if json:
            _print_json(made.to_json())
        else:
            print(render(made), end="")

    end(action)


@app.command()
def status(
    run: RunFolder,
    json: AsJson = False,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="List every checkpoint.")] = False,
) -> None:
    """Stages, metrics, gates and verdict of a run, what was set aside and what is stale."""

    def action() -> None:
        from ikirere.programme.console import show_status
        from ikirere.programme.progress import console
        from ikirere.programme.status import status as read_status
        from ikirere.stages import MODULES

        if json:
            _print_json(read_status(run, MODULES))
        else:
            show_status(run, console(), MODULES, checkpoints)

    end(action)


@app.command()
def verify(run: RunFolder) -> None:
    """Hash every artifact again and derive every metric and verdict again."""

    def action() -> int:
        from ikirere.programme.verify import verify_and_say
        from ikirere.stages import MODULES

        return verify_and_say(run, print, MODULES)

    end(action)


@app.command()
def chat(
    run: RunFolder,
    tools: Annotated[bool, typer.Option("--tools/--no-tools", help="Let the model call its tools.")] = True,
) -> None:
    """Talk to a run's model in the terminal."""

    def action() -> None:
        from ikirere.serve.terminal import chat as talk

        talk(run, tools=tools, notice=_notice(run))

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

        listen(run, host, port, notice=_notice(run))

    end(action)


@app.command()
def report(run: RunFolder) -> None:
    """Make a run's report again from what the run folder holds."""

    def action() -> int:
        from ikirere.programme.commands import remake_report
        from ikirere.stages import load_stage

        return remake_report(run, load_stage)

    end(action)


Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@app.command()
def clean(run: RunFolder, yes: Yes = False) -> None:
    """Delete what a run has set aside: results and trainings that were outdated. Asks first."""

    def action() -> int:
        from ikirere.programme.commands import clean as delete

        return delete(run, yes)

    end(action)


@app.command()
def prune(run: RunFolder, yes: Yes = False) -> None:
    """Delete all checkpoints of a run but the newest of each stage, those of milestones too. Asks first."""

    def action() -> int:
        from ikirere.programme.commands import prune as delete

        return delete(run, yes)

    end(action)


@app.command()
def version() -> None:
    """Print the version."""
    print(f"ikirere {__version__}")


def _notice(path: Path) -> str | None:
    """What somebody should know who talks to a run's model: that it is stale, or made by other code."""
    from ikirere.programme.ledger import NAME
    from ikirere.programme.status import status as read_status
    from ikirere.serve.load import find_model
    from ikirere.stages import MODULES

    if not (path / NAME).is_file():
        return None
    name = find_model(path).parent.name
    for stage in read_status(path, MODULES)["stages"]:
        if stage["name"] == name:
            found = [f"is {stage['state']}"] if stage["state"] != "done" else []
            found += stage["marks"] + [
                f"made from other outputs of {other}" for other in stage["stale_inputs"]
            ]
            return f"note: the model of stage {name}: {'; '.join(found)}" if found else None
    return None


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False))


def main() -> None:
    """Entry point of the `ikirere` command."""
    # torch's threads wait for each other by spinning, with GNU's default for milliseconds. Where other programs hold a
    # core, that makes small operations tens of times slower; this much less costs nothing on a machine of one's own.
    # It must be set before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    app()


if __name__ == "__main__":
    main()
