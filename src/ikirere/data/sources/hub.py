"""A Hugging Face dataset, streamed; on a machine without network, its stand-in in the local mirror."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ikirere.data.document import Document
from ikirere.data.sources.local import MIRROR, RowMapper, hash_files, mirror_folder, read_file
from ikirere.data.sources.text import Skipped, interleave
from ikirere.errors import UserError
from ikirere.recipe.sections import Hub

Say = Callable[[str], None]


class HubSource:
    """Rows of the dataset's split in their order. `dataset` may also be a local folder in the hub's format.

    Where IKIRERE_DATA is set and the recipe gives `mirror`, the mirror's files are read instead, network or not, so
    that a run on an air-gapped machine and its repetition elsewhere read the same. Their text is in `text_field`,
    or in `text` where they have no such column; their licence in `licence_field` or `spdx`.
    """

    def __init__(self, config: Hub, recipe_folder: Path) -> None:
        self.config = config
        local = recipe_folder / config.dataset
        self.dataset = str(local) if local.is_dir() else config.dataset

    def mirror_files(self) -> list[tuple[Path, str]] | None:
        """Files that stand in for the dataset; None where the hub is to be asked."""
        root = mirror_folder()
        if root is None or self.config.mirror is None:
            return None
        found = sorted(p for p in root.glob(self.config.mirror) if p.is_file())
        if not found:
            raise UserError(
                f"data.sources ({self.config.name}).mirror: no file below {MIRROR}={root} fits {self.config.mirror!r}; "
                f"mend the pattern, or unset {MIRROR} to stream {self.config.dataset} from the hub"
            )
        return [(path, path.relative_to(root).as_posix()) for path in found]

    def documents(self, skipped: Skipped, say: Say) -> Iterator[Document]:
        files = self.mirror_files()
        if files is None:
            return self._stream(skipped)
        say(
            f"source {self.config.name}: {len(files)} files of the local mirror stand in for {self.config.dataset}"
        )
        return interleave([partial(self._mirrored, path, shown, skipped) for path, shown in files])

    def fingerprint(self) -> str:
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
        return hashlib.sha256(f"hub {self.dataset} {self.config.revision}".encode()).hexdigest()

    def size(self) -> int:
        return sum(path.stat().st_size for path, _ in self.mirror_files() or ())

    def _mirrored(self, path: Path, shown: str, skipped: Skipped) -> Iterator[Document]:
        names = _columns(path)
        text = self.config.text_field if self.config.text_field in names else "text"
        licence = self.config.licence_field if self.config.licence_field in names else "spdx"
        yield from read_file(
            path, f"{self.config.name}/{shown}", RowMapper(self.config, text, licence), skipped
        )

    def _stream(self, skipped: Skipped) -> Iterator[Document]:
        mapper = RowMapper(self.config)
        for number, row in enumerate(self._rows(), 1):
            # Rows without a group of their own are each a group: a dataset has no files that mean anything.
            place = f"{self.config.dataset}:{number}"
            if document := mapper.document(row, place, place, skipped):
                yield document

    def _rows(self) -> Iterator[dict[str, Any]]:
        if importlib.util.find_spec("datasets") is None:
            raise UserError(
                f"data.sources ({self.config.name}): reading {self.config.dataset} from the hub needs the package "
                "`datasets`; run `pip install ikirere[hub]`"
            )
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        from datasets import load_dataset  # type: ignore[import-untyped]

        try:
            yield from load_dataset(
                self.dataset,
                self.config.config,
                split=self.config.split,
                data_dir=self.config.data_dir,
                revision=self.config.revision,
                streaming=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"data.sources ({self.config.name}): dataset {self.config.dataset} cannot be streamed from the hub "
                f"({reason}); connect to the network (and log in where it is gated), or set {MIRROR} to a local mirror "
                "and give the source's `mirror` pattern"
            ) from None


def _columns(path: Path) -> list[str]:
    """Column names of a Parquet file; empty for other files, whose rows tell."""
    if path.suffix != ".parquet":
        return []
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)
