"""Make the tokenizer of a recipe: one function, one registry of kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from ikirere.errors import UserError
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer import bpe, pretrained, unigram
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.specials import SPECIALS


class Kind(Protocol):
    """A kind of tokenizer: a module with these functions."""

    def check(self, config: Config, base: Path) -> None:
        """Raises UserError, naming the key, for all that can be refused before there is text."""

    def define(
        self,
        texts: Iterable[str],
        config: Config,
        work: Path,
        base: Path,
        progress: Callable[[float], None] | None = None,
    ) -> str:
        """Texts and the recipe's section in, the text of a tokenizer.json out."""


KINDS: dict[str, Kind] = {"unigram": unigram, "bpe": bpe, "pretrained": pretrained}


def train_tokenizer(
    texts: Iterable[str],
    config: Config,
    folder: Path,
    seed: int,
    base: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tokenizer:
    """Trains (or adopts) the tokenizer and saves it in `folder`; nothing is left there where that fails.

    texts: what to train on, each a document (not read for kind `pretrained`).
    seed: both trainers are deterministic without one; the same texts in the same order give the same file.
    base: folder that a relative `tokenizer.pretrained` is resolved against. progress: gets the share done in [0, 1], where it is known.

    Raises UserError naming `tokenizer.vocab_size` and the largest possible where the text does not support it.
    """
    folder = Path(folder)
    definition = KINDS[config.kind].define(texts, config, folder.parent, base or Path(), progress)
    tokenizer = Tokenizer(definition)
    _check(tokenizer, config)
    tokenizer.save(folder)
    return tokenizer


def _check(tokenizer: Tokenizer, config: Config) -> None:
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size: {config.vocab_size} given, {config.pretrained or config.kind} with all special "
            f"tokens has {tokenizer.vocab_size} ids; give that (and model.vocab_size at least that)"
        )
    if config.kind != "pretrained" and [tokenizer.id(s) for s in SPECIALS] != list(range(len(SPECIALS))):
        raise UserError(f"tokenizer: special tokens are not at ids 0 to {len(SPECIALS) - 1}")
    if not tokenizer.special_ids.isdisjoint(tokenizer.encode("".join(SPECIALS))):
        raise UserError("tokenizer: text is encoded to special tokens; use another vocabulary")
