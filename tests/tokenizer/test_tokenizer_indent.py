"""Line ends and indents as tokens: reversible, with a meaning for every sequence of ids, unforgeable."""

from __future__ import annotations

import json
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ikirere.errors import UserError
from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer import indent, unigram
from ikirere.tokenizer.assistant_parser import parse_assistant
from ikirere.tokenizer.base import CONFIG_FILE, Tokenizer
from ikirere.tokenizer.chat_format import render
from ikirere.tokenizer.specials import SPECIALS

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
FILES = sorted(LIBRARY.glob("*.py"))
TEXTS = [file.read_text(encoding="utf-8")[:5000] for file in FILES[:30]]
CONFIG = Config(kind="unigram", vocab_size=900, indent_transform=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("lines")
    Tokenizer(unigram.define(TEXTS, CONFIG, folder, folder), indent_transform=True).save(folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def raw(tokenizer: Tokenizer) -> Tokenizer:
    """The same vocabulary without the transform."""
    return Tokenizer(tokenizer._text)


def spelled(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The ids with the layout's tokens by name."""
    table = tokenizer._bytes_with_special
    return b"".join(table[i] for i in ids).decode()


def ids_of(tokenizer: Tokenizer, *parts: str) -> list[int]:
    """Ids of special tokens by name, and of other texts as they stand."""
    plain = Tokenizer(tokenizer._text)
    return [i for part in parts for i in ([plain.id(part)] if part in SPECIALS else plain.encode(part))]


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(x):\n    if x:\n        return 1\n\n    return 2\n",
         "def f(x):<nl><indent>if x:<nl><indent>return 1<nl><nl><dedent>return 2<nl>"),
        ("a\n    b\n        c\nd", "a<nl><indent>b<nl><indent>c<nl><dedent><dedent>d"),
        ("if a:\n\tb\n\t\tc\nd:\n\te", "if a:<nl><tab><indent>b<nl><indent>c<nl><dedent><dedent>d:<nl><indent>e"),
        ("a:\n  b:\n    c\n    d", "a:<nl>  <indent>b:<nl><indent>c<nl>d"),
        ("  a\n  b\n    c", "  <indent>a<nl>b<nl><indent>c"),
        ("f(a,\n     b,\n     c)\nd", "f(a,<nl>     b,<nl>     c)<nl>d"),
        ("a\n    b(c,\n      d)\n    e", "a<nl><indent>b(c,<nl>  d)<nl>e"),
        ("a\n    b\n   \n    c\n  ", "a<nl><indent>b<nl>   <nl>c<nl>  "),
        ("a\n    b\n\tc\n    d", "a<nl><indent>b<nl><dedent><tab><indent>c<nl><dedent>    <indent>d"),
        ("a\r\n    b\r\n\r\n    c", "a\r<nl><indent>b\r<nl><dedent>\r<nl><indent>c"),
        ("\n\n x", "<nl><nl> x"),
        ("one line", "one line"),
        ("a  \n", "a  <nl>"),
        ("", ""),
    ],
)  # fmt: skip
def test_lines_are_written_as_documented(tokenizer: Tokenizer, text: str, expected: str) -> None:
    ids = tokenizer.encode(text)
    assert spelled(tokenizer, ids) == expected
    assert tokenizer.decode(ids) == text


def test_no_piece_reaches_over_a_line_end(tokenizer: Tokenizer, raw: Tokenizer) -> None:
    names = [name for name, _ in tokenizer._definition["model"]["vocab"]]
    assert [name for name in names if "\n" in name] == ["\n"]
    assert not [
        name for name in names if any(mark in name for mark in (indent.IN, indent.OUT, indent.TABBED))
    ]
    assert raw.encode("\n").count(names.index("\n")) == 1
    assert tokenizer.encode("\n") == [tokenizer.id("<nl>")]


def test_patterns_with_a_line_end_cannot_be_kept_whole(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"preserve": ("::", "a\nb"), "vocab_size": 500})
    with pytest.raises(UserError, match=r"tokenizer\.preserve: 'a\\nb' holds a line end"):
        unigram.define(TEXTS[:4], config, tmp_path, tmp_path)


def test_preserved_patterns_digits_and_runs_of_spaces(tokenizer: Tokenizer) -> None:
    for pattern in CONFIG.preserve:
        assert len(tokenizer.encode(pattern)) == 1, pattern
    assert len(tokenizer.encode("1234567890")) == 10
    for width in range(1, 33):
        assert len(tokenizer.encode(" " * width)) <= width.bit_count()


def test_a_prompt_is_cut_as_the_same_text_in_a_document(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        whole = tokenizer.encode(text)
        for cut in (len(text) // 3, len(text) // 2):
            begun = text[: text.index("\n", cut) + 1]
            ids = tokenizer.encode(begun)
            assert whole[: len(ids)] == ids


def test_indents_cost_less_than_without(tokenizer: Tokenizer, raw: Tokenizer) -> None:
    files = [file.read_text(encoding="utf-8") for file in FILES[40:60]]
    ours, theirs = (sum(map(len, t.encode_batch(files))) for t in (tokenizer, raw))
    assert ours < 0.98 * theirs


# ---------------------------------------------------------------- everything comes back

space = st.text(" \t", max_size=12)
code = st.builds(
    lambda a, b, c: a + b + c,
    st.one_of(space, st.integers(0, 9).map(lambda n: "    " * n), st.integers(0, 9).map(lambda n: "\t" * n)),
    st.one_of(
        st.just(""), st.sampled_from(["return x", "#", "\r", "漢字", "\x0b", "\u2028", "<nl>", "\u2581"])
    ),
    st.sampled_from(["\n", "\n", "\n", "\r\n", "\n\n", "", " \n"]),
)
own_marks = st.sampled_from([indent.IN, indent.OUT, indent.TABBED])
hostile = st.lists(
    st.one_of(code, code, code, st.sampled_from(SPECIALS), own_marks, st.text(max_size=9)), max_size=30
).map("".join)


@given(text=st.one_of(st.lists(code, max_size=40).map("".join), hostile))
@example("\n".join(" " * n + "x" for n in range(200)))
@example("\n".join("    " * n + "x" for n in [*range(90), *range(90, 0, -7)]))
@example("\n".join("\t" * (n % 70) + " " * (n % 3) + "x" for n in range(300)))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back_and_forges_nothing(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.special_ids.isdisjoint(ids)
    marked = any(mark in text for mark in (indent.IN, indent.OUT, indent.TABBED))
    assert ids.count(tokenizer.id("<nl>")) == (0 if marked else text.count("\n"))
    assert tokenizer.parity(text)


def test_real_files_come_back(tokenizer: Tokenizer) -> None:
    files = [file.read_text(encoding="utf-8") for file in FILES[30:60]]
    for text, ids in zip(files, tokenizer.encode_batch(files)):
        assert tokenizer.decode(ids) == text
        assert ids.count(tokenizer.id("<nl>")) == text.count("\n")


def test_a_text_that_would_not_come_back_is_left_as_it_is(
    tokenizer: Tokenizer, raw: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a\n    b\n"
    assert tokenizer.encode("\x0e\n    b") == raw.encode("\x0e\n    b")
    wrong = indent._Machine(lambda key, indent: ("\n" + indent[1:], key))
    monkeypatch.setattr(indent, "_forth", wrong)
    assert tokenizer.encode(text) == raw.encode(text)
    assert tokenizer.decode(raw.encode(text)) == text


def test_long_runs_take_linear_time(tokenizer: Tokenizer) -> None:
    for text in (" " * 400_000, "\n".join([" " * 200_000, "\t" * 200_000]), "\n" * 400_000):
        start = time.process_time()
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert time.process_time() - start < 5


def test_what_is_remembered_is_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indent, "_REMEMBERED", 5000)
    text = "\n".join(" " * (n * 7 % 101) + "x" for n in range(500))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert indent._forth._size < 6000


# ---------------------------------------------------------------- every sequence of ids means something


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_streaming_gives_the_same_text_for_any_ids(tokenizer: Tokenizer, data: st.DataObject) -> None:
    token = st.one_of(
        st.integers(3, 6),
        st.integers(0, 16),
        st.integers(0, tokenizer.vocab_size - 1),
        st.sampled_from([17 + byte for byte in b" \t\nx\xe2\x82\xac"]),
    )
    ids = data.draw(st.one_of(st.lists(token, max_size=40), hostile.map(tokenizer.encode)))
    stream = tokenizer.stream_decoder()
    assert "".join([stream.push(i) for i in ids]) + stream.flush() == tokenizer.decode(ids)
    again = [stream.push(i) for i in ids]
    assert "".join(again) + stream.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["a", "<nl>", "<indent>", "b", "<nl>", "c"], "a\n    b\n    c"),
        (["<dedent>", "a", "<nl>", "<dedent>", "b"], "a\nb"),  # no block to close
        (["a", "<indent>", "b", "<nl>", "c"], "ab\n    c"),  # in the middle of a line: for the next ones
        (["a", "<tab>", "b"], "a\tb"),
        (["  ", "<indent>", "a", "<nl>", "<indent>", "b"], "  a\n    b"),  # the unit is what stood before it
        (["<indent>", "a", "<nl>", " ", "<nl>", "b"], "    a\n \n    b"),  # a blank line has only its own
        (["<indent>", "a", "\n", "b", "<nl>", "c"], "    a\nb\n    c"),  # a line end that is text
        (["<indent>", "a", "\n", "  b\n", "c", "<nl>", " ", "d"], "    a\n  b\nc\n     d"),
        (["<indent>", "a", "<nl>", "<eos>", "b", "<nl>", "c"], "    a\nb\nc"),  # others close all blocks
        (["<nl>", "  ", "<|end|>", "x"], "\n  x"),
        (
            ["\t", "<indent>", "a", "<eos>", "<indent>", "b"],
            "\ta    b",
        ),  # and make the unit four spaces again
        (["<indent>", "  "], "  "),
        (["<indent>"] * 70 + ["a"] + ["<nl>"] + ["<dedent>"] * 63 + ["b"], " " * 256 + "a\n    b"),
        (["<nl>", "<nl>", "<nl>"], "\n\n\n"),
        ([" " * 9, "<indent>", "a", "<nl>", "b"], " " * 13 + "a\n    b"),  # too wide for a unit
        (["    ", "<dedent>", "a"], "    a"),
    ],
)
def test_ids_that_a_model_makes_up_have_a_meaning(tokenizer: Tokenizer, parts: list[str], text: str) -> None:
    assert tokenizer.decode(ids_of(tokenizer, *parts)) == text


def test_other_special_tokens_are_shown_and_layout_is_text(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "<|user|>", "a", "<nl>", "<indent>", "b", "<|end|>", "<|assistant|>", "c")
    assert tokenizer.decode(ids, keep_special=True) == "<|user|>a\n    b<|end|><|assistant|>c"
    assert tokenizer.decode(ids) == "a\n    bc"
    assert tokenizer.special_ids == {i for i, s in enumerate(SPECIALS) if i not in (3, 4, 5, 6)}
    assert tokenizer.special_tokens == SPECIALS
    with pytest.raises(UserError, match="outside the vocabulary of 900"):
        tokenizer.decode([900])
    with pytest.raises(UserError, match="outside the vocabulary of 900"):
        tokenizer.stream_decoder().push(900)


def test_texts_of_both_forms_stand_side_by_side(tokenizer: Tokenizer, raw: Tokenizer) -> None:
    eos = [tokenizer.eos]
    for first, second in ((tokenizer, raw), (raw, tokenizer)):
        ids = first.encode(TEXTS[0]) + eos + second.encode(TEXTS[1])
        assert tokenizer.decode(ids) == TEXTS[0] + TEXTS[1]


@pytest.mark.parametrize("cut", [4, 11, 15, 17, 23, 30])
def test_text_behind_a_prompt_knows_its_blocks(tokenizer: Tokenizer, cut: int) -> None:
    lines = "if a:\n    b\n    if c:\n        d\n    e\n"
    ids = tokenizer.encode(lines)
    stream = tokenizer.stream_decoder(after=ids[:cut])
    shown = tokenizer.decode(ids[:cut])
    assert shown + "".join([stream.push(i) for i in ids[cut:]]) + stream.flush() == lines
    open_end = tokenizer.encode("if a:\n  ")  # white space of a line that the prompt did not finish
    stream = tokenizer.stream_decoder(after=open_end)
    assert stream.push(tokenizer.encode("b")[0]) == "b"


# ---------------------------------------------------------------- files


def test_the_transform_is_saved_and_part_of_the_hash(
    tokenizer: Tokenizer, raw: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    config = json.loads((tmp_path / "tokenizer" / CONFIG_FILE).read_text())
    assert config["ikirere"] == {"indent_transform": True}
    for place in (tmp_path, tmp_path / "tokenizer", tmp_path / "tokenizer" / "tokenizer.json"):
        loaded = Tokenizer.load(place)
        assert loaded.indent_transform and loaded.sha256 == tokenizer.sha256 != raw.sha256
        assert loaded.encode(TEXTS[2]) == tokenizer.encode(TEXTS[2]) != raw.encode(TEXTS[2])
    raw.save(tmp_path / "raw")
    assert "ikirere" not in json.loads((tmp_path / "raw" / CONFIG_FILE).read_text())
    assert not Tokenizer.load(tmp_path / "raw").indent_transform
    (tmp_path / "raw" / CONFIG_FILE).write_text("[]")
    with pytest.raises(UserError, match=r"not a tokenizer_config\.json"):
        Tokenizer.load(tmp_path / "raw")


def test_transformers_loads_the_folder_and_gives_the_ids_as_they_stand(
    tokenizer: Tokenizer, raw: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXTS[4])["input_ids"] == raw.encode(TEXTS[4])
    assert tokenizer.decode(loaded(TEXTS[4])["input_ids"]) == TEXTS[4]
    one_line = "for x in y: pass  # é"
    assert loaded(one_line)["input_ids"] == tokenizer.encode(one_line)


# ---------------------------------------------------------------- conversations

content = st.lists(code, max_size=8).map("".join)


@given(content=content, reasoning=content.filter(bool), argument=content)
@settings(max_examples=60, deadline=None)
def test_conversations_come_back(tokenizer: Tokenizer, content: str, reasoning: str, argument: str) -> None:
    call = {"type": "function", "function": {"name": "run", "arguments": {"code": argument}}}
    message: dict[str, Any] = {
        "role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": [call],
    }  # fmt: skip
    rendered = render(tokenizer, [{"role": "user", "content": content}, message], [{"name": "run"}])
    written = [i for i, trained in zip(rendered.ids, rendered.mask) if trained]
    assert parse_assistant(tokenizer, written) == message
    shown = tokenizer.decode(rendered.ids, keep_special=True)
    assert shown.startswith(
        f"<|system|>Tools:\nrun()<|end|><|user|>{content}<|end|><|assistant|><scratchpad>{reasoning}"
    )
