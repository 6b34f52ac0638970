"""One tokenizer class for every kind: `tokenizer.json`, read by Hugging Face `tokenizers`, is the encoder of record.

Three properties hold for every text (tested with random Unicode and with hostile text):
no encoded text holds a special id; decoding gives the text back; there is no unknown token.

Unigram vocabularies trained here are encoded by sentencepiece, with equal ids (sentencepiece_encoder.py; `parity`
compares a text). With `indent_transform` line ends and indents are tokens of their own (indent.py). tokenizer.json does
not describe that transform: its ids, and so those of transformers, are those of the unchanged text, and decode to it.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ikirere.common.files import write_text
from ikirere.errors import UserError
from ikirere.tokenizer.indent import MARKS, LineDecoder, lay_out
from ikirere.tokenizer.sentencepiece_encoder import FastEncoder, Ids, Unsuitable
from ikirere.tokenizer.specials import BOS, DEDENT, END, EOS, INDENT, NEWLINE, PAD, SPECIALS, TAB

FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
NO_LENGTH_LIMIT = int(1e30)  # what transformers writes where a tokenizer has no longest input

OWN_KEY, INDENT_KEY = "ikirere", "indent_transform"  # where tokenizer_config.json states that it is on

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_MARK = re.compile(f"([{''.join(MARKS)}])")


def read_template() -> str:
    """The chat template (Jinja), as it is saved with every tokenizer."""
    return resources.files(__package__).joinpath(TEMPLATE_FILE).read_text(encoding="utf-8")


def special_token(content: str) -> tokenizers.AddedToken:
    """A special token that matches its exact spelling only and takes no white space with it."""
    return tokenizers.AddedToken(content, special=True, normalized=False, lstrip=False, rstrip=False)


def byte_characters() -> dict[str, int]:
    """The printable stand-in of each byte in byte-level BPE (Radford et al. 2019, GPT-2) -> the byte."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in kept}
    for offset, byte in enumerate(byte for byte in range(256) if byte not in set(kept)):
        table[chr(256 + offset)] = byte
    return table


class Tokenizer:
    """Text to ids and back. Ids are Python ints in [0, vocab_size).

    Build one with `Tokenizer.load`, or from the text of a tokenizer.json. Raises UserError where the file is
    not a tokenizer.json or lacks a special token of `specials.SPECIALS`, or `indent_transform` is asked of a
    vocabulary with pieces that reach over a line end.
    """

    def __init__(self, definition: str, origin: str = FILE, indent_transform: bool = False) -> None:
        try:
            backend = tokenizers.Tokenizer.from_str(definition)
            self._definition: dict[str, Any] = json.loads(definition)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{origin}: not a tokenizer.json ({error})") from None
        # Off by default in `tokenizers`: with it, the spelling of a special token is ordinary text.
        backend.encode_special_tokens = True
        self._backend = backend
        self._text = definition
        self._not_fast = ""
        added = backend.get_added_tokens_decoder()
        self._ids_by_content = {token.content: index for index, token in added.items()}
        special = frozenset(i for i, token in added.items() if token.special)
        missing = [s for s in SPECIALS if self._ids_by_content.get(s) not in special]
        if missing:
            raise UserError(
                f"{origin}: lacks the special tokens {' '.join(missing)}; train or adopt it with Ikirere"
            )
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.kind: str = str(self._definition["model"].get("type", "")).lower()
        self.indent_transform = indent_transform
        # The hash identifies which ids a text gets, and the transform changes those.
        self.sha256: str = hashlib.sha256((definition + "\0" * indent_transform).encode()).hexdigest()
        self.pad, self.bos, self.eos, self.end = (self.id(s) for s in (PAD, BOS, EOS, END))
        fragile = sorted((token.content for token in added.values() if token.special), key=len, reverse=True)
        self._broken = re.compile("|".join(map(re.escape, fragile)))
        self.special_tokens: tuple[str, ...] = tuple(added[i].content for i in sorted(special))
        steps = {
            NEWLINE: LineDecoder.newline,
            INDENT: LineDecoder.indent,
            DEDENT: LineDecoder.dedent,
            TAB: LineDecoder.tab,
        }
        self._layout = {self.id(s): step for s, step in steps.items()} if indent_transform else {}
        self.special_ids: frozenset[int] = special - self._layout.keys()
        if indent_transform and any(len(t) > 1 and _MARK.search(t) for t in backend.get_vocab()):
            raise UserError(f"{origin}: indent_transform needs a vocabulary that was trained with it")

    # ------------------------------------------------------------ files

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads a folder that holds tokenizer.json, a stage's folder above it, or the file itself. Raises UserError where
        none is there or it cannot be read."""
        given = Path(path)
        for file in (given, given / FILE, given / "tokenizer" / FILE):
            if file.is_file():
                try:
                    return cls(file.read_text(encoding="utf-8"), str(file), has_indent_transform(file.parent))
                except (OSError, UnicodeDecodeError) as error:
                    raise UserError(f"{file}: cannot be read ({error})") from None
        raise UserError(f"{given}: no {FILE} there; give the folder that holds it, or the file")

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja, each whole or not at all."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        template = read_template()
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": END,  # what ends a generated turn; <eos> separates documents in pretraining
            "pad_token": PAD,
            "additional_special_tokens": [s for s in SPECIALS if s not in (BOS, END, PAD)],
            "chat_template": template,
            "model_max_length": NO_LENGTH_LIMIT,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
        }
        if self.indent_transform:
            config[OWN_KEY] = {INDENT_KEY: True}
        files = {
            FILE: self._text,
            CONFIG_FILE: json.dumps(config, indent=2, ensure_ascii=False) + "\n",
            TEMPLATE_FILE: template,
        }
        for name, content in files.items():
            write_text(target / name, content)

    # ------------------------------------------------------------ text to ids

    def encode(self, text: str) -> list[int]:
        """Ids of the text; none of them is special. Raises UserError for a lone surrogate (not Unicode text)."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` for many texts at once.

        By sentencepiece where `encoder` reports it, on one thread. With `indent_transform`, a text that holds one of the
        control characters U+000E to U+0010 is encoded by `tokenizers`, without the transform.
        """
        rows = list(texts)
        if self._fast is None:
            return self._by_tokenizers(rows)
        return [ids.tolist() for ids in self._by_sentencepiece(rows)]

    def encode_arrays(self, texts: Iterable[str]) -> list[Ids]:
        """`encode_batch` as arrays int32 [n], the form that sentencepiece returns."""
        rows = list(texts)
        if self._fast is None:
            return [np.array(ids, np.int32) for ids in self._by_tokenizers(rows)]
        return self._by_sentencepiece(rows)

    def parity(self, text: str) -> bool:
        """Whether the text gets the ids that it gets from tokenizer.json through `tokenizers` alone."""
        return self.encode(text) == self._by_tokenizers([text])[0]

    @property
    def encoder(self) -> str:
        """The library that encodes: `sentencepiece`, or `tokenizers` with the reason."""
        return "sentencepiece" if self._fast is not None else f"tokenizers ({self._not_fast})"

    @cached_property
    def _fast(self) -> FastEncoder | None:
        try:
            return FastEncoder(self._definition, self.indent_transform)
        except Unsuitable as error:
            self._not_fast = str(error)
            return None

    def _by_sentencepiece(self, rows: list[str]) -> list[Ids]:
        """`encode_arrays`; a text that sentencepiece does not spell to the last byte goes to `tokenizers`."""
        assert self._fast is not None
        if not all(isinstance(row, str) for row in rows):
            raise _not_text(rows)
        laid = list(map(lay_out, rows)) if self.indent_transform else rows
        made = self._fast.encode([text for text in laid if text is not None])
        try:
            encoded = [None if text is None else next(made) for text in laid]
        except UnicodeEncodeError:
            raise _not_text(rows) from None
        return [
            np.array(self._by_tokenizers([row])[0], np.int32) if ids is None else ids
            for row, ids in zip(rows, encoded)
        ]

    def _by_tokenizers(self, rows: list[str]) -> list[list[int]]:
        """`encode_batch` by `tokenizers` alone."""
        if not self.indent_transform:
            return self._backend_ids(rows)
        if not all(isinstance(row, str) for row in rows):
            raise _not_text(rows)
        encoded = []
        for row, text in zip(rows, map(lay_out, rows)):
            parts = [row] if text is None else _MARK.split(text)
            ids = self._backend_ids(parts[::2])
            marks = [[self.id(MARKS[mark])] for mark in parts[1::2]]
            encoded.append([i for pair in zip(ids, [*marks, []]) for part in pair for i in part])
        return encoded

    def _backend_ids(self, rows: list[str]) -> list[list[int]]:
        """Ids by `tokenizers` of each unchanged text."""
        try:
            encoded = [e.ids for e in self._backend.encode_batch_fast(rows, add_special_tokens=False)]
        except (UnicodeEncodeError, TypeError):
            raise _not_text(rows) from None
        for i, ids in enumerate(encoded):
            if not self.special_ids.isdisjoint(ids):
                encoded[i] = self._encode_cut(rows[i])
        return encoded

    def _encode_cut(self, text: str) -> list[int]:
        """Encodes with every special spelling cut after its first character.

        Tokenizers trained here never need it. An adopted vocabulary may hold a special's spelling as an ordinary piece.
        """
        cuts = [0, *(match.start() + 1 for match in self._broken.finditer(text)), len(text)]
        parts = [text[a:b] for a, b in pairwise(cuts) if b > a]
        if len(parts) < 2:
            raise UserError(
                f"this vocabulary encodes the text {text!r} to a special token; use another tokenizer"
            )
        return [i for ids in self._backend_ids(parts) for i in ids]

    def id(self, special: str) -> int:
        """Id of a special token by its spelling. Raises UserError for an unknown one."""
        try:
            return self._ids_by_content[special]
        except KeyError:
            raise UserError(
                f"no special token {special!r}; there are {' '.join(self._ids_by_content)}"
            ) from None

    @cached_property
    def unknown(self) -> int | None:
        """Id for what the vocabulary cannot spell; None where there is none, as in all that are trained here."""
        model = self._definition["model"]
        index = model.get("unk_id")
        if index is None and model.get("unk_token") is not None:
            index = self._backend.token_to_id(model["unk_token"])
        return None if index == self.pad else index

    # ------------------------------------------------------------ ids to text

    def decode_bytes(self, ids: Iterable[int], keep_special: bool = False) -> bytes:
        """The exact bytes; special tokens give none unless `keep_special`. Raises UserError for an id out of range.

        With `indent_transform`, line ends and indents are bytes again, and any other special token closes all blocks.
        """
        table = self._bytes if not keep_special else self._bytes_with_special
        try:
            if not self.indent_transform:
                return b"".join([table[i] for i in ids])
            lines = LineDecoder()
            return b"".join([self._line_bytes(lines, i, table) for i in ids]) + lines.end()
        except (KeyError, IndexError):
            raise UserError(f"an id is outside the vocabulary of {self.vocab_size}") from None

    def bytes_after(self, lines: LineDecoder | None, token: int) -> bytes:
        """The bytes that an id adds after those already fed to `lines`, which is fed this one too; b"" for special
        tokens. Raises UserError for an id out of range."""
        if lines is None:
            return self.decode_bytes((token,))
        try:
            return self._line_bytes(lines, token, self._bytes)
        except KeyError:
            raise UserError(f"an id is outside the vocabulary of {self.vocab_size}") from None

    def _line_bytes(self, lines: LineDecoder, token: int, table: dict[int, bytes]) -> bytes:
        """The bytes that this id completes: those held back before it, and its own."""
        if token in self._layout:
            return self._layout[token](lines)
        if token in self.special_ids:
            return lines.end() + table[token]
        return lines.text(table[token])

    def decode(self, ids: Iterable[int], keep_special: bool = False) -> str:
        """Text of the ids. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, keep_special).decode("utf-8", errors="replace")

    def stream_decoder(self, after: Iterable[int] = ()) -> StreamDecoder:
        """A decoder that is fed one id at a time, and gives the text that follows the ids `after`."""
        return StreamDecoder(self, after)

    @cached_property
    def _bytes_with_special(self) -> dict[int, bytes]:
        added = self._backend.get_added_tokens_decoder()
        to_bytes = _token_bytes(self._definition.get("decoder"))
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return {i: token.encode() if i in added else to_bytes(token) for token, i in vocabulary.items()}

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        return {i: b"" if i in self.special_ids else data for i, data in self._bytes_with_special.items()}


class StreamDecoder:
    """Ids to text one by one: a character split over tokens is held back until it is whole.

    With `indent_transform` the white space in front of a line's text is held back too. What `push` and `flush` give
    together is `decode` of the ids. after: ids whose text is already shown; they determine which blocks are open.
    """

    def __init__(self, tokenizer: Tokenizer, after: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._lines = LineDecoder() if tokenizer.indent_transform else None
        for token in after if self._lines is not None else ():
            self.push(token)
        if self._lines is not None:
            self._lines.drop()
            self._decoder.reset()

    def push(self, token: int) -> str:
        """Text that became complete with this id ('' for special tokens and unfinished characters)."""
        return self._decoder.decode(self._tokenizer.bytes_after(self._lines, token))

    def flush(self) -> str:
        """The text that is held back, U+FFFD for an unfinished character; resets the decoder."""
        rest = self._decoder.decode(self._lines.end() if self._lines is not None else b"", final=True)
        self._decoder.reset()
        return rest


def has_indent_transform(folder: Path) -> bool:
    """Whether a folder's tokenizer_config.json, if there is one, turns `indent_transform` on. Raises UserError where it is
    damaged."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return False
    try:
        own = json.loads(file.read_text(encoding="utf-8")).get(OWN_KEY, {})
        return bool(own.get(INDENT_KEY, False))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a tokenizer_config.json ({error})") from None


def _token_bytes(decoder: dict[str, Any] | None) -> Any:
    """How one vocabulary entry becomes bytes, by the decoder that tokenizer.json names."""
    steps = (decoder or {}).get("decoders") or ([decoder] if decoder else [])
    types = {step["type"] for step in steps}
    if "ByteLevel" in types:
        table = byte_characters()
        return lambda token: (
            bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()
        )
    replaced = [
        (step["pattern"]["String"], step["content"])
        for step in steps
        if step["type"] == "Replace" and "String" in step["pattern"]
    ]
    replaced += [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]

    def pieces(token: str) -> bytes:
        if "ByteFallback" in types and (match := _BYTE.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    return pieces


def _not_text(rows: Sequence[object]) -> UserError:
    for i, row in enumerate(rows):
        if not isinstance(row, str):
            return UserError(f"text {i} of the batch is {type(row).__name__}, not str")
        for index, character in enumerate(row):
            if "\ud800" <= character <= "\udfff":
                return UserError(
                    f"text {i} of the batch holds the lone surrogate U+{ord(character):04X} at character {index}, "
                    "which is not Unicode text; decode the source with errors='replace' first"
                )
    return UserError("the text cannot be encoded")
