"""A Hugging Face dataset, streamed; on a machine without network, its stand-in in the local mirror."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ikirere.common.mirror import VARIABLE, mirror
from ikirere.corpus.document import Document
from ikirere.corpus.readers.files import hash_files, total_size
from ikirere.corpus.readers.formats.compressed import ending
from ikirere.corpus.readers.formats.rows import Columns, Row, RowMapper, value
from ikirere.corpus.readers.local import read_file
from ikirere.corpus.readers.presets import DatasetPreset, resolve_preset
from ikirere.corpus.readers.python_environment import PythonEnvironmentSource
from ikirere.corpus.readers.reader import Say, SourcePosition, resume_after
from ikirere.corpus.readers.text import Skipped, interleave
from ikirere.errors import UserError
from ikirere.recipe.data import PYTHON_ENVIRONMENT, Hub, PythonEnvironment


class HubSource:
    """Rows of the dataset's split in their order. `dataset` may also be a local folder in the hub's format.

    Where IKIRERE_DATA is set and the recipe gives `mirror`, the mirror is read instead, network or not, so that a run
    on an air-gapped machine and its repetition elsewhere read the same. `python-environment` stands for the code of
    the interpreter and its installed distributions. Files of a mirror have the dataset's own columns, or their text in
    `text` and their licence in `licence_field` or `spdx`; those ending in .json are read as JSON lines.
    """

    def __init__(self, config: Hub, recipe_folder: Path) -> None:
        self.config = config
        self.wanted = resolve_preset(config)
        local = recipe_folder / self.wanted.name
        self.dataset = str(local) if local.is_dir() else self.wanted.name
        self.row: int | None = None

    @property
    def of_machine(self) -> bool:
        return self.environment() is not None

    @property
    def streams(self) -> bool:
        """Whether rows come from the hub itself, over the network."""
        return not self.of_machine and self.mirror_files() is None and not Path(self.dataset).is_dir()

    # ------------------------------------------------------------ the mirror

    def mirror_files(self) -> list[tuple[Path, str]] | None:
        """Files that stand in for the dataset; None where there are none to be read."""
        root = mirror()
        if root is None or self.config.mirror in (None, PYTHON_ENVIRONMENT):
            return None
        found = sorted(p for p in root.glob(str(self.config.mirror)) if p.is_file())
        if not found:
            raise UserError(
                f"data.sources ({self.config.name}).mirror: no file below {VARIABLE}={root} fits {self.config.mirror!r}; "
                f"mend the pattern, or unset {VARIABLE} to stream {self.wanted.name} from the hub"
            )
        return [(path, path.relative_to(root).as_posix()) for path in found]

    def environment(self) -> PythonEnvironmentSource | None:
        """The interpreter's code, where it stands in for the dataset."""
        if mirror() is None or self.config.mirror != PYTHON_ENVIRONMENT:
            return None
        config = PythonEnvironment(
            kind="python-environment", name=self.config.name, include=("code",), domain=self.config.domain
        )
        return PythonEnvironmentSource(config, Path())

    # ------------------------------------------------------------ reading

    def documents(self, skipped: Skipped, say: Say, start: int | SourcePosition = 0) -> Iterator[Document]:
        prefix = f"source {self.config.name}:"
        if (environment := self.environment()) is not None:
            say(f"{prefix} code of the Python environment stands in for {self.wanted.name}")
            return environment.documents(skipped, say, start)
        files = self.mirror_files()
        if files is not None:
            say(f"{prefix} {len(files)} files of the local mirror stand in for {self.wanted.name}")
            return resume_after(partial(self._mirrored, files), skipped, start)
        if isinstance(start, SourcePosition) and start.row is not None:
            return self._stream(skipped, start.row)
        return resume_after(self._stream, skipped, start)

    def fingerprint(self) -> str:
        if (environment := self.environment()) is not None:
            return environment.fingerprint()
        files = self.mirror_files()
        if files is not None:
            return hash_files(files)
        if Path(self.dataset).is_dir():
            return hash_files(
                (p, p.relative_to(self.dataset).as_posix())
                for p in sorted(Path(self.dataset).rglob("*"))
                if p.is_file()
            )
        # What an unpinned dataset holds cannot be known without asking; the recipe's `revision` pins it.
        asked = (
            self.wanted.name,
            self.wanted.config,
            self.wanted.split,
            self.config.data_dir,
            self.config.revision,
        )
        return hashlib.sha256(repr(("hub", *asked)).encode()).hexdigest()

    def size(self) -> int:
        if (environment := self.environment()) is not None:
            return self.config.max_bytes or environment.size()
        return total_size(self.mirror_files() or ())

    def _mirrored(self, files: list[tuple[Path, str]], skipped: Skipped) -> Iterator[Document]:
        mapper = _MirrorMapper(self.config, self.wanted)
        return interleave(
            [
                partial(
                    read_file,
                    path,
                    f"{self.config.name}/{shown}",
                    mapper,
                    skipped,
                    ".jsonl" if ending(shown) == ".json" else None,
                )
                for path, shown in files
            ]
        )

    def _stream(self, skipped: Skipped, row: int = 0) -> Iterator[Document]:
        mapper = RowMapper(self.config.name, self.config.domain, self.wanted.columns)
        self.row = row
        for found in self._rows(row):
            self.row += 1
            # Rows without a group of their own are each a group: a dataset has no files that mean anything.
            where = f"{self.wanted.name}:{self.row}"
            if document := mapper.document(found, where, where, skipped):
                yield document

    def _rows(self, past: int) -> Iterator[dict[str, Any]]:
        if importlib.util.find_spec("datasets") is None:
            raise UserError(
                f"data.sources ({self.config.name}): reading {self.wanted.name} from the hub needs the package "
                "`datasets`; run `pip install ikirere[hub]`"
            )
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import datasets  # type: ignore[import-untyped]

        types = {name: datasets.Value(kind) for name, kind in self.wanted.types}
        try:
            rows = datasets.load_dataset(
                self.dataset,
                self.wanted.config,
                split=self.wanted.split,
                data_dir=self.config.data_dir,
                revision=self.config.revision,
                features=datasets.Features(types) if types else None,
                streaming=True,
            )
            yield from rows.skip(past) if past else rows
        except Exception as error:  # what a file's format and the network may raise is no short list
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            where = f" at row {self.row + 1}" if self.row else ""
            raise UserError(
                f"data.sources ({self.config.name}): dataset {self.wanted.name} cannot be streamed from the hub{where} "
                f"({reason}); {self._way_out(str(error))}"
            ) from None

    def _way_out(self, error: str) -> str:
        """What to do about an error of the hub's library."""
        mirrored = f"set {VARIABLE} to a local mirror and give the source's `mirror` pattern"
        if "gated" in error:
            return f"accept its terms on its page and log in (`hf auth login`), or {mirrored}"
        if "scripts are no longer supported" in error:
            return "it is read by a program, which is not run: name a copy of it in Parquet as `dataset`"
        if any(sign in error for sign in ("doesn't exist", "Bad split", "Unknown split", "BuilderConfig")):
            return f"mend `dataset`, `config` or `split` (or log in, where it is private), or {mirrored}"
        return f"connect to the network (and log in where it is gated), or {mirrored}"


class _MirrorMapper(RowMapper):
    """Rows in the dataset's own columns where the file has them, else in those of a mirror."""

    def __init__(self, config: Hub, wanted: DatasetPreset) -> None:
        own = wanted.columns
        columns = Columns(
            licence=own.licence, licence_field=own.licence_field or "spdx", group=config.group_field
        )
        super().__init__(config.name, config.domain, columns)
        self.own = None if own.text == ("text",) else RowMapper(config.name, config.domain, own)

    def wanted(self) -> set[str]:
        return super().wanted() | (self.own.wanted() if self.own else set()) | {"spdx"}

    def _is_own(self, names: Any) -> bool:
        return self.own is not None and all(
            n in names or n.split(".")[0] in names for n in self.own.columns.text
        )

    def require(self, names: Any, where: str) -> None:
        if not self._is_own(set(names)):
            super().require(names, where)

    def document(self, row: Row, where: str, file: str, skipped: Skipped) -> Document | None:
        if self.own is not None and self._is_own(row):
            return self.own.document(row, where, where, skipped)
        if "spdx" in row and value(row, self.columns.licence_field) is None:
            row = {**row, str(self.columns.licence_field): row["spdx"]}
        return super().document(row, where, file, skipped)
