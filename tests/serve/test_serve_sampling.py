"""The sampler against a plain one, and the reader of turns against arbitrary ids."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from scripted_model import ids_of, small_tokenizer

from ikirere.errors import UserError
from ikirere.serve.engine.request import Request
from ikirere.serve.engine.sampling import RowSettings, constrain, sample, token_logprobs
from ikirere.serve.engine.turn_parser import StopStrings, TurnParser
from ikirere.tokenizer.assistant_parser import parse_assistant


def plain(logits: list[float], row: RowSettings) -> int:
    """The same choice in plain Python."""
    scores = [
        -math.inf if i in row.banned else value + row.bias.get(i, 0.0) for i, value in enumerate(logits)
    ]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    if row.temperature == 0:
        return order[0]
    order = order[: row.top_k] if row.top_k else order
    top = scores[order[0]]
    weights = [math.exp((scores[i] - top) / row.temperature) for i in order]
    whole, kept, mass = sum(weights), [], 0.0
    for i, weight in zip(order, weights):
        if kept and mass / whole >= row.top_p:
            break
        kept.append((i, weight))
        mass += weight
    target, reached = row.uniform * mass, 0.0
    for i, weight in kept:
        reached += weight
        if reached > target:
            return i
    return kept[-1][0]


rows = st.builds(
    RowSettings,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    uniform=st.floats(0, 0.999),
    banned=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    bias=st.dictionaries(st.integers(0, 9), st.floats(-5, 5), max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(rows, min_size=1, max_size=5), st.integers(0, 10**6))
def test_each_row_is_sampled_by_its_own_settings(asked: list[RowSettings], seed: int) -> None:
    logits = torch.randn(len(asked), 10, generator=torch.Generator().manual_seed(seed)) * 2
    assert sample(logits, asked) == [plain(line, row) for line, row in zip(logits.double().tolist(), asked)]


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    count = 4000
    drawn = sample(
        logits.repeat(count, 1), [RowSettings(1.0, uniform=(i + 0.5) / count) for i in range(count)]
    )
    wanted = torch.softmax(logits[0], -1)
    for token in range(4):
        assert drawn.count(token) / count == pytest.approx(float(wanted[token]), abs=1e-3)


def test_logprobs_only_where_asked() -> None:
    logits = torch.tensor([[0.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    first, second, third = token_logprobs(logits, [0, 1, 0], [None, 2, 0])
    assert first is None and second is not None and third is not None
    assert [token for token, _ in second.top] == [0, 1]
    assert second.logprob == pytest.approx(-math.log(1 + math.exp(3)))
    assert (third.top, third.logprob) == ((), pytest.approx(-math.log(2)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1, max_size=5), st.integers(0, 10**6))
def test_logprobs_are_those_of_a_log_softmax(top: list[int | None], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(top), 7, generator=generator) * 3
    ids = torch.randint(0, 7, (len(top),), generator=generator).tolist()
    for line, token, count, found in zip(
        logits.double().tolist(), ids, top, token_logprobs(logits, ids, top), strict=True
    ):
        if count is None:
            assert found is None
            continue
        whole = math.log(sum(math.exp(value) for value in line))
        best = sorted(((value - whole, i) for i, value in enumerate(line)), reverse=True)[:count]
        assert found is not None and found.id == token
        assert found.logprob == pytest.approx(line[token] - whole, abs=1e-5)
        assert [i for i, _ in found.top] == [i for _, i in best]
        assert [value for _, value in found.top] == pytest.approx([value for value, _ in best], abs=1e-5)


def test_settings_at_their_ends() -> None:
    """Four ids of probability 0.4, 0.3, 0.2 and 0.1."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()

    def one(uniform: float, **settings: float) -> int:
        return sample(logits, [RowSettings(1.0, uniform=uniform, **settings)])[0]  # type: ignore[arg-type]

    assert [one(u) for u in (0.0, 0.39, 0.41, 0.69, 0.71, 0.89, 0.91, 1 - 1e-12)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [one(u, top_k=1) for u in (0.0, 0.99)] == [0, 0]
    assert [one(u, top_k=3) for u in (0.44, 0.45, 0.77, 0.78, 0.99)] == [0, 1, 1, 2, 2]
    assert [one(0.95, top_k=k) for k in (0, 4, 5)] == [3, 3, 3]
    assert [one(0.99, top_p=p) for p in (0.0, 0.39, 0.41, 0.69, 0.71, 0.91)] == [0, 0, 1, 1, 2, 3]
    assert one(0.99, top_p=0.57) == 1 and one(0.99, top_k=2, top_p=0.57) == 0, "0.4 of 0.7 reach 0.57"
    assert one(0.99, top_k=2, top_p=0.58) == 1
    assert sample(logits, [RowSettings(0.5, uniform=0.52)]) == [0], "0.16 of 0.30"
    assert sample(logits, [RowSettings(0.5, uniform=0.54)]) == [1]


def test_temperatures_at_their_ends() -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0, 2.999], [-1e4, 1e4, 0.0, -math.inf]])
    for cold in (5e-324, 1e-300, 1e-9):
        for uniform in (0.0, 0.5, 1 - 1e-12):
            rows = [RowSettings(cold, uniform=uniform), RowSettings(cold, uniform=uniform, banned=(1,))]
            assert sample(logits, rows) == [1, 2]
    hot = [RowSettings(1e300, uniform=u) for u in (0.1, 0.3, 0.6, 0.9)]
    assert sorted(sample(logits[:1].repeat(4, 1), hot)) == [0, 1, 2, 3], "all are equally probable"
    assert sample(logits[1:], [RowSettings(1e300, uniform=1 - 1e-12)]) != [3], "but not what cannot be"


@pytest.mark.parametrize("temperature", [-0.1, math.inf, math.nan])
def test_temperatures_that_are_none_are_refused(temperature: float) -> None:
    with pytest.raises(UserError, match="a finite temperature >= 0"):
        Request([1], 1, temperature=temperature).check(8, 8)


def test_of_equal_ids_the_first_is_taken() -> None:
    logits = torch.zeros(1, 5)
    assert sample(logits, [RowSettings()]) == [0]
    assert [sample(logits, [RowSettings(1.0, top_k=2, uniform=u)])[0] for u in (0.49, 0.51)] == [0, 1]


def test_bans_and_biases_touch_their_own_rows_only() -> None:
    logits = torch.zeros(3, 4)
    same = constrain(logits, [RowSettings()] * 3)
    assert same is logits
    rows = [
        RowSettings(banned=(1, 2)),
        RowSettings(bias={0: 2.5, 3: -1.0}),
        RowSettings(banned=(0,), bias={1: 1.0}),
    ]
    inf = math.inf
    assert constrain(logits, rows).tolist() == [
        [0.0, -inf, -inf, 0.0], [2.5, 0.0, 0.0, -1.0], [-inf, 1.0, 0.0, 0.0],
    ]  # fmt: skip
    assert constrain(logits, [RowSettings(banned=(3,))] * 3).tolist() == [[0.0, 0.0, 0.0, -inf]] * 3
    assert not logits.any()


def test_a_banned_id_is_not_drawn_even_where_it_was_most_probable() -> None:
    logits = torch.tensor([[9.0, 0.0, -50.0]])
    for uniform in (0.0, 0.5, 1 - 1e-12):
        assert sample(logits, [RowSettings(1.0, uniform=uniform, banned=(0, 2))]) == [1]
    assert sample(logits, [RowSettings(banned=(0,))]) == [1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ab\n", max_size=4), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3),
)
def test_stop_strings_cut_where_the_whole_text_would_be_cut(pieces: list[str], stops: list[str]) -> None:
    reader = StopStrings(tuple(stops))
    shown = "".join([reader.push(piece) for piece in pieces]) + reader.flush()
    text = "".join(pieces)
    positions = [position for position in (text.find(stop) for stop in stops) if position >= 0]
    assert reader.hit == bool(positions)
    # Piece by piece the first string to be complete wins; none of the strings is ever shown whole.
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    if not positions:
        assert shown == text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 16), st.integers(17, 599)), max_size=40))
def test_any_ids_can_be_read_as_a_turn(ids: list[int]) -> None:
    tokenizer = small_tokenizer()
    parser = TurnParser(tokenizer, (), chat=True)
    events = []
    for token in ids:
        events += parser.push(token)
        if parser.ended:
            break
    events += parser.finish()
    message = parser.message()
    assert message == parse_assistant(tokenizer, parser.ids)
    assert all(c > "\udfff" or c < "\ud800" for event in events for c in event.text)
    calls = [event.data for event in events if event.kind == "tool_call" and "error" not in event.data]
    assert calls == [call["function"] for call in message.get("tool_calls", ())]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=20), st.text(max_size=30), st.text(max_size=12))
def test_what_streams_is_what_the_message_says(reasoning: str, content: str, argument: str) -> None:
    tokenizer = small_tokenizer()
    text = reasoning.encode("utf-8", "replace").decode(), content.encode("utf-8", "replace").decode()
    ids = [tokenizer.id("<scratchpad>"), *tokenizer.encode(text[0]), tokenizer.id("</scratchpad>")]
    ids += [*tokenizer.encode(text[1]), *ids_of(tokenizer, "<call_tool>{</call_tool><|end|>")]
    parser = TurnParser(tokenizer, (), chat=True)
    events = [event for token in ids for event in parser.push(token)]
    assert "".join(e.text for e in events if e.kind == "scratchpad") == text[0]
    assert "".join(e.text for e in events if e.kind == "text") == text[1] == parser.message()["content"]
    assert parser.message()["tool_call_error"].startswith("not JSON")


def test_a_draw_at_the_very_end_takes_the_last_possible_id() -> None:
    """Rounding may bring the drawn position past all probability: what was cut off must not be had then."""
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    for cut, last in (({"top_k": 2}, 1), ({"top_p": 0.5}, 1), ({"top_k": 1}, 0), ({}, 3)):
        assert sample(logits, [RowSettings(1.0, uniform=1.0, **cut)]) == [last]  # type: ignore[arg-type]
