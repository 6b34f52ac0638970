"""Files that may be compressed, read as streams."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import tempfile
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

TRUNCATED, UNREADABLE = "truncated", "unreadable"
ENDINGS = (".gz", ".gzip", ".zst", ".zstd")
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

# What reading a damaged or unreachable file raises.
BREAKS = (OSError, EOFError, zlib.error, pa.ArrowException)


def open_bytes(path: Path) -> BufferedIOBase:
    """The file's bytes, decompressed where it is gzip or Zstandard. Told by its first bytes, since a browser may
    have decompressed a file and kept its name. Raises OSError; reading raises one of BREAKS."""
    file = path.open("rb")
    head = file.peek(4)[:4]
    if head.startswith(GZIP):
        file.close()
        return gzip.open(path, "rb")
    if head == ZSTD:
        stream: Any = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
        return io.BufferedReader(stream)
    return file


def why(error: BaseException) -> str:
    """`truncated` for a file that ends too early, `unreadable` for other damage."""
    return TRUNCATED if isinstance(error, EOFError) or "runcated" in str(error) else UNREADABLE


def ending(name: str) -> str:
    """The ending of a file's name without that of its compression, in lower case: `.jsonl` of `a.JSONL.gz`."""
    name = name.lower()
    for compression in ENDINGS:
        name = name.removesuffix(compression)
    return Path(name).suffix


def seekable(path: Path) -> BufferedIOBase:
    """The file's bytes where one can seek: a compressed file is decompressed to a temporary one. Raises BREAKS."""
    stream = open_bytes(path)
    if type(stream) is io.BufferedReader and stream.seekable():
        return stream
    with stream, contextlib.ExitStack() as undo:
        file = undo.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(stream, file, 1 << 20)
        undo.pop_all()
    file.seek(0)
    return cast(BufferedIOBase, file)
