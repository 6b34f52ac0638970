"""Unigram at the speed of sentencepiece, with the ids of tokenizer.json.

tokenizer.json is what is saved, and Hugging Face `tokenizers` reads it; its ids are the ones that count. For speed the
same pieces are put into a sentencepiece model in memory. Both programs look for the likeliest way to spell a text, by
the same rule (Viterbi from left to right; of two ways as likely the one found first stays), but one adds in float32 and
the other in float64, one knows special tokens and bytes as pieces and the other does not. What is assembled here is built
so that neither makes a difference:

- Scores are multiples of `GRID`, and the text is cut into chunks so short that the sum of any path is below 2^24 `GRID`
  and so exact in float32. Both programs cut by the same pattern (`chunk_pattern`), a pre-tokeniser of tokenizer.json.
- The spelling of a special token, or of a byte (`<0x41>`), has a score below that of its best spelling with other
  pieces, so it is on no best path: it is text like any other in both programs.
- That score is also the lowest, from which both programs take the score of an unknown character.

`FastEncoder` checks each of these on what it is given and refuses anything else (`Unsuitable`).

With `layout` the text comes from `indent.lay_out`: line ends and stand-ins are pieces that stand for the layout's tokens.
No other piece holds one, so every path goes through them, and where a chunk ends at one changes nothing.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ikirere.tokenizer.indent import MARKS, OPENING
from ikirere.tokenizer.specials import SPECIALS

GRID = 2.0**-7
EXACT = 100_000.0  # sums below it are exact (2^24 GRID is 131,072), and sentencepiece does not shift them
LONGEST_CHUNK = 2048  # characters
SPARE = 32  # characters that a chunk may hold beyond its length: the unit that a line declares
UNKNOWN_PENALTY = 10.0  # both programs: an unknown character is that much below the lowest score
FIXED = (
    *SPECIALS,
    *(f"<0x{byte:02X}>" for byte in range(256)),
)  # the first ids of every vocabulary trained here

Pieces = Sequence[tuple[str, float]]
Ids = NDArray[np.int32]

_NORMAL, _UNKNOWN, _BYTE = 1, 2, 6  # ModelProto.SentencePiece.Type
_UNIGRAM = 1  # TrainerSpec.ModelType


class Unsuitable(Exception):
    """Why a tokenizer.json is left to `tokenizers`."""


def on_grid(score: float) -> float:
    """The nearest score that can be added without rounding; below 0."""
    return min(round(score / GRID), -1) * GRID


def likeliest(text: str, scores: Mapping[str, float]) -> float:
    """Log-probability of the best way to spell the text with pieces."""
    best = [0.0] + [-math.inf] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(end):
            best[end] = max(best[end], best[start] + scores.get(text[start:end], -math.inf))
    return best[-1]


def fixed_score(pieces: Pieces) -> float:
    """The score of special tokens and bytes that keeps them out of every best path."""
    scores = dict(pieces)
    return min(min(scores.values()), *(likeliest(name, scores) for name in FIXED)) - 1.0


def chunk_length(lowest: float) -> int:
    """Characters of a chunk in which every sum of scores is exact, where `lowest` is the lowest score."""
    return min(LONGEST_CHUNK, int(EXACT / (UNKNOWN_PENALTY - lowest)) - SPARE - 1)


def chunk_pattern(length: int) -> str:
    """The cut before encoding: up to `length` characters that end a line, else `length` characters."""
    return rf"[\s\S]{{0,{length - 1}}}\n|[\s\S]{{1,{length}}}"


class FastEncoder:
    """Encodes with the ids of a tokenizer.json, one thread, about seven times as fast as `tokenizers`.

    definition: tokenizer.json, parsed. layout: texts come from `indent.lay_out`; ids of the layout's tokens go out.
    Raises Unsuitable where ids could differ from those of `tokenizers`.
    """

    def __init__(self, definition: Mapping[str, Any], layout: bool = False) -> None:
        try:
            import sentencepiece
        except ImportError:
            raise Unsuitable("sentencepiece is not installed") from None
        pieces, length = _checked(definition, layout)
        if layout:
            # A mark's own id, where there is one, is swapped with that of the token for which the mark stands.
            own = {name: i for i, (name, _) in enumerate(pieces) if name in MARKS}
            for mark, token in MARKS.items():
                index = FIXED.index(token)
                if mark in own:
                    pieces[own[mark]] = pieces[index]
                pieces[index] = mark, -GRID
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto(pieces))
        self._lengths = np.array([len(name.encode()) for name, _ in pieces])
        self._lengths[len(SPECIALS) : len(FIXED)] = 1
        self._numpy = hasattr(self._processor, "EncodeAsNumpy")  # from 0.2.3 on: no list in between
        cut = rf"(?s:.{{0,{length - 1}}}\n|.{{1,{length}}})"
        self._cut = re.compile(f"{OPENING}{cut}" if layout else cut).findall

    def encode(self, texts: Sequence[str]) -> Iterator[Ids | None]:
        """Ids of each text; None where they do not spell it to the last byte. UnicodeEncodeError: lone surrogate."""
        sizes = [len(text.encode()) for text in texts]
        cuts = [self._cut(text) for text in texts]
        chunks = list(chain.from_iterable(cuts))
        made = iter(
            self._many(chunks) if len(chunks) > 1 else map(self._one, chunks)
        )  # a batch starts a thread
        for size, cut in zip(sizes, cuts, strict=True):
            parts = [next(made) for _ in cut]
            ids = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int32), *parts])
            yield ids if self._lengths[ids].sum() == size else None

    def _one(self, chunk: str) -> Ids:
        if self._numpy:
            return self._processor.encode(chunk, return_type="numpy")  # type: ignore[no-any-return]
        return np.array(self._processor.encode(chunk), np.int32)

    def _many(self, chunks: list[str]) -> list[Ids]:
        if self._numpy:
            return self._processor.encode(chunks, return_type="numpy", num_threads=1)  # type: ignore[no-any-return]
        return [np.array(ids, np.int32) for ids in self._processor.encode(chunks, num_threads=1)]


# ---------------------------------------------------------------- what has to hold


def _checked(definition: Mapping[str, Any], layout: bool) -> tuple[list[tuple[str, float]], int]:
    """The pieces by id and the length of a chunk. Raises Unsuitable, with the reason."""
    model = definition["model"]
    if model.get("type") != "Unigram":
        raise Unsuitable(f"{model.get('type')} is encoded by tokenizers")
    if not model.get("byte_fallback") or model.get("unk_id") != 0 or definition.get("normalizer") is not None:
        raise Unsuitable("it has another form than the vocabularies trained here")
    pieces = [(name, score) for name, score in model["vocab"]]
    fixed, ordinary = pieces[: len(FIXED)], dict(pieces[len(FIXED) :])
    if tuple(name for name, _ in fixed) != FIXED or len(ordinary) != len(pieces) - len(FIXED) or not ordinary:
        raise Unsuitable("its ids do not begin with the special tokens and bytes")
    if not ordinary.keys().isdisjoint(FIXED) or "" in ordinary or any("\0" in name for name in ordinary):
        raise Unsuitable("it has pieces that sentencepiece cannot hold")
    if not all(score < 0 and (score / GRID).is_integer() for _, score in pieces):
        raise Unsuitable("its scores are not on the grid on which sums are exact")
    lowest = fixed[0][1]
    if any(score != lowest for _, score in fixed) or lowest > min(ordinary.values()):
        raise Unsuitable("special tokens and bytes have not the lowest score")
    if any(likeliest(name, ordinary) <= lowest for name in FIXED):
        raise Unsuitable("the spelling of a special token could be taken for the token")
    length = chunk_length(lowest)
    if definition.get("pre_tokenizer") != {
        "type": "Split",
        "pattern": {"Regex": chunk_pattern(length)},
        "behavior": "Isolated",
        "invert": False,
    }:
        raise Unsuitable("it does not cut text into chunks in which sums are exact")
    if layout and any(mark in name for name in ordinary for mark in MARKS if name != mark):
        raise Unsuitable("it has pieces that reach over a line end")
    return pieces, length


# ---------------------------------------------------------------- sentencepiece's file format (protocol buffers)


def model_proto(pieces: Pieces) -> bytes:
    """A serialised sentencepiece ModelProto of a unigram model that changes nothing about the text.

    Written by hand: the generated classes that sentencepiece brings ask for a certain release of protobuf.
    """
    rows = [
        _field(1, _field(1, name.encode()) + struct.pack("<Bf", 2 << 3 | 5, score) + _number(3, _type(i)))
        for i, (name, score) in enumerate(pieces)
    ]
    trainer = (
        _number(3, _UNIGRAM) + _number(35, 1) + _number(40, 0) + _field(45, pieces[0][0].encode())  # byte_fallback, unk
        + b"".join(_number(field, -1) for field in (41, 42, 43))  # no bos, eos, pad
    )  # fmt: skip
    # No dummy prefix, no white space removed, none written as U+2581.
    normalizer = _field(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 0)
    return b"".join(rows) + _field(2, trainer) + _field(3, normalizer)


def _type(index: int) -> int:
    return _UNKNOWN if index == 0 else _NORMAL if not len(SPECIALS) <= index < len(FIXED) else _BYTE


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value % 2**64)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
