"""`ikirere tokenizer`: train one beside its programme, measure it, compare it with others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ikirere.cli.shared import Overrides, RecipeFile, end

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train, measure and compare tokenizers.")

Documents = Annotated[
    Path,
    typer.Option(
        "--documents",
        help="A run folder, a documents parquet, or a folder or glob of files.",
        show_default=False,
    ),
]


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: tokenizers/NAME.")] = None,
    run_folder: Annotated[
        Path | None, typer.Option(help="Whose data to learn from; default: runs/NAME.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Files, folders or globs to learn from instead.")
    ] = None,
) -> None:
    """Train the recipe's tokenizer on its data, or on other text."""

    def action() -> None:
        from ikirere.tokenizer.command import train as learn

        learn(recipe, overrides or [], out, run_folder, text or [])

    end(action)


@app.command()
def report(
    tokenizer: Annotated[
        str, typer.Argument(metavar="TOKENIZER", help="A folder or tokenizer.json.", show_default=False)
    ],
    documents: Documents,
) -> None:
    """Bytes per token, tokens per line, round trip and forged special tokens on documents."""

    def action() -> None:
        from ikirere.tokenizer.command import report as measure

        measure(tokenizer, documents)

    end(action)


@app.command()
def compare(
    tokenizers: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]TOKENIZER...", help="Those that are judged.", show_default=False),
    ],
    documents: Documents,
    out: Annotated[Path, typer.Option(help="A new folder for plan, report and rows.", show_default=False)],
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            help="[NAME=]PATH of a vocabulary to measure beside: tokenizer.json, .gguf, tiktoken:NAME.",
        ),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="The arm whose compression is the target.")] = None,
    criterion: Annotated[
        list[str] | None, typer.Option(help="METRIC[/DOMAIN] OP TARGET, instead of the usual criteria.")
    ] = None,
) -> None:
    """An A/B report: criteria are written and locked before anything is measured."""

    def action() -> None:
        from ikirere.tokenizer.command import compare as judge

        judge(tokenizers, beside or [], documents, out, baseline, criterion or [])

    end(action)
