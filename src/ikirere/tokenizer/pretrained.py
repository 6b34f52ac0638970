"""Adopt a vocabulary that somebody else trained: a folder, a tokenizer.json, a hub name, or `tiktoken:NAME`.

It keeps its own ids; the special tokens that it lacks are appended. Measure with such a vocabulary freely; whether it
may be shipped is a matter of its licence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer as Backend

from ikirere.errors import UserError
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer.base import FILE, Tokenizer, byte_characters, special_token
from ikirere.tokenizer.bpe import Merge, assemble
from ikirere.tokenizer.package_vocabularies import tiktoken_encoding
from ikirere.tokenizer.specials import SPECIALS

KEY = "tokenizer.pretrained"
TIKTOKEN = "tiktoken:"
# Text that a vocabulary for code and chat has to give back: indents, runs of spaces, no space put in front.
PROBES = ("a", " a", "a  b", "\n\n    x = 1\t# y\r\n", "é漢😀", "\x00\x7f", "12345", " ")


def check(config: Config, base: Path) -> None:
    """Raises UserError for a file on this machine that cannot be adopted; a name of the hub or of tiktoken is asked for
    when the stage runs."""
    name = config.pretrained or ""
    if (file := find_file(name, base)) is not None:
        _give_back(_adopt(file), name)


def define(
    texts: Iterable[str],
    config: Config,
    work: Path,
    base: Path,
    progress: Callable[[float], None] | None = None,
) -> str:
    """tokenizer.json of the adopted vocabulary. Raises UserError where it cannot be had, or loses text."""
    name = config.pretrained or ""
    definition = (
        _tiktoken(name.removeprefix(TIKTOKEN)) if name.startswith(TIKTOKEN) else _adopt(_find(name, base))
    )
    _give_back(definition, name)
    return definition


def _give_back(definition: str, name: str) -> None:
    """Raises UserError where the vocabulary loses text."""
    tokenizer = Tokenizer(definition, f"{KEY}: {name}")
    for probe in PROBES:
        if tokenizer.decode(tokenizer.encode(probe)) != probe:
            raise UserError(
                f"{KEY}: {name} does not give {probe!r} back; accepted: byte-level BPE, or byte fallback without a "
                "space put in front"
            )


def find_file(name: str, base: Path) -> Path | None:
    """The tokenizer.json at a path as it is or below the recipe's folder; None where no file is there."""
    for path in (Path(name).expanduser(), base / name):
        for file in (path, path / FILE):
            if file.is_file():
                return file
    return None


def _find(name: str, base: Path) -> Path:
    """The tokenizer.json: a file on this machine, or of the hub (or its cache)."""
    if (file := find_file(name, base)) is not None:
        return file
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(
            f"{KEY}: {name} is no file here, and the hub needs: pip install 'ikirere[hub]'"
        ) from None
    try:
        return Path(hf_hub_download(name, FILE))
    except Exception as error:  # offline, unknown, gated: many classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{KEY}: {name} is no folder or {FILE} here and could not be had from the hub ({reason}); "
            "give a path, or go online once so that it is cached"
        ) from None


def _adopt(file: Path) -> str:
    """The file's vocabulary without truncation and padding, with all special tokens."""
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{file}: not a tokenizer.json ({error})") from None
    backend.no_truncation()
    backend.no_padding()
    backend.add_special_tokens([special_token(s) for s in SPECIALS])
    return backend.to_str(pretty=True)


def _tiktoken(name: str) -> str:
    try:
        encoding = tiktoken_encoding(name)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from None
    return from_ranks(encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens)


def from_ranks(ranks: Mapping[bytes, int], cut: str, specials: Mapping[str, int] | None = None) -> str:
    """tokenizer.json of tiktoken's form: tokens as bytes with their ranks (which are the ids), pattern, own specials.

    The two parts that make a token are those that BPE leaves when only earlier merges are allowed. Ids between the
    ranks and the vocabulary's own special tokens that mean nothing are filled with special tokens `<|unused_ID|>`.
    """
    names = {byte: character for character, byte in byte_characters().items()}

    def spell(token: bytes) -> str:
        return "".join(names[byte] for byte in token)

    order = sorted(ranks, key=lambda token: ranks[token])
    if [ranks[token] for token in order] != list(range(len(order))):
        raise UserError(f"{KEY}: the ranks of this vocabulary have gaps, so its ids cannot be kept")
    merges: list[Merge] = []
    for token in order:
        if len(token) > 1:
            parts = _parts(ranks, token)
            if len(parts) == 2:
                merges.append((spell(parts[0]), spell(parts[1])))
    own = {index: content for content, index in (specials or {}).items()}
    last = [own.get(i, f"<|unused_{i}|>") for i in range(len(order), max(own, default=-1) + 1)]
    definition = assemble([spell(token) for token in order], merges, cut, last=last)
    # tiktoken gives a word that is itself a token that token's id, merges or not.
    tree = json.loads(definition)
    tree["model"]["ignore_merges"] = True
    return json.dumps(tree, ensure_ascii=False)


def _parts(ranks: Mapping[bytes, int], token: bytes) -> list[bytes]:
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [
            (rank, i)
            for i, (a, b) in enumerate(pairwise(parts))
            if (rank := ranks.get(a + b)) is not None and rank < limit
        ]
        if not found:
            break
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
