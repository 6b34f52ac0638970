"""The front door: one Typer command per verb, no logic."""

from ikirere.cli.main import app, main

__all__ = ["app", "main"]
