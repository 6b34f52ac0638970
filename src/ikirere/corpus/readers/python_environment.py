"""The interpreter's standard library and the installed distributions: real code and documentation on every machine
that can run this, with the licence that each distribution declares."""

from __future__ import annotations

import csv
import email
import hashlib
import importlib.metadata
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ikirere.corpus.document import Document
from ikirere.corpus.licence import of_metadata
from ikirere.corpus.readers.docstrings import documentation
from ikirere.corpus.readers.reader import Say, SourcePosition, resume_after
from ikirere.corpus.readers.text import Skipped, interleave, read_text
from ikirere.recipe.data import PythonEnvironment

OWN = "ikirere"  # its text changes with every edit of this project
STDLIB_LICENCE = "PSF-2.0"
DOCS = (".md", ".rst", ".txt")
GENERATED, TRIVIAL_TEXT = "generated", "trivial"
# The filter of The Stack (Kocetkov et al. 2022, section 2) and StarCoder (Li et al. 2023, section 3.2).
LONGEST_LINE, MEAN_LINE, LETTERS = 1000, 100, 0.25
SHORTEST_DOCS = 200  # characters; shorter files are stubs, pins and name lists
NOT_LETTERS = bytes(b for b in range(256) if not chr(b).isalpha() or b > 127)
LEGAL = re.compile(r"(?i)^(licen[cs]e|copying|copyright|notice|authors|third.?party)")


@dataclass(frozen=True)
class File:
    path: Path
    shown: str  # posix path below the standard library or site-packages


@dataclass
class Group:
    """One distribution, or one module family of the standard library."""

    name: str
    licence: str
    files: list[File]


class PythonEnvironmentSource:
    """Code (.py) and documentation (.md, .rst, .txt, the README in a distribution's metadata, and one document per
    module of its docstrings).

    Groups are the distributions by name and `stdlib-<module>`. They take turns by bytes, in the order of hashes of
    names and paths, so that `max_bytes` keeps a part of every group and no large one crowds out the rest.
    Generated files and texts without prose are skipped and counted. Licence texts and name lists are not read.
    Vendored files carry the licence of the distribution that ships them.
    """

    row = None
    of_machine = True

    def __init__(self, config: PythonEnvironment, recipe_folder: Path) -> None:
        self.config = config
        index, parts = (int(n) for n in config.slice.split("/"))
        self.slice = (index - 1) % max(parts, 1), max(parts, 1)

    def documents(self, skipped: Skipped, say: Say, start: int | SourcePosition = 0) -> Iterator[Document]:
        return resume_after(self._all, skipped, start)

    def _all(self, skipped: Skipped) -> Iterator[Document]:
        groups = self._groups()
        return interleave([partial(self._group, group, skipped) for group in groups], width=len(groups) or 1)

    def fingerprint(self) -> str:
        """Hash of the interpreter's version and each distribution's name and version."""
        installed = sorted((name, d.version) for name, d in _distributions())
        return hashlib.sha256(repr((sys.version, installed)).encode()).hexdigest()

    def size(self) -> int:
        if self.config.max_bytes is not None:
            return self.config.max_bytes
        return sum(f.path.stat().st_size for g in self._groups() for f in g.files if f.path.is_file())

    def _groups(self) -> list[Group]:
        groups = [g for g in stdlib_groups() if self._mine(g.name)] + list(distribution_groups(self._mine))
        return sorted(groups, key=lambda g: _hash(g.name))

    def _mine(self, name: str) -> bool:
        index, parts = self.slice
        return int.from_bytes(_hash(name)[:8]) % parts == index

    def _group(self, group: Group, skipped: Skipped) -> Iterator[Document]:
        for file in sorted(group.files, key=lambda f: _hash(f.shown)):
            text = read_text(file.path, file.shown, skipped)
            if text is None:
                continue
            if file.path.name == "METADATA":
                # Only the description, which is the README, is prose.
                payload = email.message_from_string(text).get_payload()
                text = payload if isinstance(payload, str) else ""
            make = self._code if file.path.suffix == ".py" else self._docs
            yield from make(group, file, text, skipped)

    def _code(self, group: Group, file: File, text: str, skipped: Skipped) -> Iterator[Document]:
        if generated(text):
            skipped(file.shown, GENERATED)
            return
        if "code" in self.config.include:
            yield self._document(group, file.shown, text, "code", "python")
        if "docs" in self.config.include:
            module = file.shown.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            if docs := documentation(text, module):
                yield self._document(group, f"{file.shown}#docstrings", docs, "docs", "en")

    def _docs(self, group: Group, file: File, text: str, skipped: Skipped) -> Iterator[Document]:
        if "docs" not in self.config.include:
            return
        if len(text) < SHORTEST_DOCS or sum(map(str.isalpha, text)) < len(text) / 2:
            skipped(file.shown, TRIVIAL_TEXT)
            return
        yield self._document(group, file.shown, text, "docs", "en")

    def _document(self, group: Group, path: str, text: str, kind: str, lang: str) -> Document:
        domain = self.config.domain or kind
        return Document(text, self.config.name, group.name, path, domain, group.licence, lang)


def generated(text: str) -> bool:
    """Whether a source file is a table or a minified blob rather than something that a person wrote."""
    lines = text.splitlines()
    longest = max(map(len, lines), default=0)
    letters = len(text.encode("ascii", "ignore").translate(None, NOT_LETTERS))
    return longest > LONGEST_LINE or len(text) > MEAN_LINE * len(lines) or letters < LETTERS * len(text)


def stdlib_groups() -> list[Group]:
    """The standard library by top-level module."""
    root = Path(sysconfig.get_path("stdlib"))
    groups: dict[str, Group] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in ("__pycache__", "site-packages", "dist-packages"))
        for name in sorted(names):
            if not name.endswith((".py", *DOCS)) or LEGAL.match(name):
                continue
            path = Path(folder, name)
            shown = path.relative_to(root).as_posix()
            family = f"stdlib-{shown.split('/')[0].split('.')[0]}"
            groups.setdefault(family, Group(family, STDLIB_LICENCE, [])).files.append(File(path, shown))
    return list(groups.values())


def distribution_groups(wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Group]:
    """Installed distributions of the wanted names with the files that their RECORD lists."""
    for name, distribution in _distributions():
        if not wanted(name):
            continue
        files = [
            File(Path(str(distribution.locate_file(p))), p) for p in _recorded(distribution) if _wanted(p)
        ]
        if files:
            yield Group(name, _licence(distribution), files)


def _distributions() -> Iterator[tuple[str, importlib.metadata.Distribution]]:
    """Each distribution once, under its normalised name (PEP 503); the one that would be imported wins."""
    seen = {OWN}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name and name not in seen:
            seen.add(name)
            yield name, distribution


def _recorded(distribution: importlib.metadata.Distribution) -> Iterator[str]:
    # `distribution.files` builds an object per line, which takes seconds over a large environment.
    record = distribution.read_text("RECORD")
    if record is not None:
        yield from (row[0] for row in csv.reader(record.splitlines()) if row)
    else:
        yield from (p.as_posix() for p in distribution.files or ())


def _wanted(path: str) -> bool:
    if path.startswith(("..", "/")):  # scripts and data outside site-packages
        return False
    folder, _, name = path.rpartition("/")
    if ".dist-info" in folder or ".egg-info" in folder:
        return name == "METADATA" and "/" not in folder
    return name.endswith((".py", *DOCS)) and not LEGAL.match(name)


def _licence(distribution: importlib.metadata.Distribution) -> str:
    def fields(name: str) -> list[str]:
        return distribution.metadata.get_all(name) or []

    names = [folder + name for name in fields("License-File") for folder in ("licenses/", "")]
    texts = (distribution.read_text(name) or "" for name in names)
    return of_metadata(
        next(iter(fields("License-Expression")), None),
        fields("Classifier"),
        next(iter(fields("License")), None),
        texts,
    )


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
