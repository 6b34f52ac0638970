"""Other people's vocabularies, for measuring beside ours: never trained on, never shipped.

| given | what is read |
|---|---|
| a folder or a tokenizer.json | ours, or any of Hugging Face `tokenizers` |
| FILE.gguf | byte-level BPE with merges, cut by the pattern that `tokenizer.ggml.pre` names (`CUTS`) |
| tiktoken:NAME | an encoding of the package tiktoken, from its cache or the network |
| FILE.tiktoken, FILE.tiktoken:NAME | a file of ranks; NAME is the encoding whose cut it uses (`RANK_CUTS`) |
| rs_bpe:o200k, rs_bpe:cl100k | the encodings that the package rs_bpe carries |
| mistral:tekken | the newest Tekken that the package mistral-common carries |

Text is encoded as text everywhere: no spelling of a special token becomes that token, nothing is added before or after it.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from ikirere.common.files import file_sha256
from ikirere.errors import UserError
from ikirere.tokenizer import bpe
from ikirere.tokenizer.base import FILE, Tokenizer, byte_characters
from ikirere.tokenizer.gguf import read_gguf
from ikirere.tokenizer.package_vocabularies import PACKAGES
from ikirere.tokenizer.pretrained import from_ranks
from ikirere.tokenizer.specials import SPECIALS
from ikirere.tokenizer.vocabulary import Vocabulary, version_of

ACCEPTED = (
    "a folder or file with tokenizer.json, FILE.gguf, tiktoken:NAME, FILE.tiktoken, rs_bpe:o200k, rs_bpe:cl100k "
    "or mistral:tekken"
)
_RANKS = re.compile(r"(.+\.tiktoken)(?::([^:/]*))?")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def read_vocabulary(spec: str | Path, name: str | None = None) -> Vocabulary:
    """Reads the vocabulary that `spec` names (see above); `name` is its name in reports.

    Raises UserError, one line that names what to install or give.
    """
    text, name = str(spec), name or name_of(spec)
    kind, _, rest = text.partition(":")
    if kind in PACKAGES and rest:
        return PACKAGES[kind](rest, name)
    path = Path(text).expanduser()
    if found := _RANKS.fullmatch(text):
        return _ranks(Path(found[1]).expanduser(), found[2] or "", name)
    if path.suffix == ".gguf":
        return _gguf(path, name)
    # A folder, a stage's folder above it, and the run's above that.
    for file in (path, path / FILE, path / "tokenizer" / FILE, path / "tokenizer" / "tokenizer" / FILE):
        if file.is_file():
            return _tokenizer_json(file, name)
    raise UserError(f"{text}: no vocabulary there; give {ACCEPTED}")


def name_of(spec: str | Path) -> str:
    """The default name of a vocabulary in reports."""
    text = str(spec)
    if text.partition(":")[0] in PACKAGES:
        return text
    path = Path(found[1] if (found := _RANKS.fullmatch(text)) else text).expanduser()
    if path.suffix in (".gguf", ".tiktoken"):
        return path.stem.removeprefix("ggml-vocab-")
    folder = path.resolve() if path.name != FILE else path.resolve().parent
    while (
        folder.name == "tokenizer" and folder.parent.name
    ):  # no distinguishing name; the run's folder has one
        folder = folder.parent
    return folder.stem if folder.suffix == ".json" else folder.name or text


# ---------------------------------------------------------------- tokenizer.json


class OwnVocabulary:
    """A tokenizer of ours, encoded by `Tokenizer`."""

    def __init__(self, tokenizer: Tokenizer, name: str = "ours") -> None:
        self.name = name
        self.tokenizer = tokenizer
        encoder = tokenizer.encoder.split(" ")[0]
        self.library = f"ours, with {encoder} {version_of(encoder)}"
        self.sha256: str | None = tokenizer.sha256
        self.vocab_size = tokenizer.vocab_size
        self.unknown = tokenizer.unknown
        ordinary = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids]
        self.single_bytes = frozenset(i for i in ordinary if _length(tokenizer, i) == 1)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str | None:
        return self.tokenizer.decode(ids)

    def parity(self, text: str, ids: Sequence[int]) -> bool | None:
        if self.tokenizer.indent_transform:  # tokenizer.json does not describe it
            return self.tokenizer.parity(text)
        return self._record.encode(text, add_special_tokens=False).ids == list(ids)

    @cached_property
    def _record(self) -> tokenizers.Tokenizer:
        """The same tokenizer.json, as `tokenizers` reads it from a saved folder."""
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save(folder)
            backend = tokenizers.Tokenizer.from_file(str(Path(folder, FILE)))
        backend.encode_special_tokens = True
        return backend


def _length(tokenizer: Tokenizer, index: int) -> int:
    """Bytes of one id by itself; 0 for an id that no token has (an adopted vocabulary may have gaps)."""
    try:
        return len(tokenizer.decode_bytes((index,)))
    except UserError:
        return 0


class PublicVocabulary:
    """A vocabulary that Hugging Face `tokenizers` encodes."""

    def __init__(self, backend: tokenizers.Tokenizer, name: str, file: Path) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        tree = json.loads(backend.to_str())
        kinds = _types(tree.get("decoder"))
        vocabulary = backend.get_vocab(with_added_tokens=False)
        byte_level = byte_characters() if "ByteLevel" in kinds else None

        def one_byte(token: str) -> bool:
            if byte_level is not None:
                return token in byte_level
            if _BYTE.fullmatch(token):
                return "ByteFallback" in kinds
            # U+2581 is how sentencepiece writes a space.
            return len(token) == 1 and (token.isascii() or token == "\u2581")

        self.name = name
        self.library = f"tokenizers {tokenizers.__version__}"
        self.sha256: str | None = file_sha256(file)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.single_bytes = frozenset(i for token, i in vocabulary.items() if one_byte(token))
        self.unknown = _unknown(backend, tree["model"])
        self._backend = backend

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def parity(self, text: str, ids: Sequence[int]) -> bool | None:
        return None


def _unknown(backend: tokenizers.Tokenizer, model: Mapping[str, Any]) -> int | None:
    """The id for what cannot be spelled. With byte fallback it is named and never given."""
    index = model.get("unk_id")
    if index is None and model.get("unk_token") is not None:
        index = backend.token_to_id(model["unk_token"])
    return index


def _types(decoder: Mapping[str, Any] | None) -> set[str]:
    steps = (decoder or {}).get("decoders") or ([decoder] if decoder else [])
    return {str(step["type"]) for step in steps}


def _tokenizer_json(file: Path, name: str) -> Vocabulary:
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{file}: not a tokenizer.json ({error})") from None
    ours = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    return (
        OwnVocabulary(Tokenizer.load(file), name)
        if ours.issuperset(SPECIALS)
        else PublicVocabulary(backend, name, file)
    )


# ---------------------------------------------------------------- GGUF


def _gpt2() -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]


def _digits() -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Digits(individual_digits=True), *_gpt2()]


def _pattern(text: str) -> list[pre_tokenizers.PreTokenizer]:
    return [
        pre_tokenizers.Split(Regex(text), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


# How text is cut before merging, by its name in GGUF files; each as in the vocabulary's own tokenizer.json.
# Each was verified against llama.cpp's test texts; an unverified name is refused.
CUTS: dict[str, Callable[[], list[pre_tokenizers.PreTokenizer]]] = {
    "gpt-2": _gpt2,
    "mpt": _gpt2,
    "starcoder": _digits,
    "refact": _digits,
    "command-r": _digits,
    "llama-bpe": partial(_pattern, bpe.pattern(split_digits=False)),
    "qwen2": partial(_pattern, bpe.pattern(split_digits=True)),
}
WHOLE_WORDS = frozenset({"llama-bpe"})  # a word that is itself a token is that token, merges or not
_USER_DEFINED = 4


def _gguf(path: Path, name: str) -> Vocabulary:
    values = read_gguf(path)
    model, cut = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    tokens, merges = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.merges")
    if model != "gpt2" or not tokens or not merges:
        kind = f"the kind {model}" if model else "no vocabulary"
        raise UserError(
            f"{path}: holds {kind}; read here is byte-level BPE with merges (kind gpt2); "
            "give the tokenizer.json of this vocabulary instead"
        )
    if cut not in CUTS:
        raise UserError(
            f"{path}: tokenizer.ggml.pre is {cut or 'missing'}, so how text is cut is unknown; known are "
            f"{', '.join(CUTS)}; give the tokenizer.json of this vocabulary instead"
        )
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        backend = tokenizers.Tokenizer(
            models.BPE(
                vocab={token: i for i, token in enumerate(tokens)},
                merges=pairs,
                ignore_merges=cut in WHOLE_WORDS,
            )
        )
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path}: its merges do not fit its tokens ({error}); the file is damaged") from None
    backend.pre_tokenizer = pre_tokenizers.Sequence(CUTS[cut]())
    backend.decoder = decoders.ByteLevel()
    kinds = values.get("tokenizer.ggml.token_type") or []
    backend.add_tokens(
        [
            tokenizers.AddedToken(token, normalized=False)
            for i, (token, kind) in enumerate(zip(tokens, kinds))
            # Converters fill gaps with tokens of this spelling; no text means them.
            if kind == _USER_DEFINED and token != f"[PAD{i}]"
        ]
    )
    return PublicVocabulary(backend, name, path)


# ---------------------------------------------------------------- packages and files of ranks

# The cut of each encoding of tiktoken, by its name (tiktoken_ext/openai_public.py of that package).
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
RANK_CUTS: dict[str, str] = {
    "gpt2": _GPT2,
    "r50k_base": _GPT2,
    "p50k_base": _GPT2,
    "cl100k_base": bpe.pattern(split_digits=False),
    "o200k_base": "|".join(
        [
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        ]
    ),
}


def _ranks(file: Path, cut: str, name: str) -> Vocabulary:
    cut = cut or file.stem
    if cut not in RANK_CUTS:
        raise UserError(
            f"{file}: a file of ranks does not hold how text is cut; give {file}:NAME with one of "
            f"{', '.join(RANK_CUTS)}"
        )
    ranks: dict[bytes, int] = {}
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give a file of ranks") from None
    for i, line in enumerate(lines):
        try:
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise UserError(f"{file}:{i + 1}: not a token in base64 and its rank ({error})") from None
    definition = json.loads(from_ranks(ranks, RANK_CUTS[cut]))
    definition["added_tokens"] = []  # our special tokens, which this vocabulary does not have
    return PublicVocabulary(tokenizers.Tokenizer.from_str(json.dumps(definition)), name, file)
