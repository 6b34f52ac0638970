"""A file or a folder on this machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ikirere.data.document import Document
from ikirere.data.licence import spdx
from ikirere.data.sources.text import EMPTY, UNDECODABLE, Skipped, interleave, read_text
from ikirere.errors import UserError
from ikirere.recipe.sections import Hub, Local

Say = Callable[[str], None]

MIRROR = "IKIRERE_DATA"
HASHED_BYTES = (
    2_000_000_000  # a source up to this size is fingerprinted by content, a larger one by size and time
)


def mirror_folder() -> Path | None:
    """The local mirror of corpora, or None where IKIRERE_DATA is not set."""
    value = os.environ.get(MIRROR)
    return Path(value) if value else None


def expand(path: str, key: str, recipe_folder: Path) -> Path:
    """A path of the recipe: ${IKIRERE_DATA} replaced, relative ones taken from the recipe's folder.
    Raises UserError naming the key where the variable is not set."""
    if f"${{{MIRROR}}}" in path:
        mirror = mirror_folder()
        if mirror is None:
            raise UserError(
                f"{key}: {path} needs the environment variable {MIRROR}, which is not set; "
                "set it to the folder of the local mirror or give another path"
            )
        path = path.replace(f"${{{MIRROR}}}", str(mirror))
    return recipe_folder / Path(path).expanduser()


def hash_files(files: Iterable[tuple[Path, str]]) -> str:
    """Fingerprint of (path, shown name) pairs."""
    files = list(files)
    by_content = sum(path.stat().st_size for path, _ in files) <= HASHED_BYTES
    digest = hashlib.sha256()
    for path, shown in files:
        digest.update(shown.encode() + b"\0")
        if by_content:
            with path.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        else:
            stat = path.stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


class RowMapper:
    """Rows of JSONL, Parquet or hub datasets to documents, by the columns that the recipe names."""

    def __init__(
        self, config: Local | Hub, text_field: str | None = None, licence_field: str | None = None
    ) -> None:
        self.config = config
        self.text_field = text_field or config.text_field
        self.licence_field = licence_field or config.licence_field

    def document(self, row: Mapping[str, Any], place: str, file: str, skipped: Skipped) -> Document | None:
        """place: file and row, for people. file: the group of rows that have none of their own."""
        text = row.get(self.text_field)
        if text is None and self.text_field not in row:
            known = ", ".join(sorted(map(str, row))) or "none"
            raise UserError(
                f"{place}: no field {self.text_field!r} (text_field of source {self.config.name!r}); fields are {known}"
            )
        if not isinstance(text, str) or not text.strip():
            skipped(place, EMPTY)
            return None
        group = file
        if self.config.group_field is not None:
            group = f"{self.config.name}/{row.get(self.config.group_field)}"
        path = row.get("path")
        try:
            return Document(
                text, self.config.name, group, path if isinstance(path, str) else place, self.config.domain,
                self._licence(row), str(row.get("lang") or ""),
            )  # fmt: skip
        except UnicodeEncodeError:  # JSON may spell half of a surrogate pair
            skipped(place, UNDECODABLE)
            return None

    def _licence(self, row: Mapping[str, Any]) -> str:
        value = row.get(self.licence_field) if self.licence_field else None
        if isinstance(value, (list, tuple)):  # The Stack gives a list: the licences found in the repository
            return " AND ".join(sorted({spdx(str(v)) for v in value})) or spdx(self.config.licence)
        return spdx(str(value)) if value else spdx(self.config.licence)


class LocalSource:
    """Text files whole, `.jsonl` and `.parquet` files by row. Symbolic links to folders are not followed."""

    only: tuple[str, ...] | None = None  # endings that are read; None: all

    def __init__(self, config: Local, recipe_folder: Path) -> None:
        self.config = config
        self.root = expand(config.path, f"data.sources ({config.name}).path", recipe_folder)
        if not self.root.exists():
            raise UserError(f"data.sources ({config.name}).path: {self.root} does not exist")

    def files(self) -> list[tuple[Path, str]]:
        """Files with their names below the root, sorted; hidden ones are left out."""
        if self.root.is_file():
            return [(self.root, self.root.name)]
        found = []
        for path in self.root.glob(self.config.pattern):
            shown = path.relative_to(self.root).as_posix()
            hidden = any(part.startswith(".") for part in Path(shown).parts)
            if path.is_file() and not hidden and (self.only is None or path.suffix in self.only):
                found.append((path, shown))
        return sorted(found, key=lambda f: f[1])

    def documents(self, skipped: Skipped, say: Say) -> Iterator[Document]:
        mapper = RowMapper(self.config)
        streams = [partial(self._file, path, shown, mapper, skipped) for path, shown in self.files()]
        return interleave(streams)

    def _file(self, path: Path, shown: str, mapper: RowMapper, skipped: Skipped) -> Iterator[Document]:
        return read_file(path, f"{self.config.name}/{shown}", mapper, skipped, self._forced())

    def _forced(self) -> str | None:
        """The ending by which every file is read, where the kind says it."""
        return None

    def fingerprint(self) -> str:
        return hash_files(self.files())

    def size(self) -> int:
        return sum(path.stat().st_size for path, _ in self.files())


def read_file(
    path: Path, shown: str, mapper: RowMapper, skipped: Skipped, forced: str | None = None
) -> Iterator[Document]:
    """Documents of one file, by its ending (or as if it ended in `forced`)."""
    from ikirere.data.sources.jsonl import jsonl_documents
    from ikirere.data.sources.parquet import parquet_documents

    ending = forced or path.suffix
    if ending in (".jsonl", ".ndjson"):
        yield from jsonl_documents(path, shown, mapper, skipped)
    elif ending == ".parquet":
        yield from parquet_documents(path, shown, mapper, skipped)
    elif (text := read_text(path, shown, skipped)) is not None:
        config = mapper.config
        yield Document(text, config.name, shown, shown, config.domain, spdx(config.licence))
