"""Unigram (Kudo 2018) with byte fallback, trained by sentencepiece, encoded by Hugging Face `tokenizers`.

sentencepiece writes a space as U+2581 and so cannot tell the two apart. Here its pieces are written with real spaces,
line ends and tabs, and tokenizer.json holds no normaliser: U+2581 in a text is a character like any other, and each
character that is no piece is its UTF-8 bytes. Every text comes back.

Ids: the specials, then the 256 bytes, then the pieces, most likely first. `tokenizers` would match the spelling of a
special token, or of a byte (`<0x41>`), as a piece; the pre-tokeniser cuts each behind its `<`, so it never sees one.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ikirere.errors import UserError
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer.base import special_token
from ikirere.tokenizer.specials import SPECIALS
from ikirere.tokenizer.worker import learn_apart

COVERAGE = 0.99999  # share of the text's characters that get a piece of their own
ALPHABET_SHARE = 8  # at most this part of the vocabulary (one eighth) is single characters beyond ASCII
LONGEST = 32  # characters of the longest piece; runs of spaces reach that far
# Candidates to begin with, for each piece that is wanted. sentencepiece's own million, for 4,096 ids on 8 MB of
# Python, took 1.5 times as long and compressed 0.5% less.
SEEDS_EACH, LEAST_SEEDS, MOST_SEEDS = 12, 60_000, 1_000_000
THREADS = 2  # fixed: sums of floats depend on how many threads add them

_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_LINE, _TAB = (
    "\uf8f0",
    "\uf8f1",
)  # sentencepiece gives "\n" and "\t" a meaning of its own: stand-ins while training
_RESERVED = "\0\u2581\u2585" + _LINE + _TAB  # read by sentencepiece as something else; they become bytes
SMALLEST = len(SPECIALS) + 256 + len(_ASCII) + 3  # with the space, line end and tab
_BEHIND = "|".join([*(re.escape(s[1:]) for s in SPECIALS), "0x[0-9A-F]{2}>"])

Pieces = list[tuple[str, float]]


def define(
    texts: Iterable[str],
    config: Config,
    work: Path,
    base: Path,
    progress: Callable[[float], None] | None = None,
) -> str:
    """tokenizer.json of a Unigram vocabulary of exactly `config.vocab_size` ids. UserError where that cannot be."""
    if config.vocab_size <= SMALLEST:
        raise UserError(
            f"tokenizer.vocab_size: {config.vocab_size} is too small for Unigram with byte fallback; special tokens, "
            f"bytes and ASCII characters take {SMALLEST}; give more"
        )
    wanted = config.vocab_size - len(SPECIALS) - 256
    listen = _Rounds(wanted, progress) if progress else None
    learnt: Pieces = learn_apart("unigram", texts, wanted, config.split_digits, work, listen)
    if len(learnt) < wanted:
        raise UserError(
            f"tokenizer.vocab_size: {config.vocab_size} is more than this text supports; "
            f"the largest possible is {config.vocab_size - wanted + len(learnt)} (or raise tokenizer.train_bytes)"
        )
    return assemble(_keep_whole([(piece, score) for piece, score in learnt], config))


def learn(texts: Iterable[str], size: int, split_digits: bool) -> Pieces:
    """`size` pieces (fewer where the text has no more) with their log-probabilities, most likely first."""
    import sentencepiece

    rows = list(texts)
    table = _alphabet(rows, size)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(row.translate(table) for row in rows),
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
    """tokenizer.json of the pieces, behind specials and bytes."""
    fixed = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Backend(
        # `unk_id` has to name something; byte fallback stands before it, so it is never given.
        models.Unigram([*((name, 0.0) for name in fixed), *pieces], unk_id=0, byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(f"<(?={_BEHIND})"), "isolated")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([special_token(s) for s in SPECIALS])
    return backend.to_str(pretty=True)


def _alphabet(rows: Iterable[str], size: int) -> dict[int, str]:
    """A table for `str.translate`: stand-ins, and a space for what is left to the bytes.

    Characters are kept from the most frequent on until `COVERAGE` is reached or they fill their share of `size`.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row)
    missing = {c: n for c, n in counts.items() if not (c in _ASCII or c in " \n\t")}
    allowed = (1 - COVERAGE) * counts.total()
    rare, uncovered = [], 0
    for i, (character, count) in enumerate(sorted(missing.items(), key=lambda pair: (pair[1], pair[0]))):
        uncovered += count
        too_many = len(missing) - i > size // ALPHABET_SHARE
        if character in _RESERVED or too_many or uncovered <= allowed:
            rare.append(character)
    return {ord("\n"): _LINE, ord("\t"): _TAB, **{ord(c): " " for c in (*rare, *_RESERVED)}}


def _readable(piece: str) -> str:
    return piece.replace("\u2581", " ").replace(_LINE, "\n").replace(_TAB, "\t")


def _keep_whole(pieces: Pieces, config: Config) -> Pieces:
    """The same number of pieces, among them each of `config.preserve`, likelier than its parts together.

    A missing one takes the place of the least likely piece of several characters.
    """
    scores = dict(pieces)
    for text in config.preserve:
        if config.split_digits and len(text) > 1 and re.search(r"\d", text):
            raise UserError(
                f"tokenizer.preserve: {text!r} holds a digit, and tokenizer.split_digits keeps those alone"
            )
        if any(c not in scores for c in text):
            continue  # of bytes: no character of the corpus
        if (parts := _likeliest(text, {k: v for k, v in scores.items() if k != text})) >= scores.get(
            text, -math.inf
        ):
            scores[text] = parts + 0.1
    spare = [
        p
        for p, _ in sorted(scores.items(), key=lambda pair: pair[1])
        if len(p) > 1 and p not in config.preserve
    ]
    for piece in spare[: len(scores) - len(pieces)]:
        del scores[piece]
    if len(scores) > len(pieces):
        raise UserError(f"tokenizer.preserve: too many patterns for {config.vocab_size} ids")
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def _likeliest(text: str, scores: Mapping[str, float]) -> float:
    """Log-probability of the best way to spell the text with pieces."""
    best = [0.0] + [-math.inf] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(end):
            best[end] = max(best[end], best[start] + scores.get(text[start:end], -math.inf))
    return best[-1]


class _Rounds:
    """Reads the share that is done out of sentencepiece's log: each round leaves three quarters of the pieces."""

    def __init__(self, size: int, progress: Callable[[float], None]) -> None:
        self._goal = 1.1 * size
        self._start = 0.0
        self._progress = progress

    def __call__(self, line: str) -> None:
        if found := re.search(r"EM sub_iter=1 size=(\d+)", line):
            left = float(found[1])
            self._start = self._start or left / 0.75
            if self._start > self._goal:
                share = math.log(self._start / left) / math.log(self._start / self._goal)
                self._progress(min(1.0, max(0.0, share)))
