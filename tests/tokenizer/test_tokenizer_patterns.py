"""Spellings that code lives on: what of them a tokenizer keeps whole, where it cuts identifiers, and where it does not.

| | by itself | in text |
|---|---|---|
| each of `preserve` | one token, every kind | a pair may be cut where a neighbour is likelier: `= []` as ` [`, `]` |
| a pair between words (`a::b`) | | BPE: its own token, always. Unigram: in most places |
| `_` and other signs between letters | | BPE: a token never holds letters on both sides. Unigram: where training text did |
| a case border (`valueError`) | | cut where training text never had it; frequent names are one token, every kind |
| digits | one token each | never with anything else |
"""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.train import train_tokenizer

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
FILES = sorted(LIBRARY.glob("*.py"))
TRAINED_ON = [file.read_text(encoding="utf-8")[:5000] for file in FILES[::8]]
HELD_OUT = [text for file in FILES[2::4] if (text := file.read_text(encoding="utf-8")[:8000]).isascii()]
CPP = """#include <vector>
namespace app { class Widget; }
int main() {
    std::vector<std::string> names{};
    for (auto& n : names) { n.clear(); std::cout << n.size() << "\\n"; }
    int sizes[] = {1, 20};  next->value();
    return app::Widget::count();
}
"""
JS = """const parseHtmlDocument = async (url) => {
  const res = await fetch(url, {});
  const list = [];
  list.push(res?.body ?? null);
  return list.map(x => x.toString());
};
"""
PRESERVED = Config(kind="bpe", vocab_size=1).preserve
PAIRS = ("::", "()", "{}", "[]")
KINDS = ("bpe", "unigram")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("patterns")
    return {
        kind: train_tokenizer(TRAINED_ON, Config(kind=kind, vocab_size=1600), folder / kind, seed=0)
        for kind in KINDS
    }


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text of each token of ASCII text."""
    parts = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
    assert "".join(parts) == text
    return parts


def places(parts: list[str]) -> set[int]:
    """Where a token ends, in characters."""
    ends, done = set(), 0
    for part in parts:
        done += len(part)
        ends.add(done)
    return ends


def test_the_patterns_asked_for_are_there() -> None:
    assert {"_", ".", "::", "()", "{}", "[]", ";"} <= set(PRESERVED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", PRESERVED)
def test_each_pattern_is_one_token(trained: dict[str, Tokenizer], kind: str, pattern: str) -> None:
    ids = trained[kind].encode(pattern)
    assert len(ids) == 1 and trained[kind].decode(ids) == pattern


# ---------------------------------------------------------------- pairs

words = st.text(st.characters(categories=["Ll", "Lu"]), min_size=1, max_size=6)


@given(left=words, right=words, pair=st.sampled_from(PAIRS))
@settings(max_examples=50, deadline=None)
def test_bpe_a_pair_between_words_is_its_own_token(trained: dict[str, Tokenizer], left, right, pair) -> None:
    tokenizer = trained["bpe"]
    (alone,) = tokenizer.encode(pair)
    assert tokenizer.encode(left + pair + right) == [*tokenizer.encode(left), alone, *tokenizer.encode(right)]


@pytest.mark.parametrize("kind", KINDS)
def test_scopes_of_cpp_are_their_own_tokens(trained: dict[str, Tokenizer], kind: str) -> None:
    parts = tokens(trained[kind], CPP)
    assert parts.count("::") == CPP.count("::") == 5
    assert not [part for part in parts if ":" in part and part not in ("::", ":", " :", ": ", " : ")]


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_in_real_text_mostly_stay_together(trained: dict[str, Tokenizer], kind: str) -> None:
    cut = whole = 0
    for text in (*HELD_OUT, CPP, JS):
        ends = places(tokens(trained[kind], text))
        for pair in PAIRS:
            for found in re.finditer(re.escape(pair), text):
                cut += found.start() + 1 in ends
                whole += found.start() + 1 not in ends
    assert cut + whole > 200
    assert cut / (cut + whole) < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_semicolons_never_join_words(trained: dict[str, Tokenizer], kind: str) -> None:
    for text in (CPP, JS):
        found = [part for part in tokens(trained[kind], text) if ";" in part]
        assert sum(part.count(";") for part in found) == text.count(";")
        assert not [part for part in found if any(c.isalnum() for c in part)]


# ---------------------------------------------------------------- identifiers


def test_bpe_no_token_holds_letters_on_both_sides_of_a_sign(trained: dict[str, Tokenizer]) -> None:
    crossing = re.compile(r"[^\W\d_][\W_]+[^\W\d_]")
    pieces = [part for text in (*HELD_OUT, CPP, JS) for part in tokens(trained["bpe"], text)]
    assert len(pieces) > 10_000
    assert not [piece for piece in pieces if crossing.search(piece)]


@given(
    first=words,
    rest=st.lists(words, min_size=1, max_size=3),
    start=st.sampled_from(["", " ", "(", "\n", "self."]),
)
@settings(max_examples=50, deadline=None)
def test_bpe_snake_case_is_cut_before_each_underscore(
    trained: dict[str, Tokenizer], first, rest, start
) -> None:
    tokenizer = trained["bpe"]
    # The same wherever the identifier stands: each part from its underscore on has the same tokens.
    expected = [i for part in rest for i in tokenizer.encode(f"_{part}")]
    assert tokenizer.encode(start + "_".join([first, *rest]))[-len(expected) :] == expected


def test_unigram_crosses_underscores_only_as_training_text_did(trained: dict[str, Tokenizer]) -> None:
    seen = "\n".join(TRAINED_ON)
    pieces = {part for text in HELD_OUT for part in tokens(trained["unigram"], text)}
    crossing = {piece for piece in pieces if re.search(r"[^\W_]_+[^\W_]", piece)}
    assert crossing  # so names in frequent use are not cut there
    assert all(piece in seen for piece in crossing)
    assert "_" in tokens(trained["unigram"], "snake_case")


@pytest.mark.parametrize("kind", KINDS)
def test_case_borders_are_cut_unless_training_text_had_them(trained: dict[str, Tokenizer], kind: str) -> None:
    seen = "\n".join(TRAINED_ON)
    pieces = {part for text in HELD_OUT for part in tokens(trained[kind], text)}
    joined = {piece for piece in pieces if re.search("[a-z][A-Z]", piece)}
    assert joined and all(piece in seen for piece in joined)  # such as ValueError: not cut consistently
    name = "wrapZoneJumpQuota"
    borders = [i + 1 for i in range(len(name) - 1) if name[i].islower() and name[i + 1].isupper()]
    unseen = [place for place in borders if name[place - 1 : place + 1] not in seen]
    assert unseen
    assert set(unseen) <= places(tokens(trained[kind], name))


@pytest.mark.parametrize("kind", KINDS)
def test_digits_stand_alone(trained: dict[str, Tokenizer], kind: str) -> None:
    pieces = [part for text in (*HELD_OUT, CPP) for part in tokens(trained[kind], text)]
    assert not [piece for piece in pieces if len(piece) > 1 and any(c in "0123456789" for c in piece)]
    assert tokens(trained[kind], "x_1 = 2048")[-4:] == ["2", "0", "4", "8"]
