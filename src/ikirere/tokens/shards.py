"""Token shards: documents encoded once, read through memory maps.

A folder of shards holds, for each domain and split, `<domain>-<split>.bin` (token ids, uint16 where the
vocabulary is below 65,536, else uint32, little endian; each document ends with <eos>) and
`<domain>-<split>.npz` (`offsets` int64 [n+1] in tokens, `n_bytes` int64 [n] of UTF-8 text, `ids` and `families` of
the documents, ASCII [n]), and one `manifest.json` with counts, the sha256 of every file and the seal of the splits.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np

from ikirere.common.arrays import save_arrays
from ikirere.common.files import atomic, file_sha256, write_json
from ikirere.corpus.document import read_documents
from ikirere.corpus.seal import Side, check_seal
from ikirere.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 2
ENCODE_BYTES = 2_000_000  # text handed to the tokenizer at once; bounds memory, keeps its threads busy


class ShardEntry(TypedDict):
    """One domain and split in the manifest; files: name -> sha256 of its .bin and .npz."""

    domain: str
    split: str
    documents: int
    tokens: int
    bytes: int
    dtype: str
    files: dict[str, str]


class ShardManifest(TypedDict):
    """manifest.json; tokenizer: `Tokenizer.sha256`; sha256: of all other entries."""

    format: int
    tokenizer: str
    vocab_size: int
    shards: list[ShardEntry]
    seal: dict[str, Any] | None
    sha256: str


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...


class Shard:
    """The documents of one domain and split. `data` is all their tokens back to back, [offsets[-1]]."""

    def __init__(
        self, data: np.ndarray, offsets: np.ndarray, n_bytes: np.ndarray, ids: np.ndarray | None = None
    ) -> None:
        self.data = data
        self.offsets = offsets
        self.n_bytes = n_bytes
        self._ids = ids

    @classmethod
    def from_documents(cls, documents: list[list[int]], n_bytes: list[int] | None = None) -> Shard:
        """A shard in memory, of documents that already end with <eos>."""
        lengths = [len(d) for d in documents]
        data = np.array([t for d in documents for t in d], dtype=np.uint32)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(data, offsets, np.array(n_bytes if n_bytes is not None else lengths, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.n_bytes)

    def tokens(self, i: int) -> np.ndarray:
        """Token ids of document i with its <eos>; a view of the map."""
        return self.data[self.offsets[i] : self.offsets[i + 1]]

    def id(self, i: int) -> str:
        """The content hash of document i; its index as text where the shard has no hashes."""
        return str(i) if self._ids is None else self._ids[i].decode()

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 [n]."""
        return np.diff(self.offsets)

    @property
    def total_tokens(self) -> int:
        """Tokens of all documents, <eos> included."""
        return int(self.offsets[-1])


class _Writer:
    """Appends to one shard; its files get their final names when `opened` ends without an error."""

    def __init__(self, folder: Path, stem: str, dtype: np.dtype, opened: ExitStack) -> None:
        self.bin, self.npz = folder / f"{stem}.bin", folder / f"{stem}.npz"
        self.dtype = dtype
        self.handle = opened.enter_context(atomic(self.bin, "wb"))
        self.digest = hashlib.sha256()
        self.lengths: list[int] = []
        self.n_bytes: list[int] = []
        self.ids: list[str] = []
        self.families: list[str] = []

    def add(self, ids: list[int], eos: int, n_bytes: int, identity: str, family: str) -> None:
        data = np.array([*ids, eos], dtype=self.dtype).tobytes()
        self.handle.write(data)
        self.digest.update(data)
        self.lengths.append(len(ids) + 1)
        self.n_bytes.append(n_bytes)
        self.ids.append(identity)
        self.families.append(family)

    def entry(self, domain: str, split: str) -> ShardEntry:
        """Writes the index of the finished shard; its entry of the manifest."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)]).astype(np.int64)
        save_arrays(
            self.npz,
            offsets=offsets,
            n_bytes=np.array(self.n_bytes, dtype=np.int64),
            ids=np.array(self.ids, dtype="S32"),
            families=np.array(self.families, dtype="S32"),
        )
        return {
            "domain": domain,
            "split": split,
            "documents": len(self.lengths),
            "tokens": int(offsets[-1]),
            "bytes": sum(self.n_bytes),
            "dtype": self.dtype.name,
            "files": {self.bin.name: self.digest.hexdigest(), self.npz.name: file_sha256(self.npz)},
        }


def _text_batches(parquet: Path) -> Iterator[list[dict[str, Any]]]:
    """Rows (id, text, domain, family) in groups of about ENCODE_BYTES of text."""
    rows: list[dict[str, Any]] = []
    size = 0
    for row in read_documents(parquet):
        rows.append(row)
        size += len(row["text"])
        if size >= ENCODE_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def write_shards(
    parquet: Mapping[str, Path],
    tokenizer: Encoder,
    folder: Path,
    advance: Callable[[int], None] = lambda amount: None,
    seal: Mapping[str, Any] | None = None,
) -> ShardManifest:
    """Encodes document files into shards, in the files' order.

    parquet: split name -> a Parquet file with the columns id, text, domain and, where there is one, family.
    seal: of these splits (`corpus.seal`), checked here and whenever the shards are opened.
    advance: called with the UTF-8 bytes just encoded.
    Returns the manifest, which is written last: a folder without it is not a folder of shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / MANIFEST, *(p for end in ("bin", "npz", "part") for p in folder.glob(f"*.{end}"))]:
        old.unlink(missing_ok=True)
    dtype = np.dtype("<u2" if tokenizer.vocab_size < 65536 else "<u4")
    shards: list[ShardEntry] = []
    for split, path in parquet.items():
        writers: dict[str, _Writer] = {}
        with ExitStack() as opened:
            for rows in _text_batches(path):
                for row, ids in zip(rows, tokenizer.encode_batch([r["text"] for r in rows]), strict=True):
                    domain, n_bytes = row["domain"], len(row["text"].encode())
                    if domain not in writers:
                        writers[domain] = _Writer(folder, f"{_file_stem(domain)}-{split}", dtype, opened)
                    writers[domain].add(
                        ids, tokenizer.eos, n_bytes, row["id"], row.get("family") or row["id"]
                    )
                    advance(n_bytes)
        shards += [writers[d].entry(d, split) for d in sorted(writers)]
    manifest: ShardManifest = {
        "format": FORMAT,
        "tokenizer": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "shards": shards,
        "seal": dict(seal) if seal is not None else None,
        "sha256": "",
    }
    if seal is not None:
        check_seal(seal, _sides(folder, shards), str(folder))
    manifest["sha256"] = _manifest_hash(manifest)
    write_json(folder / MANIFEST, manifest)
    return manifest


def _sides(folder: Path, entries: list[ShardEntry]) -> dict[str, Side]:
    """Ids and families of every split's documents."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for entry in entries:
        name = next(n for n in entry["files"] if n.endswith(".npz"))
        with np.load(folder / name) as index:
            found.setdefault(entry["split"], []).append((index["ids"], index["families"]))
    return {
        split: (np.concatenate([i for i, _ in parts]), np.concatenate([f for _, f in parts]))
        for split, parts in found.items()
    }


def _file_stem(domain: str) -> str:
    """A file name for any domain name; names that had to change carry a hash, so that none collide."""
    safe = re.sub(r"[^A-Za-z0-9._]", "_", domain)
    return safe if safe == domain else f"{safe}.{hashlib.sha256(domain.encode()).hexdigest()[:8]}"


def _manifest_hash(manifest: Mapping[str, Any]) -> str:
    # With ASCII escapes, unlike `common.files.json_sha256`: manifests on disk hold this hash, for domains of any name.
    body = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> ShardManifest:
    """The manifest of a folder of shards. Raises UserError where it is missing, altered or of another form."""
    path = folder / MANIFEST
    try:
        manifest: ShardManifest = json.loads(path.read_bytes())
        good = manifest["sha256"] == _manifest_hash(manifest)
    except FileNotFoundError:
        raise UserError(
            f"{path}: missing, so {folder} holds no finished shards; run the shards stage"
        ) from None
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise UserError(f"{path}: altered or damaged (its own hash does not fit); run the shards stage again")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{path}: format {manifest['format']}, this version reads {FORMAT}; run the shards stage again"
        )
    return manifest


def open_shards(
    folder: Path, verify: bool = True, tokenizer_sha256: str | None = None
) -> dict[tuple[str, str], Shard]:
    """Shards of a folder by (domain, split), memory-mapped.

    verify: hash every file (about 1 GB/s); without it only sizes are compared.
    tokenizer_sha256: where given, the tokenizer that the shards must have been made with.
    Raises UserError naming the file that is missing, altered or of another tokenizer, and where the seal between the
    splits is broken.
    """
    manifest = read_manifest(folder)
    if tokenizer_sha256 is not None and manifest["tokenizer"] != tokenizer_sha256:
        raise UserError(
            f"{folder / MANIFEST}: made with tokenizer {manifest['tokenizer'][:12]}, "
            f"asked for {tokenizer_sha256[:12]}; run the shards stage again"
        )
    shards = {}
    for entry in manifest["shards"]:
        for name, expected in entry["files"].items():
            _check(folder / name, expected if verify else None)
        bin_name, npz_name = sorted(entry["files"])
        dtype = np.dtype(entry["dtype"]).newbyteorder("<")
        if (folder / bin_name).stat().st_size != entry["tokens"] * dtype.itemsize:
            raise UserError(
                f"{folder / bin_name}: size does not fit the manifest; run the shards stage again"
            )
        data = np.memmap(folder / bin_name, dtype=dtype, mode="r")
        with np.load(folder / npz_name) as index:
            shards[entry["domain"], entry["split"]] = Shard(
                data.view(np.ndarray), index["offsets"], index["n_bytes"], index["ids"]
            )
    if (seal := manifest["seal"]) is not None:
        check_seal(seal, _sides(folder, manifest["shards"]), str(folder))
    return shards


def _check(path: Path, expected: str | None) -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing, though the manifest lists it; run the shards stage again")
    if expected is not None and file_sha256(path) != expected:
        raise UserError(f"{path}: altered since it was written (sha256 differs); run the shards stage again")
