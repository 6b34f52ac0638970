"""Vocabularies that packages carry or fetch, for measuring beside ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

from ikirere.errors import UserError
from ikirere.tokenizer.vocabulary import Vocabulary, version_of


class PackageVocabulary:
    """A vocabulary that a package encodes, one text at a time."""

    def __init__(
        self,
        name: str,
        package: str,
        vocab_size: int,
        single_bytes: Iterable[int],
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str | None],
    ) -> None:
        self.name = name
        self.library = f"{package} {version_of(package)}"
        self.sha256: str | None = None
        self.vocab_size = vocab_size
        self.single_bytes = frozenset(single_bytes)
        self.unknown: int | None = None  # byte-level BPE spells everything
        self._encode, self._decode = encode, decode

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str | None:
        return self._decode(list(ids))

    def parity(self, text: str, ids: Sequence[int]) -> bool | None:
        return None


def tiktoken_encoding(encoding: str) -> Any:
    """An encoding of tiktoken, from its cache or the network. Raises UserError where neither has it."""
    try:
        import tiktoken
    except ImportError:
        raise UserError(f"tiktoken:{encoding} needs: pip install tiktoken") from None
    try:
        return tiktoken.get_encoding(encoding)
    except Exception as error:  # unknown name, or no network and no cache
        reason = shorten((str(error).strip() or type(error).__name__).splitlines()[0], 100)
        raise UserError(
            f"tiktoken:{encoding} is not in tiktoken's cache and could not be had ({reason}); "
            "set TIKTOKEN_CACHE_DIR to a folder that holds it, or go online once"
        ) from None


def _tiktoken(encoding: str, name: str) -> Vocabulary:
    found = tiktoken_encoding(encoding)
    bytes_of = found._mergeable_ranks
    single = [i for token, i in bytes_of.items() if len(token) == 1]
    return PackageVocabulary(name, "tiktoken", found.n_vocab, single, found.encode_ordinary, found.decode)


def _rs_bpe(encoding: str, name: str) -> Vocabulary:
    # All ids, special tokens included, as OpenAI publishes them; the package does not report them.
    sizes = {"o200k": 200_019, "cl100k": 100_277}
    if encoding not in sizes:
        raise UserError(f"rs_bpe:{encoding}: there are {' and '.join(f'rs_bpe:{n}' for n in sizes)}")
    try:
        from rs_bpe.bpe import openai
    except ImportError:
        raise UserError(f"rs_bpe:{encoding} needs: pip install rs_bpe") from None
    found = openai.o200k_base() if encoding == "o200k" else openai.cl100k_base()
    # The first 256 ranks of both are the bytes.
    return PackageVocabulary(name, "rs_bpe", sizes[encoding], range(256), found.encode, found.decode)


def _mistral(encoding: str, name: str) -> Vocabulary:
    if encoding != "tekken":
        raise UserError(f"mistral:{encoding}: there is mistral:tekken")
    try:
        import mistral_common
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    except ImportError:
        raise UserError("mistral:tekken needs: pip install mistral-common") from None
    files = sorted(Path(str(mistral_common.__file__)).parent.glob("data/tekken_*.json"))
    if not files:
        raise UserError(
            f"mistral:tekken: mistral-common {version_of('mistral-common')} carries no tekken_*.json; "
            "pip install another version"
        )
    found = Tekkenizer.from_file(files[-1])
    shift = found.num_special_tokens
    return PackageVocabulary(
        name,
        "mistral-common",
        found.n_words,
        range(shift, shift + 256),  # the first 256 ranks are the bytes
        partial(found.encode, bos=False, eos=False),
        partial(found.decode, special_token_policy=SpecialTokenPolicy.IGNORE),
    )


PACKAGES: dict[str, Callable[[str, str], Vocabulary]] = {
    "tiktoken": _tiktoken,
    "rs_bpe": _rs_bpe,
    "mistral": _mistral,
}
