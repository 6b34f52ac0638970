"""What a build reads from outside its folder: hashes of it by the recipe's key, and what of it cannot be read."""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path

from ikirere.common.mirror import VARIABLE
from ikirere.corpus.contamination.evaluation_sets import content_fingerprint, hub_away, read_evaluation_set
from ikirere.corpus.dedup.lsh import plan
from ikirere.corpus.readers import open_source, reader
from ikirere.corpus.readers.files import expand, hash_files
from ikirere.corpus.readers.hub import HubSource
from ikirere.corpus.steps import STEPS, make_step
from ikirere.corpus.steps.step import StepContext
from ikirere.errors import UserError
from ikirere.recipe.data import Data, Source

AGAINST = "data.near_duplicates.against"


def external_inputs(data: Data, recipe_folder: Path) -> dict[str, str]:
    """Label -> hash of the content: of each source's files, of word lists, evaluation sets and `against` sets. What is
    only on the hub counts by its name. Raises UserError for a path that is not there."""
    found = {}
    for i, source in enumerate(data.sources):
        made = reader(source, recipe_folder)
        if not made.of_machine:
            found[f"data.sources.{i} ({source.name})"] = made.fingerprint()
    if data.decontaminate is not None:
        for i, spec in enumerate(data.evaluation_sets):
            content = content_fingerprint(spec, recipe_folder)
            found[f"data.evaluation_sets.{i} ({spec})"] = content or "not on this machine"
    if data.policy is not None and data.policy.words is not None:
        words = data.policy.words
        path = expand(words, "data.policy.words", recipe_folder)
        found[f"data.policy.words ({words})"] = hash_files([(path, "")])
    if data.near_duplicates is not None:
        for i, name in enumerate(data.near_duplicates.against):
            files = against_files(name, recipe_folder)
            # Their ends name them in the ledger.
            found[f"{AGAINST}.{i} ({name})"] = hash_files((path, path.name) for path in files)
    return found


def machine_inputs(data: Data, recipe_folder: Path) -> dict[str, str]:
    """Label -> hash of what sources read of the machine: its packages, the interpreter."""
    readers = ((i, source, reader(source, recipe_folder)) for i, source in enumerate(data.sources))
    return {
        f"data.sources.{i} ({source.name})": made.fingerprint()
        for i, source, made in readers
        if made.of_machine
    }


def against_files(name: str, recipe_folder: Path) -> list[Path]:
    """Parquet files of an entry of `near_duplicates.against`. Raises UserError where there is none."""
    path = expand(name, AGAINST, recipe_folder)
    files = [path] if path.is_file() else sorted(path.glob("**/*.parquet"))
    if not files:
        raise UserError(f"{AGAINST}: no Parquet file at {path}")
    return files


def check_inputs(data: Data, recipe_folder: Path) -> None:
    """Raises UserError, naming the key, for what a build would refuse only while it works: folders, files, evaluation
    sets, word lists, languages and domains that are not there or cannot be read. Of files it reads the beginning."""
    for source in data.sources:
        _check_source(source, recipe_folder)
    for name in STEPS:
        step = make_step(name, StepContext(data, recipe_folder, Path(), 0))
        if step is not None and name == "language":
            step.prepare(())
    if data.decontaminate is not None:
        for spec in data.evaluation_sets:
            if content_fingerprint(spec, recipe_folder) or data.decontaminate.on_missing == "stop":
                for _ in islice(read_evaluation_set(spec, recipe_folder), 1):
                    pass
    if data.near_duplicates is not None:
        for name in data.near_duplicates.against:
            plan((), against_files(name, recipe_folder))
    if data.quality is not None:
        for name in data.quality.seed_domains:
            if name not in data.domains:
                raise UserError(
                    f"data.quality.seed_domains: no source has the domain {name!r}; domains are "
                    f"{', '.join(sorted(data.domains))}"
                )


def _check_source(source: Source, recipe_folder: Path) -> None:
    made = reader(source, recipe_folder)
    if made.of_machine:
        return
    if isinstance(made, HubSource) and made.streams:
        why = hub_away()
        if not why and importlib.util.find_spec("datasets") is None:
            why = "the package `datasets` is not installed; run `pip install ikirere[hub]`"
        if why:
            raise UserError(
                f"data.sources ({source.name}): {made.wanted.name} cannot be streamed from the hub ({why}); or set "
                f"{VARIABLE} to a local mirror and give the source's `mirror` pattern"
            )
        return
    next(open_source(source, recipe_folder, lambda path, reason: None))
