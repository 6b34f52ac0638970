"""An assistant's ids read back: id by id and whole, readable calls and all others."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.recipe.sections import Tokenizer as Config
from ikirere.tokenizer.assistant_parser import AssistantParser, Delta, parse_assistant
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.specials import SPECIALS
from ikirere.tokenizer.train import train_tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [file.read_text(encoding="utf-8")[:6000] for file in sorted(library.glob("[a-d]*.py"))[:20]]
    folder = tmp_path_factory.mktemp("parser")
    made = {
        "bpe": Config(kind="bpe", vocab_size=600),
        "unigram": Config(kind="unigram", vocab_size=600),
        "indent": Config(kind="unigram", vocab_size=600, indent_transform=True),
    }
    return {name: train_tokenizer(texts, config, folder / name, seed=0) for name, config in made.items()}


@pytest.fixture(params=["bpe", "unigram"], scope="module")
def tokenizer(request: pytest.FixtureRequest, trained: dict[str, Tokenizer]) -> Tokenizer:
    return trained[request.param]


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


GOOD = '{"name": "a", "arguments": {"b": 1}}'
parts = st.lists(
    st.one_of(
        st.sampled_from(SPECIALS), st.sampled_from([GOOD, "{", "é☀", "if x:\n    y\n"]), st.text(max_size=6)
    ),
    max_size=14,
)


def plainly(parts: list[str]) -> dict[str, Any]:
    """What a turn of these texts and special tokens says, read without a tokenizer."""
    shown = {"content": "", "reasoning_content": ""}
    calls: list[Any] = []
    errors: list[str] = []
    where, inside = "content", None
    for part in parts:
        if part in ("<|end|>", "<eos>"):
            break
        if part == "<call_tool>":
            errors += ["inside a call"] if inside is not None else []
            inside = ""
        elif part == "</call_tool>" and inside is not None:
            try:
                found = json.loads(inside)
                calls += [call(found["name"], found["arguments"])]
            except (ValueError, KeyError, TypeError):
                errors.append("")
            inside = None
        elif part == "</call_tool>":
            errors.append("not opened")
        elif part in ("<scratchpad>", "</scratchpad>") and inside is None:
            where = "reasoning_content" if part == "<scratchpad>" else "content"
        elif part in SPECIALS:
            continue
        elif inside is not None:
            inside += part
        else:
            shown[where] += part
    errors += ["not closed"] if inside is not None else []
    return {**shown, "tool_calls": calls, "errors": errors}


@given(parts)
@settings(max_examples=80, deadline=None)
def test_pieces_the_message_and_a_plain_reading_agree(
    trained: dict[str, Tokenizer], parts: list[str]
) -> None:
    parts = [part.encode("utf-8", "replace").decode() for part in parts]
    expected = plainly(parts)
    for tokenizer in (trained["bpe"], trained["unigram"]):
        ids = written(tokenizer, *parts)
        parser = AssistantParser(tokenizer)
        deltas = [delta for token in ids for delta in parser.push(token)] + parser.finish()
        message = parser.message()
        assert message == parse_assistant(tokenizer, ids)
        assert message["content"] == expected["content"] == joined(deltas, "text")
        assert (
            message.get("reasoning_content", "")
            == expected["reasoning_content"]
            == joined(deltas, "scratchpad")
        )
        assert message.get("tool_calls", []) == expected["tool_calls"]
        assert [
            call(d.call.name, d.call.arguments) for d in deltas if d.call and not d.call.error
        ] == expected["tool_calls"]
        assert ("tool_call_error" in message) == bool(expected["errors"])
        assert all(error in message["tool_call_error"] for error in expected["errors"][:1])
        assert parser.calls_opened == opened(parts)


def joined(deltas: list[Delta], part: str) -> str:
    return "".join(delta.text for delta in deltas if delta.part == part)


def opened(parts: list[str]) -> int:
    ends = [i for i, part in enumerate(parts) if part in ("<|end|>", "<eos>")]
    return parts[: ends[0] if ends else None].count("<call_tool>")


@given(st.lists(st.integers(0, 599), max_size=40))
@settings(max_examples=80, deadline=None)
def test_any_ids_read_one_by_one_are_the_ids_read_whole(
    trained: dict[str, Tokenizer], ids: list[int]
) -> None:
    for tokenizer in trained.values():
        parser = AssistantParser(tokenizer)
        deltas = [delta for token in ids for delta in parser.push(token)] + parser.finish()
        message = parse_assistant(tokenizer, ids)
        assert message == parser.message()
        assert joined(deltas, "text") == message["content"]
        assert joined(deltas, "scratchpad") == message.get("reasoning_content", "")
        assert parser.finish() == []


def test_a_call_does_not_close_the_scratchpad(tokenizer: Tokenizer) -> None:
    ids = written(
        tokenizer, "<scratchpad>", "a", "<call_tool>", GOOD, "</call_tool>", "b", "</scratchpad>", "c"
    )
    assert parse_assistant(tokenizer, ids) == {
        "role": "assistant",
        "content": "c",
        "reasoning_content": "ab",
        "tool_calls": [call("a", {"b": 1})],
    }


def written(tokenizer: Tokenizer, *parts: str) -> list[int]:
    return [
        i for part in parts for i in ([tokenizer.id(part)] if part in SPECIALS else tokenizer.encode(part))
    ]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["<call_tool>", '{"name": "a", "arguments": {}', "</call_tool>", "<|end|>"], "not JSON"),
        (["<call_tool>", '{"name": "a", "arguments": {}}'], "not closed"),
        (["<call_tool>", '{"arguments": {}}', "</call_tool>"], "no name"),
        (["<call_tool>", '{"name": "a", "arguments": 3}', "</call_tool>"], "not an object"),
        (["<call_tool>", "[1]", "</call_tool>"], "no name"),
        (["<call_tool>", '{"name": "a", "arguments": {"x": NaN}}', "</call_tool>"], "NaN"),
        (["<call_tool>", '{"name": "a", "arguments": {"x": "\\ud800"}}', "</call_tool>"], "not JSON"),
        (["<call_tool>", '{"name": "a", "arguments": {"x": 1e999}}', "</call_tool>"], "not JSON"),
        (["<call_tool>", "[" * 100_000, "</call_tool>"], "not JSON"),
        (["</call_tool>"], "not opened"),
        (["<call_tool>", "<call_tool>", '{"name": "a", "arguments": {}}', "</call_tool>"], "inside a call"),
    ],
)
def test_malformed_calls_are_told(tokenizer: Tokenizer, parts: list[str], expected: str) -> None:
    message = parse_assistant(tokenizer, written(tokenizer, "so", *parts))
    assert expected in message["tool_call_error"]
    assert message["content"] == "so"


def test_good_calls_survive_bad_ones_and_reading_stops_at_the_end(tokenizer: Tokenizer) -> None:
    good = ["<call_tool>", '{"name": "a", "arguments": {"b": 1}}', "</call_tool>"]
    bad = ["<call_tool>", "{", "</call_tool>"]
    message = parse_assistant(
        tokenizer, written(tokenizer, "x", *bad, *good, "y", "<pad>", "<|end|>", "more")
    )
    assert message["content"] == "xy"
    assert message["tool_calls"] == [call("a", {"b": 1})]
    assert "not JSON" in message["tool_call_error"]


def test_an_unfinished_scratchpad_is_reasoning(tokenizer: Tokenizer) -> None:
    message = parse_assistant(tokenizer, written(tokenizer, "<scratchpad>", "hm"))
    assert message == {"role": "assistant", "content": "", "reasoning_content": "hm"}
