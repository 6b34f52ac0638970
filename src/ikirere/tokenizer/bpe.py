"""Byte-level BPE (Sennrich et al. 2016; bytes as in Radford et al. 2019), trained by Hugging Face `tokenizers`.

Ids: the specials, then the 256 bytes in order, then one id per merge. Nothing is normalised, so every text comes back.
Text is cut before merging by the pattern of GPT-4 (cl100k), with digits one by one where the recipe sets `split_digits`: a number
is then its digits, which a model can copy and compute. The pattern also cuts `<` and `>` from the letters between
them, so that no merge can spell a special token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from ikirere.errors import UserError
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer.base import byte_characters, special_token
from ikirere.tokenizer.specials import SPECIALS
from ikirere.tokenizer.worker import learn_in_subprocess

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SMALLEST = len(SPECIALS) + 256

Merge = tuple[str, str]


def check(config: Config, base: Path) -> None:
    """Raises UserError for what no text can be trained to."""
    if config.vocab_size <= SMALLEST:
        raise UserError(
            f"tokenizer.vocab_size: {config.vocab_size} is too small for byte-level BPE; "
            f"{len(SPECIALS)} special tokens and 256 bytes leave no merge; give more than {SMALLEST}"
        )
    _preserved(config)


def define(
    texts: Iterable[str],
    config: Config,
    work: Path,
    base: Path,
    progress: Callable[[float], None] | None = None,
) -> str:
    """tokenizer.json of a BPE vocabulary of exactly `config.vocab_size` ids. Raises UserError where that cannot be."""
    check(config, base)
    learnt = learn_in_subprocess(learn, texts, config.vocab_size - len(SPECIALS), config.split_digits, work)
    merges = [(left, right) for left, right in learnt]
    wanted = config.vocab_size - SMALLEST
    if len(_tokens(merges)) < wanted:
        raise UserError(
            f"tokenizer.vocab_size: {config.vocab_size} is more than this text supports; "
            f"the largest possible is {SMALLEST + len(_tokens(merges))} (or raise tokenizer.train_bytes)"
        )
    merges = _keep_whole(merges, wanted, config)
    ordinary = [*byte_characters_in_order(), *_tokens(merges)]
    return assemble(ordinary, merges, pattern(config.split_digits), first=SPECIALS)


def learn(texts: Iterable[str], size: int, split_digits: bool) -> list[Merge]:
    """Merges in order, from texts; `size` counts the 256 bytes and what the merges make."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = _pre_tokenizer(pattern(split_digits))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=sorted(byte_characters()),
    )
    backend.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def pattern(split_digits: bool) -> str:
    """The pattern that cuts text before merging."""
    return PATTERN.replace("{1,DIGITS}", "" if split_digits else "{1,3}")


def assemble(
    ordinary: Sequence[str],
    merges: Sequence[Merge],
    cut: str,
    first: Sequence[str] = (),
    last: Sequence[str] = (),
) -> str:
    """tokenizer.json of: special tokens `first`, `ordinary` tokens, special tokens `last`, and those still missing.

    cut: the pattern that cuts text before merging.
    """
    names = [*first, *ordinary]
    vocabulary = {name: i for i, name in enumerate(names)}
    if len(vocabulary) != len(names):
        raise UserError("tokenizer: a merge spells a special token")
    backend = Backend(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = _pre_tokenizer(cut)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([special_token(s) for s in dict.fromkeys((*first, *last, *SPECIALS))])
    return backend.to_str(pretty=True)


def byte_characters_in_order() -> list[str]:
    """The stand-ins of bytes 0 to 255."""
    return [c for c, _ in sorted(byte_characters().items(), key=lambda pair: pair[1])]


def _pre_tokenizer(cut: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(cut), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )


def _tokens(merges: Sequence[Merge]) -> list[str]:
    """The tokens that the merges make, each once, in order (two merges may make the same)."""
    return list(dict.fromkeys(left + right for left, right in merges))


def _keep_whole(merges: list[Merge], wanted: int, config: Config) -> list[Merge]:
    """`wanted` tokens' worth of merges after which each of `config.preserve` is one token.

    Missing merges replace the rarest learnt ones, which come last and on which no other depends.
    """
    patterns = _preserved(config)
    for learnt in range(wanted, 0, -1):
        allowed = set(_tokens(merges)[:learnt])
        kept = [merge for merge in merges if merge[0] + merge[1] in allowed]
        ranks = {merge: i for i, merge in enumerate(kept)}
        for text in patterns:
            parts = _merge(text, ranks)
            while len(parts) > 1:
                ranks[parts[0], parts[1]] = len(ranks)
                parts[:2] = [parts[0] + parts[1]]
        if len(_tokens(list(ranks))) == wanted:
            return list(ranks)
    raise UserError(f"tokenizer.preserve: {len(patterns)} patterns do not fit in {config.vocab_size} ids")


def _preserved(config: Config) -> list[str]:
    """`config.preserve` in byte characters. Raises UserError for a text that is cut before merging."""
    cut = _pre_tokenizer(pattern(config.split_digits))
    patterns = []
    for text in config.preserve:
        pieces = [piece for piece, _ in cut.pre_tokenize_str(text)]
        if len(pieces) != 1:
            raise UserError(
                f"tokenizer.preserve: {text!r} is cut before merging (digits, words and signs are separate), "
                "so it cannot be one token; take it out"
            )
        patterns.append(pieces[0])
    return patterns


def _merge(text: str, ranks: Mapping[Merge, int]) -> list[str]:
    """BPE of one short word: the earliest merge first."""
    parts = list(text)
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not found:
            return parts
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
