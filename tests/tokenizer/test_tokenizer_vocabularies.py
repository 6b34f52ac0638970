"""Other people's vocabularies: GGUF, files of ranks, packages, any tokenizer.json."""

from __future__ import annotations

import base64
import json
import os
import struct
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from ikirere.errors import UserError
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer.base import Tokenizer, byte_characters
from ikirere.tokenizer.gguf import read_gguf
from ikirere.tokenizer.specials import SPECIALS
from ikirere.tokenizer.train import train_tokenizer
from ikirere.tokenizer.vocabularies import CUTS, OwnVocabulary, PublicVocabulary, name_of, read_vocabulary

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
TEXTS = [file.read_text(encoding="utf-8")[:6000] for file in sorted(LIBRARY.glob("[a-h]*.py"))[:30]]
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabularies") / "ours"
    train_tokenizer(TEXTS, Config(kind="bpe", vocab_size=700), folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def tree(ours: Path) -> dict[str, Any]:
    return json.loads((ours / "tokenizer.json").read_text(encoding="utf-8"))


# ---------------------------------------------------------------- GGUF

FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def packed(value: Any, kind: int) -> bytes:
    if kind == 8:
        data = value.encode()
        return struct.pack("<Q", len(data)) + data
    if kind == 9:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(packed(item, inner) for item in items)
    return struct.pack(f"<{FORMS[kind]}", value)


def gguf(pairs: list[tuple[str, int, Any]], version: int = 3) -> bytes:
    body = b"".join(
        packed(key, 8) + struct.pack("<I", kind) + packed(value, kind) for key, kind, value in pairs
    )
    return struct.pack("<4sIQQ", b"GGUF", version, 0, len(pairs)) + body


def vocabulary_file(path: Path, tree: dict[str, Any], **other: Any) -> Path:
    """The BPE vocabulary of a tokenizer.json of ours as GGUF, special tokens left out, so ids are 17 lower."""
    tokens = [
        t for t, i in sorted(tree["model"]["vocab"].items(), key=lambda pair: pair[1]) if i >= len(SPECIALS)
    ]
    values = {
        "model": (8, "gpt2"),
        "pre": (8, "qwen2"),  # the cut of our BPE with single digits
        "tokens": (9, (8, [*tokens, "[PAD683]", "  zz  ", "<end>"])),
        "merges": (9, (8, [" ".join(pair) for pair in tree["model"]["merges"]])),
        "token_type": (9, (5, [1] * len(tokens) + [4, 4, 3])),
        **other,
    }
    path.write_bytes(gguf([(f"tokenizer.ggml.{k}", *v) for k, v in values.items() if v is not None]))
    return path


def test_a_gguf_vocabulary_gives_the_same_ids(tmp_path: Path, ours: Path, tree: dict[str, Any]) -> None:
    found = read_vocabulary(vocabulary_file(tmp_path / "ggml-vocab-mine.gguf", tree))
    assert (found.name, found.vocab_size, found.unknown) == ("mine", 686, None)
    assert found.single_bytes == frozenset(range(256))
    expected = Tokenizer.load(ours)
    for text, ids in zip(TEXTS, found.encode_batch(TEXTS)):
        assert ids == [i - len(SPECIALS) for i in expected.encode(text)]
        assert found.decode(ids) == text
    # User-defined tokens are matched in text; control tokens and what fills gaps never are.
    assert found.encode_batch(["a  zz  b"])[0][1] == 684
    for text in ("[PAD683]", "<end>"):
        assert not {683, 685} & set(found.encode_batch([text])[0])


def test_a_word_that_is_a_token_needs_no_merges_where_the_vocabulary_says_so(tmp_path: Path) -> None:
    table = {byte: character for character, byte in byte_characters().items()}
    tree = {
        "model": {
            "vocab": {table[i]: i + 17 for i in range(256)} | {"whole": 273, "wh": 274},
            "merges": [["w", "h"]],
        }
    }
    for cut, count in (("llama-bpe", 1), ("qwen2", 4)):
        file = vocabulary_file(tmp_path / f"{cut}.gguf", tree, pre=(8, cut))
        assert len(read_vocabulary(file).encode_batch(["whole"])[0]) == count


@pytest.mark.parametrize(
    ("cut", "pieces"),
    [
        ("gpt-2", ["I", "'m", "Ġ2024", "ĊĠĠ", "Ġx", "+="]),
        ("starcoder", ["I", "'m", "Ġ", "2", "0", "2", "4", "ĊĠĠ", "Ġx", "+="]),
        ("qwen2", ["I", "'m", "Ġ", "2", "0", "2", "4", "Ċ", "ĠĠ", "Ġx", "+="]),
        ("llama-bpe", ["I", "'m", "Ġ", "202", "4", "Ċ", "ĠĠ", "Ġx", "+="]),
    ],
)
def test_cuts(cut: str, pieces: list[str]) -> None:
    cutter = pre_tokenizers.Sequence(CUTS[cut]())
    assert [piece for piece, _ in cutter.pre_tokenize_str("I'm 2024\n   x+=")] == pieces


@given(text=st.text(max_size=60), cut=st.sampled_from(sorted(CUTS)))
@settings(max_examples=50, deadline=None)
def test_cuts_lose_nothing(text: str, cut: str) -> None:
    table = byte_characters()
    pieces = [piece for piece, _ in pre_tokenizers.Sequence(CUTS[cut]()).pre_tokenize_str(text)]
    assert bytes(table[c] for c in "".join(pieces)).decode() == text


numbers = st.one_of(
    *(st.tuples(st.just(k), st.integers(0, 255)) for k in (0, 2, 4, 10)),
    *(st.tuples(st.just(k), st.integers(-128, 127)) for k in (1, 3, 5, 11)),
    st.tuples(st.just(12), st.floats(allow_nan=False)),
    st.tuples(st.just(7), st.booleans()),
)
strings = st.tuples(st.just(8), st.text(max_size=8))
lists = st.one_of(numbers, strings).flatmap(
    lambda first: st.integers(0, 4).map(lambda n: (9, (first[0], [first[1]] * n)))
)


@given(values=st.lists(st.one_of(numbers, strings, lists), max_size=6), version=st.sampled_from([2, 3]))
@settings(max_examples=50, deadline=None)
def test_what_a_gguf_head_holds_is_read(tmp_path_factory, values, version: int) -> None:
    file = tmp_path_factory.mktemp("gguf") / "f.gguf"
    file.write_bytes(gguf([(f"k{i}", kind, value) for i, (kind, value) in enumerate(values)], version))
    assert read_gguf(file) == {
        f"k{i}": value[1] if kind == 9 else value for i, (kind, value) in enumerate(values)
    }


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_damaged_gguf_files_are_refused_or_read(tmp_path_factory, data: st.DataObject) -> None:
    whole = gguf([("a", 8, "text"), ("b", 9, (8, ["x", "y"])), ("c", 9, (5, [1, 2, 3])), ("d", 4, 7)])
    file = tmp_path_factory.mktemp("gguf") / "f.gguf"
    cut = data.draw(st.integers(0, len(whole) - 1))
    file.write_bytes(whole[:cut])
    with pytest.raises(UserError, match=r"f\.gguf: not a whole GGUF file"):
        read_gguf(file)
    place = data.draw(st.integers(0, len(whole) - 1))
    file.write_bytes(whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :])
    try:
        read_gguf(file)
    except UserError as error:
        assert "not a whole GGUF file" in str(error)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model": (8, "llama")}, "holds the kind llama; .* give the tokenizer.json"),
        ({"model": None}, "holds no vocabulary"),
        ({"merges": None}, "holds the kind gpt2"),
        ({"pre": (8, "falcon")}, "tokenizer.ggml.pre is falcon, .* known are gpt-2, "),
        ({"pre": None}, "tokenizer.ggml.pre is missing"),
        ({"merges": (9, (8, ["q zzz"]))}, "merges do not fit"),
    ],
)
def test_other_gguf_files_are_refused_by_name(tmp_path: Path, tree, other, said: str) -> None:
    file = vocabulary_file(tmp_path / "f.gguf", tree, **other)
    with pytest.raises(UserError, match=rf"f\.gguf: .*{said}"):
        read_vocabulary(file)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    for name in ("f.gguf", "f.tiktoken:gpt2"):
        with pytest.raises(UserError, match="No such file"):
            read_vocabulary(tmp_path / name)
    with pytest.raises(UserError, match=r"no vocabulary there; give a folder or file with tokenizer\.json"):
        read_vocabulary(tmp_path / "nothing")


PUBLIC = os.environ.get("IKIRERE_VOCABULARIES", "")


@pytest.mark.skipif(
    not PUBLIC, reason="IKIRERE_VOCABULARIES (a folder with llama.cpp's ggml-vocab-*.gguf) is not set"
)
@pytest.mark.parametrize("name", ["gpt-2", "mpt", "starcoder", "refact", "command-r", "llama-bpe", "qwen2"])
def test_llama_cpps_own_examples(name: str) -> None:
    file = Path(PUBLIC, f"ggml-vocab-{name}.gguf")
    if not file.is_file():
        pytest.skip(f"{file.name} is not in IKIRERE_VOCABULARIES")
    texts = Path(f"{file}.inp").read_bytes().decode().split(SEPARATOR)
    lines = Path(f"{file}.out").read_text().splitlines()
    assert len(lines) == 46 and len(texts) - 1 == len(lines)  # a separator ends the last one too
    found = read_vocabulary(file)
    for text, line, ids in zip(texts, lines, found.encode_batch(texts)):
        assert ids == [int(i) for i in line.split()], text
        assert found.decode(ids) == text


# ---------------------------------------------------------------- tokenizer.json


def test_ours_and_others_are_told_apart(tmp_path: Path, ours: Path, tree: dict[str, Any]) -> None:
    Tokenizer.load(ours).save(tmp_path / "run" / "tokenizer" / "tokenizer")
    assert read_vocabulary(tmp_path / "run").name == "run"
    own = read_vocabulary(ours)
    assert isinstance(own, OwnVocabulary) and own.name == "ours" and own.vocab_size == 700
    assert own.single_bytes == frozenset(range(17, 273))
    assert own.sha256 == Tokenizer.load(ours).sha256
    ids = own.encode_batch([TEXTS[0]])[0]
    assert own.decode(ids) == TEXTS[0] and own.parity(TEXTS[0], ids)
    assert not own.parity(TEXTS[0], ids[:-1])
    other = dict(tree, added_tokens=[t for t in tree["added_tokens"] if t["content"] != "<nl>"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    public = read_vocabulary(tmp_path, "theirs")
    assert isinstance(public, PublicVocabulary) and public.name == "theirs"
    assert public.encode_batch([TEXTS[0]])[0] == ids
    assert public.parity(TEXTS[0], ids) is None
    assert public.decode(public.encode_batch(["<|end|> <pad>"])[0]) == "<|end|> <pad>"
    assert not {0, 16} & set(public.encode_batch(["<|end|> <pad>"])[0])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        read_vocabulary(tmp_path)


def test_unknown_words_and_bytes_of_other_kinds(tmp_path: Path) -> None:
    words = Backend(models.WordLevel({"[UNK]": 0, "a": 1, "é": 2, "<0x41>": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.enable_truncation(1)
    words.save(str(tmp_path / "words.json"))
    found = read_vocabulary(tmp_path / "words.json")
    assert found.name == "words" and found.unknown == 0
    assert found.single_bytes == {1}
    assert found.encode_batch(["a b a"]) == [[1, 0, 1]]
    pieces = [("<unk>", 0.0), ("\u2581", -1.0), ("b", -1.0), ("bb", -1.0), ("<0x41>", -1.0)]
    unigram = Backend(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    unigram.save(str(tmp_path / "u.json"))
    assert read_vocabulary(tmp_path / "u.json").single_bytes == {1, 2}
    tree = json.loads((tmp_path / "u.json").read_text())
    tree["decoder"] = {"type": "ByteFallback"}
    (tmp_path / "u.json").write_text(json.dumps(tree))
    assert read_vocabulary(tmp_path / "u.json").single_bytes == {1, 2, 4}


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("/x/ggml-vocab-llama-bpe.gguf", "llama-bpe"),
        ("/x/o200k_base.tiktoken", "o200k_base"),
        ("/x/mine.tiktoken:gpt2", "mine"),
        ("tiktoken:gpt2", "tiktoken:gpt2"),
        ("mistral:tekken", "mistral:tekken"),
        ("/runs/demo/tokenizer/tokenizer/tokenizer.json", "demo"),
        ("/runs/demo/tokenizer", "demo"),
        ("/runs/demo", "demo"),
        ("/x/words.json", "words"),
        ("/", "/"),
    ],
)
def test_names(spec: str, name: str) -> None:
    assert name_of(spec) == name


# ---------------------------------------------------------------- ranks and packages


def test_a_file_of_ranks_gives_the_same_ids(tmp_path: Path, ours: Path, tree: dict[str, Any]) -> None:
    table = byte_characters()
    ranks = {
        bytes(table[c] for c in token): i - 17
        for token, i in tree["model"]["vocab"].items()
        if i >= len(SPECIALS)
    }
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()]
    file = tmp_path / "mine.tiktoken"
    file.write_bytes(b"\n".join(lines) + b"\n")
    found = read_vocabulary(f"{file}:cl100k_base")
    assert (found.name, found.vocab_size) == ("mine", 683)
    assert found.single_bytes == frozenset(range(256))
    # Ours cuts digits one by one, this one in threes.
    same = ["".join(c for c in text if not c.isnumeric()) for text in TEXTS]
    prose = ["no digits here, and `::` with  spaces\n\tdone", *same]
    expected = Tokenizer.load(ours)
    for text, ids in zip(prose, found.encode_batch(prose)):
        assert ids == [i - len(SPECIALS) for i in expected.encode(text)]
        assert found.decode(ids) == text
    with pytest.raises(UserError, match=r"mine\.tiktoken: .* give .*:NAME with one of gpt2, "):
        read_vocabulary(file)
    file.write_bytes(b"IQ== 0\nno base64! 1\n")
    with pytest.raises(UserError, match=r"mine\.tiktoken:2: not a token"):
        read_vocabulary(f"{file}:gpt2")


@pytest.mark.parametrize(
    ("module", "spec", "package"),
    [
        ("tiktoken", "tiktoken:gpt2", "tiktoken"),
        ("rs_bpe", "rs_bpe:o200k", "rs_bpe"),
        ("mistral_common", "mistral:tekken", "mistral-common"),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, spec: str, package: str
) -> None:
    for loaded in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"^{spec} needs: pip install {package}$"):
        read_vocabulary(spec)


def test_an_encoding_that_is_not_cached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise ConnectionError("no network\nmore")

    fake = types.SimpleNamespace(get_encoding=offline)
    monkeypatch.setitem(sys.modules, "tiktoken", fake)
    with pytest.raises(UserError, match=r"not in tiktoken's cache .*\(no network\); set TIKTOKEN_CACHE_DIR"):
        read_vocabulary("tiktoken:gpt2")


@pytest.mark.parametrize(
    ("spec", "said"), [("rs_bpe:gpt9", "rs_bpe:cl100k"), ("mistral:v1", "mistral:tekken")]
)
def test_other_encodings_are_refused(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_vocabulary(spec)


@pytest.mark.parametrize(
    ("module", "spec", "size"),
    [("rs_bpe", "rs_bpe:o200k", 200_019), ("mistral_common", "mistral:tekken", 131_072)],
)
def test_packages_give_text_back(module: str, spec: str, size: int) -> None:
    pytest.importorskip(module)
    found = read_vocabulary(spec)
    assert found.vocab_size == size and len(found.single_bytes) == 256
    texts = [*TEXTS, "<|endoftext|></s>[INST] é漢😀 \t 12345"]
    for text, ids in zip(texts, found.encode_batch(texts)):
        assert found.decode(ids) == text and max(ids) < size
    whole = found.encode_batch(["\x00a\x7f"])[0]
    assert found.single_bytes.issuperset(whole)
