"""Unigram (Kudo 2018) with byte fallback, trained by sentencepiece, saved as a tokenizer.json.

sentencepiece writes a space as U+2581 and so cannot distinguish the two. Here its pieces are written with real spaces,
line ends and tabs, and tokenizer.json holds no normaliser: U+2581 in a text is a character like any other, and each
character that is no piece is its UTF-8 bytes. Every text comes back.

Ids: the specials, then the 256 bytes, then the pieces, most likely first. Scores and the cut before encoding are such
that sentencepiece and `tokenizers` give the same ids to every text, and the spelling of a special token, or of a byte
(`<0x41>`), is text in both (sentencepiece_encoder.py explains how).

With `indent_transform` the trainer sees single lines without their indents, so no piece reaches over a line end.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ikirere.errors import UserError
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer.base import special_token
from ikirere.tokenizer.indent import IN, OUT, TABBED, own_lines
from ikirere.tokenizer.sentencepiece_encoder import (
    FIXED,
    chunk_length,
    chunk_pattern,
    fixed_score,
    likeliest,
    on_grid,
)
from ikirere.tokenizer.specials import SPECIALS
from ikirere.tokenizer.worker import learn_in_subprocess

COVERAGE = 0.99999  # share of the text's characters that get a piece of their own
ALPHABET_SHARE = 8  # at most this part of the vocabulary (one eighth) is single characters beyond ASCII
LONGEST = 32  # characters of the longest piece; runs of spaces reach that far
RUNS = tuple(" " * width for width in (2, 4, 8, 16, 32))  # always pieces, so that a run of any width is a few
# Candidates to begin with, for each piece that is wanted. sentencepiece's own million, for 4,096 ids on 8 MB of
# Python, took 1.5 times as long and compressed 0.5% less.
SEEDS_EACH, LEAST_SEEDS, MOST_SEEDS = 12, 60_000, 1_000_000
# Passes of EM between prunings. sentencepiece's two took 1.3 times as long, for 30,000 ids on 14 MB, and gave 4.176 bytes
# per token of held-out Python against 4.192.
PASSES = 1
THREADS = 2  # fixed: sums of floats depend on how many threads add them

_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_LINE, _TAB = (
    "\uf8f0",
    "\uf8f1",
)  # sentencepiece gives "\n" and "\t" a meaning of its own: stand-ins while training
# Read by sentencepiece as something else, or by indent.py; they become bytes.
_RESERVED = "\0\u2581\u2585" + _LINE + _TAB + IN + OUT + TABBED
SMALLEST = len(FIXED) + len(_ASCII) + 3  # with the space, line end and tab
_COUNTED = 1 << 22  # characters counted at once

Pieces = list[tuple[str, float]]


def check(config: Config, base: Path) -> None:
    """Raises UserError for what no text can be trained to."""
    if config.vocab_size <= SMALLEST:
        raise UserError(
            f"tokenizer.vocab_size: {config.vocab_size} is too small for Unigram with byte fallback; special tokens, "
            f"bytes and ASCII characters take {SMALLEST}; give more"
        )
    for text in config.preserve:
        if config.split_digits and len(text) > 1 and re.search(r"\d", text):
            raise UserError(
                f"tokenizer.preserve: {text!r} holds a digit, and tokenizer.split_digits keeps those alone"
            )
        if config.indent_transform and "\n" in text:
            raise UserError(
                f"tokenizer.preserve: {text!r} holds a line end, which is a token of its own with "
                "tokenizer.indent_transform; take it out"
            )


def define(
    texts: Iterable[str],
    config: Config,
    work: Path,
    base: Path,
    progress: Callable[[float], None] | None = None,
) -> str:
    """tokenizer.json of a Unigram vocabulary of exactly `config.vocab_size` ids. UserError where that cannot be."""
    check(config, base)
    wanted = config.vocab_size - len(FIXED)
    listen = _Rounds(wanted, progress) if progress else None
    learner = learn_lines if config.indent_transform else learn
    learnt: Pieces = learn_in_subprocess(learner, texts, wanted, config.split_digits, work, listen)
    if len(learnt) < wanted:
        raise UserError(
            f"tokenizer.vocab_size: {config.vocab_size} is more than this text supports; "
            f"the largest possible is {config.vocab_size - wanted + len(learnt)} (or raise tokenizer.train_bytes)"
        )
    return assemble(_keep_whole([(piece, on_grid(score)) for piece, score in learnt], config))


def learn(texts: Iterable[str], size: int, split_digits: bool) -> Pieces:
    """`size` pieces (fewer where the text has no more) with their log-probabilities, most likely first.

    texts are read twice.
    """
    return _learn(texts, texts, size, split_digits)


def learn_lines(texts: Iterable[str], size: int, split_digits: bool) -> Pieces:
    """`learn` from single lines without their indents, in the form that `indent.lay_out` gives them."""
    return _learn(texts, chain.from_iterable(map(own_lines, texts)), size, split_digits)


def _learn(texts: Iterable[str], sentences: Iterable[str], size: int, split_digits: bool) -> Pieces:
    import sentencepiece

    table = _alphabet(texts, size)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(sentence.translate(table) for sentence in sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=size + 257,  # its unknown piece and the bytes are counted there
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_by_unicode_script=False,
        split_digits=split_digits,
        byte_fallback=True,
        character_coverage=1.0,  # decided by _alphabet
        seed_sentencepiece_size=min(MOST_SEEDS, max(LEAST_SEEDS, SEEDS_EACH * size)),
        required_chars=_ASCII + _LINE + _TAB,
        max_sentence_length=1 << 30,
        max_sentencepiece_length=LONGEST,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_sub_iterations=PASSES,
        num_threads=THREADS,
        minloglevel=0,
    )
    read = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [
        (_readable(read.id_to_piece(i)), read.get_score(i))
        for i in range(read.vocab_size())
        if not (read.is_unknown(i) or read.is_byte(i) or read.is_unused(i) or read.is_control(i))
    ]
    pieces.sort(key=lambda pair: (-pair[1], pair[0]))
    return pieces


def assemble(pieces: Pieces) -> str:
    """tokenizer.json of the pieces, after specials and bytes. Scores are on the grid of sentencepiece_encoder.py."""
    lowest = fixed_score(pieces)
    backend = Backend(
        # `unk_id` has to name an id; byte fallback comes first, so it is never used.
        models.Unigram([*((name, lowest) for name in FIXED), *pieces], unk_id=0, byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(chunk_pattern(chunk_length(lowest))), "isolated")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([special_token(s) for s in SPECIALS])
    return backend.to_str(pretty=True)


def _alphabet(texts: Iterable[str], size: int) -> dict[int, str]:
    """A table for `str.translate`: stand-ins, and a space for what is left to the bytes.

    Characters are kept from the most frequent on until `COVERAGE` is reached or they fill their share of `size`.
    """
    counts = _count(texts)
    allowed = (1 - COVERAGE) * counts.sum()
    counts[[ord(c) for c in _ASCII + " \n\t"]] = 0
    found = np.flatnonzero(counts)
    order = found[np.argsort(counts[found], kind="stable")]  # the rarest first, by code point where equal
    uncovered = np.cumsum(counts[order])
    too_many = len(order) - np.arange(len(order)) > size // ALPHABET_SHARE
    reserved = np.isin(order, [*map(ord, _RESERVED)]) | ((order >= 0xD800) & (order < 0xE000))
    rare = order[reserved | too_many | (uncovered <= allowed)].tolist()
    return {ord("\n"): _LINE, ord("\t"): _TAB, **dict.fromkeys([*rare, *map(ord, _RESERVED)], " ")}


def _count(texts: Iterable[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How often each code point occurs, int64 [0x110000] by code point."""
    total = np.zeros(0x110000, np.int64)
    held: list[str] = []
    free = _COUNTED
    for text in chain(texts, [None]):
        if text is not None:
            held.append(text)
            free -= len(text)
        if free < 0 or text is None:
            codes = np.frombuffer("".join(held).encode("utf-32-le", "surrogatepass"), np.uint32)
            total += np.bincount(codes, minlength=len(total))
            held, free = [], _COUNTED
    return total


def _readable(piece: str) -> str:
    return piece.replace("\u2581", " ").replace(_LINE, "\n").replace(_TAB, "\t")


def _keep_whole(pieces: Pieces, config: Config) -> Pieces:
    """The same number of pieces, among them each of `config.preserve` and `RUNS`, likelier than its parts together.

    A missing one replaces the least likely piece of several characters.
    """
    scores = dict(pieces)
    runs = (
        RUNS if config.vocab_size > 2 * SMALLEST else ()
    )  # below, single characters are nearly all there is
    kept = sorted({*config.preserve, *runs}, key=lambda text: (len(text), text))  # a part before the whole
    for text in kept:
        if any(c not in scores for c in text):
            continue  # of bytes: no character of the corpus
        own = scores.pop(text, -math.inf)
        parts = likeliest(text, scores)
        scores[text] = own if own > parts else on_grid(parts + 0.1)
    spare = [p for p, _ in sorted(scores.items(), key=lambda pair: pair[1]) if len(p) > 1 and p not in kept]
    for piece in spare[: len(scores) - len(pieces)]:
        del scores[piece]
    if len(scores) > len(pieces):
        raise UserError(f"tokenizer.preserve: too many patterns for {config.vocab_size} ids")
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


class _Rounds:
    """Reads the share that is done out of sentencepiece's log: each round leaves three quarters of the pieces."""

    def __init__(self, size: int, progress: Callable[[float], None]) -> None:
        self._goal = 1.1 * size
        self._start = 0.0
        self._progress = progress

    def __call__(self, line: str) -> None:
        if found := re.search(rf"EM sub_iter={PASSES - 1} size=(\d+)", line):
            left = float(found[1])
            self._start = self._start or left / 0.75
            if self._start > self._goal:
                share = math.log(self._start / left) / math.log(self._start / self._goal)
                self._progress(min(1.0, max(0.0, share)))
