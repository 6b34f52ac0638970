"""Paths of a recipe, the files below them, and their fingerprint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from ikirere.common.mirror import VARIABLE, mirror
from ikirere.corpus.content_hash import content_sha256
from ikirere.corpus.readers.text import LINK, UNREADABLE, Skipped, printable
from ikirere.errors import UserError


def expand(path: str, key: str, recipe_folder: Path) -> Path:
    """A path of the recipe: ${IKIRERE_DATA} replaced, relative ones taken from the recipe's folder.
    Raises UserError naming the key where the variable is not set."""
    if f"${{{VARIABLE}}}" in path:
        root = mirror()
        if root is None:
            raise UserError(
                f"{key}: {path} needs the environment variable {VARIABLE}, which is not set; "
                "set it to the folder of the local mirror or give another path"
            )
        path = path.replace(f"${{{VARIABLE}}}", str(root))
    return recipe_folder / Path(path).expanduser()


def existing(path: str, name: str, recipe_folder: Path) -> Path:
    """`expand` for the path of the source `name`. Raises UserError where nothing is there."""
    found = expand(path, f"data.sources ({name}).path", recipe_folder)
    if not found.exists():
        raise UserError(f"data.sources ({name}).path: {found} does not exist")
    return found


def hash_files(files: Iterable[tuple[Path, str]]) -> str:
    """Fingerprint of (path, shown name) pairs: of names and contents. Empty files do not count; one that cannot be read
    counts by its name."""
    digest = hashlib.sha256()
    for path, shown in files:
        name = shown.encode() + b"\0"
        try:
            if path.stat().st_size:
                digest.update(name + bytes.fromhex(content_sha256(path)))
        except OSError:
            digest.update(name + UNREADABLE.encode())
    return digest.hexdigest()


def total_size(files: Iterable[tuple[Path, str]]) -> int:
    """Bytes on disk."""
    total = 0
    for path, _ in files:
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def files_below(
    root: Path, pattern: str, skipped: Skipped = lambda path, reason: None
) -> list[tuple[Path, str]]:
    """Files below a folder that fit the glob, with their posix names below it, sorted by name; or the file itself.

    Hidden files and folders are left out. A symbolic link to a file or folder that is read under its own name, or to
    a folder above, is not followed but reported as `link`; one that leads elsewhere is followed once. What cannot be
    listed is reported as `unreadable`. Names that are no Unicode are shown with escapes.
    """
    if root.is_file():
        return [(root, printable(root.name))]
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    found = _Walk(skipped).walk(root)
    return sorted(
        ((path, shown) for shown, path in found.items() if _fits(shown.split("/"), parts)), key=lambda f: f[1]
    )


def _fits(names: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path fit those of a glob, `**` standing for any number of folders."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(names)
        return any(_fits(names[i:], pattern[1:]) for i in range(len(names)))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


class _Walk:
    """Files of a tree by their shown names: first what lies in it, then what its links lead to."""

    def __init__(self, skipped: Skipped) -> None:
        self.skipped = skipped
        self.found: dict[str, Path] = {}
        self.real: set[str] = set()  # real paths of what is found or entered
        self.links: list[tuple[Path, str]] = []

    def walk(self, root: Path) -> dict[str, Path]:
        top = os.path.realpath(root)
        self._enter(top, "", root)
        while self.links:
            # Sorted again, since a followed link adds its own: the order is that of the names alone.
            self.links.sort(key=lambda link: link[1], reverse=True)
            path, shown = self.links.pop()
            real = os.path.realpath(path)
            if not Path(real).exists():
                self.skipped(shown, UNREADABLE)
            elif real in self.real or f"{top}/".startswith(f"{real.rstrip('/')}/"):
                self.skipped(shown, LINK)
            elif Path(real).is_dir():
                self._enter(real, f"{shown}/", path)
            elif Path(real).is_file():
                self._add(real, shown, path)
        return self.found

    def _add(self, real: str, shown: str, path: Path) -> None:
        self.real.add(real)
        self.found[shown] = path

    def _enter(self, real: str, prefix: str, folder: Path) -> None:
        waiting = [(real, prefix, folder)]
        while waiting:
            real, prefix, folder = waiting.pop()
            if real in self.real:
                continue
            self.real.add(real)
            try:
                entries = sorted(os.scandir(folder), key=lambda e: e.name)
            except OSError:
                self.skipped(prefix or "./", UNREADABLE)
                continue
            for entry in entries:
                shown, below = prefix + printable(entry.name), f"{real.rstrip('/')}/{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    self.links.append((Path(entry.path), shown))
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append((below, f"{shown}/", Path(entry.path)))
                elif entry.is_file(follow_symlinks=False) and below not in self.real:
                    self._add(below, shown, Path(entry.path))
