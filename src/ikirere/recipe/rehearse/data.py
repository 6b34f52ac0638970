"""What a rehearsal reads: the local mirror where this machine has it, else slices of the Python environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ikirere.common.mirror import VARIABLE, mirror
from ikirere.recipe.data import PYTHON_ENVIRONMENT, Hub, Local, Puzzles, PythonEnvironment, Source
from ikirere.recipe.rehearse.changes import RecipeDraft
from ikirere.recipe.schema import Recipe

SOURCE_BYTES = 3_000_000  # read of each source
HELDOUT = 0.05  # at least: a smaller share of little text is too little to measure on
TRAIN_BYTES = 2_000_000  # that the tokenizer learns from
CODE_DOMAINS = frozenset({"code", "synthesis", "programs"})


def shrink_data(draft: RecipeDraft, recipe: Recipe) -> None:
    """Shrink `data`: same domains, little text."""
    standing_in = [i for i, s in enumerate(recipe.data.sources) if not _readable(s)]
    kinds = {i: "code" if recipe.data.sources[i].domain in CODE_DOMAINS else "docs" for i in standing_in}
    used: dict[str, int] = {}
    for i, source in enumerate(recipe.data.sources):
        key = f"data.sources.{i}"
        if i in kinds:
            kind = kinds[i]
            used[kind] = used.get(kind, 0) + 1
            part = f"{used[kind]}/{list(kinds.values()).count(kind)}"
            draft.set(key, _environment(source, kind, part), "no mirror here: text of the Python environment")
        elif isinstance(source, Hub):
            name = f"{source.domain}-mirror-{i}"
            stand_in = _mirror(source, name) if _of_texts(source) else _own(source, name)
            draft.set(key, stand_in, f"the local mirror of {VARIABLE}")
        else:
            small = min(source.max_bytes or SOURCE_BYTES, SOURCE_BYTES)
            draft.set(f"{key}.max_bytes", small, "little text")
    draft.set("data.heldout", max(recipe.data.heldout, HELDOUT), "enough held-out text to measure on")


def shrink_tokenizer(draft: RecipeDraft, recipe: Recipe, vocabulary: int) -> int:
    """Shrink `tokenizer`; returns its number of ids."""
    t = recipe.tokenizer
    if t.kind == "pretrained":
        why = f"{t.pretrained} has {t.vocab_size:,} ids, most of a small model would be its table"
        draft.set("tokenizer.kind", "bpe", why)
        draft.set("tokenizer.pretrained", None, why)
    size = min(t.vocab_size, vocabulary)
    draft.set("tokenizer.vocab_size", size, "a table in proportion to the model")
    draft.set("tokenizer.train_bytes", min(t.train_bytes, TRAIN_BYTES), "little text")
    return size


def _readable(source: Source) -> bool:
    """Whether the source's own text or its mirror is on this machine. The Python environment does not count as a mirror: it
    replaces sources slice by slice, so that several share it without copies."""
    if isinstance(source, (PythonEnvironment, Puzzles)):
        return True
    root = mirror()
    if isinstance(source, Hub):
        pattern = source.mirror
        return bool(root and pattern and pattern != PYTHON_ENVIRONMENT and any(root.glob(pattern)))
    if f"${{{VARIABLE}}}" not in source.path:
        return True  # relative to the recipe: its reader reports where it looked
    return bool(root and Path(source.path.replace(f"${{{VARIABLE}}}", str(root))).exists())


def _of_texts(source: Hub) -> bool:
    """Whether the mirror's files are Parquet, which all have a text per row; others may be in the columns of the
    dataset."""
    return str(source.mirror).endswith(".parquet")


def _own(source: Hub, name: str) -> dict[str, Any]:
    """The source as it is, little of it."""
    small = min(source.max_bytes or SOURCE_BYTES, SOURCE_BYTES)
    return source.model_copy(update={"name": name, "max_bytes": small}).model_dump(mode="json")


def _mirror(source: Hub, name: str) -> dict[str, Any]:
    """The mirror as a source of its own, under a name that does not claim to be the data set. Documents are its
    groups, so that few files still split."""
    assert source.mirror is not None
    folder, _, pattern = source.mirror.rpartition("/")
    while "*" in folder:
        folder, _, middle = folder.rpartition("/")
        pattern = f"{middle}/{pattern}"
    return Local(
        kind="parquet",
        name=name,
        path=f"${{{VARIABLE}}}/{folder}".rstrip("/"),
        pattern=pattern,
        domain=source.domain,
        licence=source.licence,
        licence_field="spdx",
        group_field="path",
        max_bytes=min(source.max_bytes or SOURCE_BYTES, SOURCE_BYTES),
    ).model_dump(mode="json")


def _environment(source: Any, kind: str, part: str) -> dict[str, Any]:
    values = {
        "kind": "python-environment",
        "name": f"{source.name}-stand-in",
        "include": [kind],
        "domain": source.domain,
        "slice": part,
        "max_bytes": SOURCE_BYTES,
    }
    return PythonEnvironment.model_validate(values).model_dump(mode="json")
