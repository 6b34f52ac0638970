"""Finding an evaluation set and reading its rows: the mirror, a path, the hub."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import importlib.util
import json
import os
import socket
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pyarrow as pa

from ikirere.common.mirror import VARIABLE, mirror
from ikirere.corpus.contamination.evaluation_sets.items import FILE, NUMBER, Item, Row, SetMissing, fields
from ikirere.corpus.contamination.evaluation_sets.registry import SETS, EvaluationSet
from ikirere.corpus.document import read_documents
from ikirere.corpus.readers.files import expand, hash_files
from ikirere.errors import UserError

PATH = "path:"
KEY = "data.evaluation_sets"
OPENERS = {".gz": gzip.open, ".bz2": bz2.open}
FORMS = (".parquet", ".csv", ".tsv", ".jsonl", ".json", ".txt")


def resolve(spec: str) -> str:
    """The registry's name of a set: `-` as `_`, and its first split where none is given. A `path:` stays as
    it is. Raises UserError, with the known names, for others."""
    if spec.startswith(PATH):
        return spec
    name = spec.strip().lower().replace("-", "_")
    if name in SETS:
        return name
    if ":" not in name:
        for known in SETS:
            if known.split(":")[0] == name:
                return known
    raise UserError(f"{KEY}: unknown set {spec!r}; known are {', '.join(SETS)}, and path:/a/file.jsonl#field")


def read_evaluation_set(spec: str, recipe_folder: Path = Path()) -> Iterator[Item]:
    """Items of a set in its own order. `spec`: a name of the registry, or `path:FILE#question[,answer]` with
    columns of a JSONL, JSON, CSV, TSV or Parquet file (`text` where none is named; of a .txt file every line
    is an item).

    Raises SetMissing where a known set is not to be had, UserError for an unknown name, or naming the file
    and row for what is no set of that kind.
    """
    name = resolve(spec)
    if name.startswith(PATH):
        path, _, columns = name.removeprefix(PATH).partition("#")
        question, _, answer = columns.partition(",")
        files, family, where = [expand(path, KEY, recipe_folder)], fields(question or "text", answer), path
        if not files[0].is_file():
            raise SetMissing(f"{KEY}: {spec}: {files[0]} is no file; mend the path")
        rows: Iterable[Row] = numbered(files)
    else:
        known = SETS[name]
        files, family = mirror_files(name), known.family
        where = f"{files[0].parent}" if files else known.hub
        rows = numbered(files) if files else hub_rows(name, known)
    last: Any = None

    def watched() -> Iterator[Row]:
        nonlocal last
        for row in rows:
            last = row
            yield row

    try:
        yield from family(watched())
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        row = f", row {last.get(NUMBER)} of {last.get(FILE)}" if isinstance(last, dict) else ""
        reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{KEY}: {spec}: {where}{row} is not in the form of this set ({reason})") from None


def mirror_files(name: str) -> list[Path]:
    """Files of a set below the mirror: those that the registry names, else files in the hub's form, which are
    all of `benchmarks/<name>/` whose name has the split in it. Empty where there are none."""
    root = mirror()
    if root is None:
        return []
    folder = root / "benchmarks"
    known = SETS[name]
    found = sorted(folder.glob(known.files)) if known.files else []
    if not found:
        short, split = name.split(":")
        for subfolder in (short, short.replace("_", "-")):
            found += (p for p in sorted((folder / subfolder).glob(f"**/*{split}*")) if ending(p) in FORMS)
    return [path for path in found if path.is_file()]


def content_fingerprint(spec: str, recipe_folder: Path = Path()) -> str:
    """Hash of the files of a set on this machine; '' where there are none."""
    name = resolve(spec)
    if name.startswith(PATH):
        path = expand(name.removeprefix(PATH).partition("#")[0], KEY, recipe_folder)
        return hash_files([(path, name)]) if path.is_file() else ""
    files = mirror_files(name)
    return hash_files((path, f"{name} {path.name}") for path in files) if files else ""


def fingerprint(spec: str, recipe_folder: Path = Path()) -> str:
    """Hash of what a set is read from; `missing` where it is not here and the hub cannot be asked."""
    if content := content_fingerprint(spec, recipe_folder):
        return content
    name = resolve(spec)
    hub = "" if name.startswith(PATH) else SETS[name].hub
    return hashlib.sha256(f"hub {name} {hub}".encode()).hexdigest() if hub and not hub_away() else "missing"


def numbered(files: Iterable[Path]) -> Iterator[Row]:
    number = 0
    for path in files:
        for row in file_rows(path):
            yield row | {NUMBER: number, FILE: path.name.split(".")[0]}
            number += 1


def file_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file by its ending, gzip and bzip2 undone; of text every line, as the column `text`.
    Raises UserError with file and row where it cannot be read."""
    if ending(path) == ".parquet":
        yield from read_documents(path)
        return
    opener = OPENERS.get(path.suffix, open)
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as handle:  # type: ignore[operator]
            for row in text_rows(handle, ending(path)):
                if not isinstance(row, dict):
                    raise ValueError("no JSON object")
                yield row
                number += 1
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise UserError(f"{KEY}: {path}, row {number + 1}: cannot be read ({error})") from None


def ending(path: Path) -> str:
    """The ending of the file's name, without that of its compression."""
    return path.with_suffix("").suffix if path.suffix in OPENERS else path.suffix


def text_rows(handle: IO[str], kind: str) -> Iterator[Any]:
    if kind in (".csv", ".tsv"):
        csv.field_size_limit(1 << 30)
        tab = kind == ".tsv"
        # Tab-separated sets do not quote: a quotation mark there is text.
        yield from csv.DictReader(
            handle, delimiter="\t" if tab else ",", quoting=csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL
        )
    elif kind == ".json":
        text = handle.read()
        try:
            value = json.loads(text)
        except ValueError:  # sets that are JSON lines by another name
            yield from map(json.loads, filter(str.strip, text.split("\n")))
        else:
            yield from value if isinstance(value, list) else [value]
    elif kind in (".jsonl", ".ndjson"):
        yield from map(json.loads, filter(str.strip, handle))
    else:
        yield from ({"text": line.rstrip("\r\n")} for line in handle)


def hub_rows(name: str, known: EvaluationSet) -> Iterator[Row]:
    """Rows of the hub's dataset, streamed. Raises SetMissing where that cannot be."""
    folder = mirror()
    here = (
        f"{folder}/benchmarks has no {known.files or name.split(':')[0]}"
        if folder
        else f"{VARIABLE} is not set"
    )
    if not known.hub:
        raise SetMissing(
            f"{KEY}: {name}: {here}, and no dataset of the hub is known for it; put the files there"
        )
    dataset, config, splits = [*known.hub.split(" "), "", ""][:3]
    why = hub_away()
    if not why and importlib.util.find_spec("datasets") is None:
        why = "the package `datasets` is not installed (`pip install ikirere[hub]`)"
    if not why:
        try:
            yield from _stream(dataset, config, (splits or name.split(":")[1]).split(","))
            return
        except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise SetMissing(f"{KEY}: {name}: {here}, and {dataset} cannot be had from the hub: {why}")


def _stream(dataset: str, config: str, splits: list[str]) -> Iterator[Row]:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets import load_dataset  # type: ignore[import-untyped]

    number = 0
    for split in splits:
        for row in load_dataset(
            dataset, None if config in ("", "default") else config, split=split, streaming=True
        ):
            yield dict(row) | {NUMBER: number, FILE: split}
            number += 1


@lru_cache(maxsize=1)
def hub_away() -> str:
    """Why the hub cannot be asked; '' where it may. Looked up once, for its client tries for half a minute
    per set."""
    if any(
        os.environ.get(v, "").lower() in ("1", "true", "yes", "on")
        for v in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    ):
        return "HF_HUB_OFFLINE is set"
    if any(os.environ.get(v) or os.environ.get(v.lower()) for v in ("HTTPS_PROXY", "ALL_PROXY")):
        return ""  # names are looked up by the proxy
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname or "huggingface.co"
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"no network ({host}: {error.strerror or error})"
    return ""
