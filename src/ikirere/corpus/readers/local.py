"""A file or a folder on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ikirere.corpus.document import Document
from ikirere.corpus.licence import spdx
from ikirere.corpus.readers.files import existing, files_below, hash_files, total_size
from ikirere.corpus.readers.formats.compressed import ending
from ikirere.corpus.readers.formats.jsonl import jsonl_documents
from ikirere.corpus.readers.formats.parquet import parquet_documents
from ikirere.corpus.readers.formats.rows import Columns, RowMapper
from ikirere.corpus.readers.reader import Say, SourcePosition, resume_after
from ikirere.corpus.readers.text import Skipped, interleave, read_text
from ikirere.recipe.data import Local


class LocalSource:
    """Files of a folder, read by their endings, each also followed by .gz or .zst: `.jsonl`, `.ndjson` and
    `.parquet` by row, all others (.txt, .md, .rst, .tex, code) whole, as the text that they are."""

    only: tuple[str, ...] | None = None  # endings that are read of a folder; None: all
    read_as: str | None = None  # the ending by which every file is read; None: its own
    row = None
    of_machine = False

    def __init__(self, config: Local, recipe_folder: Path) -> None:
        self.config = config
        self.root = existing(config.path, config.name, recipe_folder)

    def files(self, skipped: Skipped = lambda path, reason: None) -> list[tuple[Path, str]]:
        """Files with their names below the root, sorted; hidden ones are left out."""

        def report(shown: str, reason: str) -> None:
            skipped(f"{self.config.name}/{shown}", reason)

        found = files_below(self.root, self.config.pattern, report)
        if self.only is None or self.root.is_file():
            return found
        return [(path, shown) for path, shown in found if ending(shown) in self.only]

    def documents(self, skipped: Skipped, say: Say, start: int | SourcePosition = 0) -> Iterator[Document]:
        return resume_after(self._all, skipped, start)

    def _all(self, skipped: Skipped) -> Iterator[Document]:
        config = self.config
        columns = Columns(
            (config.text_field,),
            None,
            config.licence,
            config.licence_field,
            config.group_field,
            config.url_field,
        )
        mapper = RowMapper(config.name, config.domain, columns)
        return interleave(
            [
                partial(read_file, path, f"{config.name}/{shown}", mapper, skipped, self.read_as)
                for path, shown in self.files(skipped)
            ]
        )

    def fingerprint(self) -> str:
        return hash_files(self.files())

    def size(self) -> int:
        return total_size(self.files())


class JsonlSource(LocalSource):
    """A file of any ending read as JSON lines, or the `.jsonl` and `.ndjson` files of a folder, compressed or not."""

    only = (".jsonl", ".ndjson")
    read_as = ".jsonl"


class ParquetSource(LocalSource):
    """A file of any ending read as Parquet, or the `.parquet` files of a folder, compressed or not."""

    only = (".parquet",)
    read_as = ".parquet"


def read_file(
    path: Path, shown: str, mapper: RowMapper, skipped: Skipped, forced: str | None = None
) -> Iterator[Document]:
    """Documents of one file, by its ending (or as if it ended in `forced`)."""
    kind = forced or ending(path.name)
    if kind in (".jsonl", ".ndjson"):
        yield from jsonl_documents(path, shown, mapper, skipped)
    elif kind == ".parquet":
        yield from parquet_documents(path, shown, mapper, skipped)
    elif (text := read_text(path, shown, skipped)) is not None:
        yield Document(text, mapper.name, shown, shown, mapper.domain, spdx(mapper.columns.licence))
