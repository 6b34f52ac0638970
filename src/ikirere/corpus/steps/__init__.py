"""The steps between reading documents and splitting them: one file and one registry line each.

A step of the registry is built from `StepContext`; `enabled` names the section of `data` that switches it on.
"""

from __future__ import annotations

import importlib

from ikirere.corpus.steps.step import RowStep, StepContext

# name -> (class, section of `data` that switches it on; '' for always), in the order in which they run.
STEPS: dict[str, tuple[str, str]] = {
    "normalise": ("ikirere.corpus.steps.normalise:Normaliser", "normalise"),
    "licence": ("ikirere.corpus.steps.licence_filter:LicenceFilter", ""),
    "language": ("ikirere.corpus.steps.language:LanguageFilter", "language"),
    "pii": ("ikirere.corpus.steps.pii:Redactor", "pii"),
    "policy": ("ikirere.corpus.steps.policy:PolicyFilter", "policy"),
    "quality": ("ikirere.corpus.steps.quality:QualityFilter", "quality"),
    "decontaminate": ("ikirere.corpus.steps.decontaminate:Decontaminator", "decontaminate"),
}


def make_step(name: str, context: StepContext) -> RowStep | None:
    """The step, or None where the recipe leaves it out."""
    path, section = STEPS[name]
    if section and getattr(context.data, section) is None:
        return None
    if section == "decontaminate" and not context.data.evaluation_sets:
        return None
    module, attribute = path.split(":")
    made: RowStep = getattr(importlib.import_module(module), attribute)(context)
    return made
