"""A full programme made small enough for two cores: `shrink(recipe)`; `rehearse(recipe)` also lists the changes."""

from ikirere.recipe.rehearse.changes import Change
from ikirere.recipe.rehearse.rules import Rehearsal, rehearse, shrink

__all__ = ["Change", "Rehearsal", "rehearse", "shrink"]
