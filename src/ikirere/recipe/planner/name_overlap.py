"""Evaluation sets inside training sources, found by name.

Names are compared after folding spelling and aliases. An evaluation set may name its split (`gsm8k:test`);
training on another split of the same set is a note, on the same one a contradiction. What names cannot
show (copies under other names, near-duplicates) is the decontamination's work on the text itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ikirere.common.mirror import mirror
from ikirere.recipe.data import Arc
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Hub, Local

# Spellings of one set: owner/name on the hub, file and folder names, short names.
_ALIASES: dict[str, tuple[str, ...]] = {
    "gsm8k": ("gsm8k", "grade-school-math", "openai-gsm8k"),
    "mmlu": ("mmlu", "cais-mmlu", "hendrycks-test"),
    "hellaswag": ("hellaswag",),
    "arc-challenge": ("arc-challenge", "ai2-arc", "arc-c"),
    "truthfulqa": ("truthfulqa", "truthful-qa"),
    "humaneval": ("humaneval", "human-eval", "openai-humaneval"),
    "mbpp": ("mbpp",),
    "math": ("hendrycks-math", "competition-math", "math-test"),
    "arc-agi-1": ("arc-agi-1", "arc-agi-v1", "fchollet-arc-agi", "arc-agi"),
    "arc-agi-2": ("arc-agi-2", "arc-agi-v2", "arcprize-arc-agi-2"),
    "wikitext": ("wikitext", "wikitext2", "wikitext-2", "wikitext-103"),
    "wikipedia": ("wikipedia", "wikimedia-wikipedia", "enwiki"),
    "tinystories": ("tinystories", "tiny-stories"),
    "sst2": ("sst2", "sst-2", "stanford-sentiment"),
    "samsum": ("samsum",),
    "lambada": ("lambada",),
    "sudoku-extreme": ("sudoku-extreme",),
    "maze-hard": ("maze-hard",),
}

_SPLITS = ("training", "train", "test", "validation", "valid", "dev", "evaluation")
_SAME_SPLIT = {"validation": {"validation", "valid", "val", "dev"}, "evaluation": {"evaluation", "eval"}}


@dataclass(frozen=True)
class _Contained:
    inner: str
    inner_split: str
    outer: str
    outer_split: str
    evidence: str


# Sets known to lie inside others.
_CONTAINED = (
    _Contained(
        "arc-agi-1",
        "evaluation",
        "arc-agi-2",
        "training",
        "376 of the 400 ARC-AGI-1 evaluation tasks are in ARC-AGI-2's training set",
    ),
    _Contained(
        "wikitext", "*", "wikipedia", "*", "WikiText's articles are Wikipedia's, all of its splits among them"
    ),
)

# What is known about sets whose other split is trained on.
_SIBLINGS = {"gsm8k": "3 of 1,319 GSM8K test questions share a 13-gram with its training set"}


@dataclass(frozen=True)
class Leak:
    """`certain`: the evaluated rows are in the source. Otherwise another split of the set is."""

    key: str
    source_name: str
    evaluation: str
    why: str
    certain: bool


def _fold(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _sets_in(text: str) -> set[str]:
    """Known sets that a name mentions, longest alias first, so that arc-agi-2 is not also arc-agi."""
    folded = f"-{_fold(text)}-"
    found = set()
    aliases = sorted(((a, k) for k, v in _ALIASES.items() for a in v), key=lambda pair: -len(pair[0]))
    for alias, name in aliases:
        while f"-{alias}-" in folded:
            found.add(name)
            folded = folded.replace(f"-{alias}-", "-")
    return found


def _same(a: str | None, b: str | None, default: bool) -> bool:
    """Whether two splits may be the same one; `default` where one is not named."""
    if not a or not b or "*" in (a, b):
        return default
    for spellings in (*_SAME_SPLIT.values(), {"training", "train"}):
        if a in spellings:
            return b in spellings
    return a == b


def find_leaks(recipe: Recipe) -> list[Leak]:
    """Every pair of a training source and an evaluation set that meet by name."""
    leaks: dict[tuple[str, str], Leak] = {}
    for key, name, text, split in _sources(recipe):
        inside = _sets_in(text)
        for wanted in recipe.data.evaluation_sets:
            wanted_name, _, wanted_split = wanted.partition(":")
            for one in sorted(_sets_in(wanted_name) or {_fold(wanted_name)}):
                met = _meet(one, wanted_split, inside, text, split)
                if met and ((key, wanted) not in leaks or met[1]):
                    leaks[key, wanted] = Leak(key, name, wanted, *met)
    return list(leaks.values())


def _sources(recipe: Recipe) -> Iterator[tuple[str, str, str, str | None]]:
    """(key, name, text to look for sets in, split) of everything that is trained on."""
    for i, source in enumerate(recipe.data.sources):
        key = f"data.sources.{i}"
        if isinstance(source, Arc):
            yield f"{key}.path", source.name, *_by_name(f"{source.name} {source.path}")
        elif isinstance(source, Local):
            yield f"{key}.path", source.name, *_by_name(f"{source.name} {source.path} {source.pattern}")
        elif isinstance(source, Hub):
            text = f"{source.name} {source.preset or ''} {source.dataset or ''} {source.config or ''} {source.data_dir or ''}"
            yield f"{key}.dataset", source.name, text, source.split.split("[")[0]
            for mirrored in _mirrored(source.mirror):
                yield f"{key}.mirror", source.name, *_by_name(mirrored)
    for section, files in (
        ("sft.rows_files", recipe.sft.rows_files if recipe.sft else ()),
        ("dpo.pairs_files", recipe.dpo.pairs_files if recipe.dpo else ()),
    ):
        for i, file in enumerate(files):
            yield f"{section}.{i}", file, *_by_name(file)


def _by_name(text: str) -> tuple[str, str | None]:
    """The split is the one that is in the name, where exactly one is."""
    words = set(_fold(text).split("-"))
    splits = [s for s in _SPLITS if s in words]
    return text, splits[0] if len(splits) == 1 else None


def _mirrored(pattern: str | None) -> list[str]:
    """The mirror's pattern, and the files it stands for where IKIRERE_DATA is set."""
    if pattern is None:
        return []
    root = mirror()
    files = sorted(root.glob(pattern)) if root else []
    return [pattern, *(file.name for file in files)]


def _meet(
    one: str, wanted_split: str, inside: set[str], text: str, split: str | None
) -> tuple[str, bool] | None:
    if one in inside or (one not in _ALIASES and f"-{one}-" in f"-{_fold(text)}-"):
        # A training split is presumed disjoint from the evaluated one unless that is named too.
        training = split in ("train", "training")
        if _same(split, wanted_split, default=not training):
            return f"the source is the evaluated split ({split or 'it names no split'})", True
        return _SIBLINGS.get(one, f"the source is the set's {split} split: decontaminate by text"), False
    for known in _CONTAINED:
        if known.inner != one or known.outer not in inside:
            continue
        if _same(wanted_split, known.inner_split, True) and _same(split, known.outer_split, True):
            return known.evidence, True
    return None
