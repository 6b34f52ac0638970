"""Encoding, decoding and saved files of both trained kinds."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.errors import UserError
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.specials import SPECIALS
from ikirere.tokenizer.train import train_tokenizer

STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
PRESERVED = Config(kind="bpe", vocab_size=1).preserve


def library_files(count: int, size: int = 6000) -> list[str]:
    """The first characters of standard library files; among them some with other scripts."""
    files = sorted(p for p in STANDARD_LIBRARY.rglob("*.py") if "site-packages" not in p.parts)
    texts = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8")[:size])
        except (OSError, UnicodeDecodeError):
            continue
        if len(texts) == count:
            break
    return texts


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    texts = library_files(50)
    folder = tmp_path_factory.mktemp("trained")
    return {
        kind: train_tokenizer(texts, Config(kind=kind, vocab_size=1200), folder / kind, seed=0)
        for kind in ("bpe", "unigram")
    }


@pytest.fixture(params=["bpe", "unigram"], scope="module")
def tokenizer(request: pytest.FixtureRequest, trained: dict[str, Tokenizer]) -> Tokenizer:
    return trained[request.param]


@pytest.fixture(scope="module")
def in_transformers(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


unicode = st.text(max_size=40)
odd = st.sampled_from(
    [
        "\u2581",
        "\u2585",
        "\uf8f0",
        "\uf8f1",
        "\0",
        " ",
        "    ",
        "\t",
        "\r\n",
        "\n\n",
        "<0x41>",
        "<0xE2>",
        "e\u0301",
        "漢字",
        "👩‍👩‍👧",
        "123",
    ]
)
special = st.sampled_from(SPECIALS)
cut_special = st.builds(lambda s, a, b: s[a : len(s) - b], special, st.integers(0, 3), st.integers(0, 3))
hostile = st.lists(st.one_of(unicode, odd, special, cut_special), max_size=12).map("".join)


@given(text=hostile)
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_and_forges_nothing(trained: dict[str, Tokenizer], text: str) -> None:
    for tokenizer in trained.values():
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.special_ids.isdisjoint(ids)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_streaming_gives_the_same_text(trained: dict[str, Tokenizer], data: st.DataObject) -> None:
    for tokenizer in trained.values():
        ids = data.draw(
            st.one_of(
                st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30),
                st.lists(st.integers(17, 272), max_size=30),  # bytes, mostly not UTF-8
                hostile.map(tokenizer.encode),
            )
        )
        stream = tokenizer.stream_decoder()
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


def test_a_character_split_over_tokens_is_held_back(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream_decoder()
    ids = tokenizer.encode("𐍈")
    assert len(ids) == 4
    assert [stream.push(i) for i in ids] == ["", "", "", "𐍈"]
    assert [stream.push(i) for i in ids[:2]] == ["", ""]
    assert stream.flush() == "\ufffd"
    assert stream.push(tokenizer.end) == ""


def test_specials_have_the_same_ids_everywhere(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id(s) for s in SPECIALS] == list(range(17))
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.end) == (0, 1, 2, 16)
    assert tokenizer.decode(range(17)) == ""
    assert tokenizer.decode(range(17), keep_special=True) == "".join(SPECIALS)
    with pytest.raises(UserError, match="<nothing>"):
        tokenizer.id("<nothing>")


def test_the_vocabulary_is_as_asked(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 1200
    assert tokenizer.unknown is None
    assert tokenizer.encode("") == []
    assert tokenizer.decode([17 + byte for byte in b"caf\xc3\xa9"]) == "café"
    for pattern in PRESERVED:
        assert len(tokenizer.encode(pattern)) == 1, pattern
    tokens = tokenizer._backend.get_vocab()
    assert not [t for t, i in tokens.items() if i > 272 and len(t) > 1 and any(c.isdigit() for c in t)]
    assert len(tokenizer.encode("1234567890")) == 10


def test_indentation_is_few_tokens(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("\n        return self")) <= 6


def test_lone_surrogates_and_other_types_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"U\+D800 at character 2"):
        tokenizer.encode("ab\ud800")
    with pytest.raises(UserError, match="text 1 of the batch is int"):
        tokenizer.encode_batch(["a", 1])  # type: ignore[list-item]
    with pytest.raises(UserError, match="outside the vocabulary of 1200"):
        tokenizer.decode([1200])


def test_bytes_that_are_not_text_become_replacements(tokenizer: Tokenizer) -> None:
    ids = [17 + 0xFF, 17 + ord("a"), 17 + 0xE2]
    assert tokenizer.decode_bytes(ids) == b"\xffa\xe2"
    assert tokenizer.decode(ids) == "\ufffda\ufffd"


# ---------------------------------------------------------------- files


def test_ids_are_equal_in_transformers_on_real_files(tokenizer: Tokenizer, in_transformers) -> None:
    files = library_files(400, 1500)
    assert len(files) == 400
    for text, ids in zip(files, tokenizer.encode_batch(files)):
        assert in_transformers(text, add_special_tokens=False)["input_ids"] == ids
        assert in_transformers.decode(ids) == text == tokenizer.decode(ids)


def test_ids_are_equal_in_transformers_on_any_text(tokenizer: Tokenizer, in_transformers) -> None:
    # transformers reads the spelling of a special token as the token; here it is text.
    benign = st.lists(st.one_of(unicode, odd), max_size=8).map("".join)

    @given(text=benign.filter(lambda text: not any(s in text for s in SPECIALS)))
    @settings(max_examples=60, deadline=None)
    def check(text: str) -> None:
        assert in_transformers(text)["input_ids"] == tokenizer.encode(text)
        assert in_transformers.decode(tokenizer.encode(text)) == text

    check()


@pytest.mark.parametrize("model_type", [None, "llama", "qwen3"])
def test_a_model_folder_loads_with_equal_ids(
    tokenizer: Tokenizer, tmp_path: Path, model_type: str | None
) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 1200}))
    text = "def f(x):\n    return x + 12  # ça  va\t☃\n"
    for loader in (AutoTokenizer, PreTrainedTokenizerFast):
        loaded = loader.from_pretrained(tmp_path)
        assert loaded(text)["input_ids"] == tokenizer.encode(text)
        assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 16)
        assert set(loaded.all_special_tokens) == set(SPECIALS)
        assert len(loaded) == 1200 and loaded.chat_template


def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    for place in (tmp_path, tmp_path / "tokenizer", tmp_path / "tokenizer" / "tokenizer.json"):
        assert Tokenizer.load(place).sha256 == tokenizer.sha256
    assert Tokenizer.load(tmp_path).kind == tokenizer.kind
    assert not list(tmp_path.rglob("*.part"))


def test_bad_files_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json there"):
        Tokenizer.load(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer\.json"):
        Tokenizer.load(tmp_path)
    tree = json.loads(tokenizer._text)
    tree["added_tokens"] = tree["added_tokens"][:16]
    file.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"lacks the special tokens <\|end\|>"):
        Tokenizer.load(tmp_path)
