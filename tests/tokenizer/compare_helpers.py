"""What the tests of comparisons share: texts of the standard library, and tokenizers of two sizes."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer.comparison import Document
from ikirere.tokenizer.train import train_tokenizer

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
FILES = sorted(LIBRARY.glob("*.py"))
TEXTS = [file.read_text(encoding="utf-8")[:6000] for file in FILES[:30]]
DOCUMENTS = [Document(file.name, "code", file.read_text(encoding="utf-8")[:4000]) for file in FILES[30:54]]


def two_sizes(folder: Path) -> Path:
    for name, size in (("small", 500), ("large", 900)):
        train_tokenizer(TEXTS, Config(kind="bpe", vocab_size=size), folder / name, seed=0)
    return folder
