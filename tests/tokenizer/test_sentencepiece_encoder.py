"""sentencepiece in memory gives the ids of tokenizer.json, by construction; what it cannot hold is left alone."""

from __future__ import annotations

import json
import os
import random
import sys
import sysconfig
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from ikirere.errors import UserError
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer import unigram
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.sentencepiece_encoder import (
    EXACT,
    FIXED,
    GRID,
    SPARE,
    UNKNOWN_PENALTY,
    FastEncoder,
    Unsuitable,
    chunk_length,
    likeliest,
    on_grid,
)
from ikirere.tokenizer.specials import SPECIALS

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
MIRROR = os.environ.get("IKIRERE_DATA")
TEXTS = [file.read_text(encoding="utf-8")[:5000] for file in sorted(LIBRARY.glob("*.py"))[:36]]
MIXED = [*TEXTS, "漢字かな交じり文、Ελληνικά и кириллица. " * 60, "😀👩‍👩‍👧 naïve café\u2581\u2585 " * 40]


def train(folder: Path, size: int = 1200, **options: Any) -> Tokenizer:
    config = Config(kind="unigram", vocab_size=size, **options)
    definition = unigram.define(MIXED, config, folder, folder)
    return Tokenizer(definition, indent_transform=config.indent_transform)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {
        name: train(tmp_path_factory.mktemp(name), indent_transform=name == "lines")
        for name in ("plain", "lines")
    }


@pytest.fixture(params=["plain", "lines"])
def tokenizer(request: pytest.FixtureRequest, trained: dict[str, Tokenizer]) -> Tokenizer:
    return trained[request.param]


def test_sentencepiece_encodes_what_is_trained_here(tokenizer: Tokenizer) -> None:
    assert tokenizer.encoder == "sentencepiece"
    arrays = tokenizer.encode_arrays(TEXTS)
    assert all(ids.dtype == np.int32 for ids in arrays)
    assert [ids.tolist() for ids in arrays] == tokenizer.encode_batch(TEXTS)
    assert [tokenizer.encode(text) for text in TEXTS] == tokenizer.encode_batch(TEXTS)
    assert all(tokenizer.parity(text) for text in MIXED)
    assert tokenizer.encode_batch([]) == [] and tokenizer.encode_batch(["", "a", ""])[::2] == [[], []]


# ---------------------------------------------------------------- equal ids, whatever the text is

odd = st.sampled_from(
    ["\u2581", "\u2585", "\uf8f0", "\ufffd", "\ufeff", "\0", "\x0e", "\x0f\x10", "\x7f", "\r\n", "\u2028", " ", "\t",
     "<0x41>", "<0x0A>", "<0xFF>", "0xE2>", "e\u0301", "漢字", "👩‍👩‍👧", "\U0010ffff", "123", "<", ">"]
)  # fmt: skip
special = st.sampled_from(SPECIALS)
cut_special = st.builds(lambda s, a, b: s[a : len(s) - b], special, st.integers(0, 3), st.integers(0, 3))
many = st.builds(lambda text, count: text * count, st.one_of(odd, st.text(max_size=3)), st.integers(1, 3000))
line = st.builds(lambda a, b: a + b + "\n", st.text(" \t", max_size=9), st.sampled_from(TEXTS[3].split("\n")))
texts = st.lists(st.one_of(st.text(max_size=30), odd, special, cut_special, many, line), max_size=8).map(
    "".join
)


@given(text=texts)
@example("漢" * 5000)
@example("\U0001f600" * 3000 + "\n" + "a" * 5000)
@example(" " * 7000)
@example("\n" * 7000)
@example(" \n" * 3000)
@example("</tool_result>" * 900)
@example("    def f():\n" * 300 + "x" * 9000 + "\n\t" + "y " * 3000)
@settings(max_examples=120, deadline=None)
def test_any_text_gets_the_ids_of_the_record(trained: dict[str, Tokenizer], text: str) -> None:
    for tokenizer in trained.values():
        ids = tokenizer.encode(text)
        assert ids == tokenizer._by_tokenizers([text])[0]
        assert tokenizer.decode(ids) == text
        assert tokenizer.special_ids.isdisjoint(ids)


ALPHABET = "ab \n"
vocabularies = st.dictionaries(
    st.text(ALPHABET, min_size=2, max_size=5), st.integers(-40, -1).map(lambda n: n * GRID * 16), max_size=30
)


@given(pieces=vocabularies, seed=st.integers(0, 99), length=st.integers(1, 6000))
@settings(max_examples=60, deadline=None)
def test_of_ways_as_likely_both_take_the_same(pieces: dict[str, float], seed: int, length: int) -> None:
    # Few scores, many spellings: nearly every position has ties.
    single = {c: on_grid(-2.0 - (ord(c) % 3)) for c in map(chr, range(32, 127))}
    definition = unigram.assemble([*({**single, "\n": -2.0} | pieces).items()])
    text = "".join(random.Random(seed).choices(ALPHABET, k=length))
    (ids,) = FastEncoder(json.loads(definition)).encode([text])
    assert ids is not None
    assert ids.tolist() == Backend.from_str(definition).encode(text).ids


def test_many_documents_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    plain = Tokenizer(tokenizer._text)
    files = [file.read_text(encoding="utf-8")[:20_000] for file in sorted(LIBRARY.glob("*.py"))[60:80]]
    assert loaded(files, add_special_tokens=False)["input_ids"] == plain.encode_batch(files)


@pytest.mark.skipif(MIRROR is None, reason="IKIRERE_DATA names no mirror of corpora")
def test_real_documents_get_the_ids_of_the_record(tokenizer: Tokenizer) -> None:
    found = 0
    for file in sorted(Path(MIRROR or "", "corpus").glob("*/*.parquet")):
        for text in pq.read_table(file, columns=["text"])["text"].to_pylist():
            if zlib.crc32(text[:1000].encode()) % 150 == 0:
                assert tokenizer.parity(text[:20_000])
                found += 1
    assert found > 30


# ---------------------------------------------------------------- why they are equal


def test_sums_in_a_chunk_are_exact(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer._definition["model"]["vocab"]
    scores = [score for _, score in vocabulary]
    assert all(np.float32(score) == score and (score / GRID).is_integer() and score < 0 for score in scores)
    lowest = min(scores)
    worst = (chunk_length(lowest) + SPARE) * (lowest - UNKNOWN_PENALTY)
    assert worst >= -EXACT and EXACT / GRID < 2**24
    assert chunk_length(lowest) > 500
    ordinary = dict(vocabulary[len(FIXED) :])
    assert [name for name, _ in vocabulary[: len(FIXED)]] == list(FIXED)
    assert all(likeliest(name, ordinary) > lowest for name in FIXED)


def change(path: str, value: Any) -> Callable[[Any], None]:
    def apply(tree: Any) -> None:
        *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
        for step in steps:
            tree = tree[step]
        tree[last] = value

    return apply


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (change("model/type", "BPE"), "encoded by tokenizers"),
        (change("model/byte_fallback", False), "another form"),
        (change("model/unk_id", 1), "another form"),
        (change("normalizer", {"type": "NFC"}), "another form"),
        (change("pre_tokenizer", None), "chunks in which sums are exact"),
        (change("pre_tokenizer/behavior", "Removed"), "chunks in which sums are exact"),
        (change("pre_tokenizer/pattern/Regex", r"[\s\S]{1,4096}"), "chunks in which sums are exact"),
        (change("model/vocab/300/1", -3.001), "grid"),
        (change("model/vocab/300/1", 0.0), "grid"),
        (change("model/vocab/5/1", -1.0), "not the lowest"),
        (change("model/vocab/300/1", -5000.0), "not the lowest"),
        (change("model/vocab/300/0", "a\0b"), "cannot hold"),
        (change("model/vocab/300/0", "<pad>"), "cannot hold"),
        (change("model/vocab/4/0", "<other>"), "begin with the special tokens"),
        (
            lambda tree: [change(f"model/vocab/{i}/1", -20.0)(tree) for i in range(273)],
            "could be taken|lowest",
        ),
    ],
)
def test_what_could_differ_is_refused(
    trained: dict[str, Tokenizer], changed: Callable[[Any], None], reason: str
) -> None:
    tree = json.loads(trained["plain"]._text)
    FastEncoder(tree)
    changed(tree)
    with pytest.raises(Unsuitable, match=reason):
        FastEncoder(tree)


def test_pieces_over_line_ends_are_refused_with_the_transform(trained: dict[str, Tokenizer]) -> None:
    definition = trained["plain"]._text
    assert any("\n" in name and len(name) > 1 for name, _ in json.loads(definition)["model"]["vocab"])
    with pytest.raises(Unsuitable, match="over a line end"):
        FastEncoder(json.loads(definition), layout=True)
    with pytest.raises(UserError, match="indent_transform needs a vocabulary that was trained with it"):
        Tokenizer(definition, indent_transform=True)


# ---------------------------------------------------------------- where it is not used


def test_a_text_that_is_not_spelled_whole_goes_to_the_record(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokenizer.encode_batch(TEXTS[:3])
    fast = tokenizer._fast
    assert fast is not None
    whole = fast._one
    monkeypatch.setattr(fast, "_one", lambda chunk: whole(chunk)[1:])
    monkeypatch.setattr(fast, "_many", lambda chunks: [whole(chunk)[1:] for chunk in chunks])
    assert tokenizer.encode_batch(TEXTS[:3]) == expected
    assert tokenizer.encode("one line") == tokenizer._by_tokenizers(["one line"])[0]


def test_without_sentencepiece_ids_are_the_same(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    slow = Tokenizer(tokenizer._text, indent_transform=tokenizer.indent_transform)
    assert slow.encoder == "tokenizers (sentencepiece is not installed)"
    assert slow.encode_batch(TEXTS[:9]) == tokenizer.encode_batch(TEXTS[:9])
    assert [ids.tolist() for ids in slow.encode_arrays(TEXTS[:2])] == tokenizer.encode_batch(TEXTS[:2])


def test_an_older_sentencepiece_without_arrays_gives_the_same(tokenizer: Tokenizer) -> None:
    older = FastEncoder(tokenizer._definition, tokenizer.indent_transform)
    older._numpy = False
    made = [ids.tolist() for ids in older.encode(["a b", "x = 1  # é漢"]) if ids is not None]
    assert made == tokenizer.encode_batch(["a b", "x = 1  # é漢"])


def test_what_is_not_text_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        UserError, match=r"text 1 of the batch holds the lone surrogate U\+D800 at character 2"
    ):
        tokenizer.encode_batch(["a\n", "ab\ud800"])
    for encode in (tokenizer.encode_batch, tokenizer.encode_arrays):
        with pytest.raises(UserError, match="text 1 of the batch is bytes, not str"):
            encode(["a", b"b"])  # type: ignore[list-item]


def test_other_kinds_say_who_encodes(tmp_path: Path) -> None:
    from ikirere.tokenizer.train import train_tokenizer

    bpe = train_tokenizer(TEXTS[:10], Config(kind="bpe", vocab_size=400), tmp_path / "bpe", seed=0)
    assert bpe.encoder == "tokenizers (BPE is encoded by tokenizers)"
    assert bpe.parity(TEXTS[0])
