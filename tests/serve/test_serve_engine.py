"""The engine against the plain forward pass, and against itself with other requests in the batch."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from scripted_model import small_model, small_tokenizer

from ikirere.errors import UserError
from ikirere.model.decoder import Decoder
from ikirere.serve.engine.engine import Engine
from ikirere.serve.engine.request import Completion, ContextTooLong, Request
from ikirere.tokenizer.chat_format import ChatTokens


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(17, 600) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@torch.no_grad()
def naive(model: Decoder, prompt: list[int], count: int, banned: tuple[int, ...] = ()) -> list[int]:
    """Greedy ids by a whole forward pass for each."""
    ids = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([ids]))[0, -1]
        logits[list(banned)] = float("-inf")
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("max_num_seqs", [1, 3, 8])
def test_greedy_equals_full_forwards(max_num_seqs: int) -> None:
    model, tokenizer = small_model(), small_tokenizer()
    ends = (tokenizer.end, tokenizer.eos)
    asked = prompts(7, 60)
    lengths = [3, 20, 1, 9, 14, 5, 11]
    requests = [
        Request(prompt, length, chat=False, ignore_end=True) for prompt, length in zip(asked, lengths)
    ]
    done = Engine(model, tokenizer, max_num_seqs=max_num_seqs).generate(requests)
    for prompt, length, completion in zip(asked, lengths, done):
        assert completion.ids == naive(model, prompt, length, ends)
        assert (completion.finish_reason, completion.sampled) == ("length", length)
        assert completion.text == tokenizer.decode(completion.ids)


def test_a_long_prompt_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = small_model(), small_tokenizer()
    asked = [Request(prompt, 6, chat=False) for prompt in [*prompts(3, 20), *prompts(2, 200, 1)]]
    whole = Engine(model, tokenizer, max_num_seqs=4).generate(asked)
    monkeypatch.setattr("ikirere.serve.engine.engine.PREFILL_TOKENS", 16)
    pieces = Engine(model, tokenizer, max_num_seqs=4).generate(asked)
    assert [c.ids for c in pieces] == [c.ids for c in whole]


def test_an_assistant_cannot_write_what_belongs_to_others() -> None:
    model, tokenizer = small_model(), small_tokenizer()
    chat_tokens = ChatTokens.of(tokenizer)
    requests = [Request(prompt, 40, temperature=5.0, seed=i) for i, prompt in enumerate(prompts(12, 9))]
    for completion in Engine(model, tokenizer).generate(requests):
        written = [entry for message in completion.messages for entry in [message["role"]]]
        assert set(written) <= {"assistant", "tool"}
        if "tool" not in written:
            assert not set(completion.ids) & set(chat_tokens.forbidden)


@pytest.mark.parametrize("temperature,top_k,top_p", [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 20, 0.9)])
def test_order_and_other_requests_change_nothing(temperature: float, top_k: int, top_p: float) -> None:
    model, tokenizer = small_model(), small_tokenizer()
    asked = [
        Request(prompt, 12, temperature, top_k, top_p, seed=i, chat=False)
        for i, prompt in enumerate(prompts(6, 40))
    ]
    together = Engine(model, tokenizer, max_num_seqs=4).generate(asked)
    backwards = Engine(model, tokenizer, max_num_seqs=2).generate(asked[::-1])[::-1]
    alone = [Engine(model, tokenizer, max_num_seqs=1).generate([request])[0] for request in asked]
    assert [c.ids for c in together] == [c.ids for c in backwards] == [c.ids for c in alone]


def test_seeds_differ_and_repeat() -> None:
    model, tokenizer = small_model(), small_tokenizer()
    prompt = prompts(1, 20)[0]
    engine = Engine(model, tokenizer)

    def draw(seed: int) -> list[int]:
        return engine.generate([Request(prompt, 16, 1.0, seed=seed, chat=False, ignore_end=True)])[0].ids

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_logprobs_are_those_of_the_model() -> None:
    model, tokenizer = small_model(), small_tokenizer()
    prompt = prompts(1, 30, 3)[0]
    request = Request(prompt, 5, chat=False, ignore_end=True, logprobs=3, prompt_logprobs=True)
    completion = Engine(model, tokenizer, max_num_seqs=2).generate([request, Request([20] * 9, 5)])[0]
    with torch.no_grad():
        scores = model(torch.tensor([prompt + completion.ids])).log_softmax(-1)[0]
    wanted = [float(scores[i, token]) for i, token in enumerate((prompt + completion.ids)[1:])]
    assert completion.prompt_logprobs is not None and completion.logprobs is not None
    assert completion.prompt_logprobs[0] is None
    got = [entry.logprob for entry in completion.prompt_logprobs[1:] if entry is not None]
    got += [entry.score.logprob for entry in completion.logprobs]
    assert got == pytest.approx(wanted, abs=1e-4)
    last = completion.logprobs[-1].score
    assert [token for token, _ in last.top] == scores[-2].topk(3).indices.tolist()


def test_scoring_a_prompt_writes_nothing() -> None:
    model, tokenizer = small_model(), small_tokenizer()
    prompt = prompts(1, 30, 3)[0]
    for asked in (prompt, prompt[:1]):
        request = Request(asked, 0, chat=False, logprobs=0, prompt_logprobs=True)
        completion = Engine(model, tokenizer).generate([request])[0]
        assert completion.ids == []
        assert completion.prompt_logprobs is not None
        assert len(completion.prompt_logprobs) == len(asked)


def test_the_context_ends_an_answer() -> None:
    model, tokenizer = small_model(context=32), small_tokenizer()
    engine = Engine(model, tokenizer, max_num_seqs=2)
    completion = engine.generate([Request([30] * 28, 100, chat=False, ignore_end=True)])[0]
    assert (completion.finish_reason, completion.sampled) == ("length", 5)
    with pytest.raises(ContextTooLong, match="32 tokens, the context holds 32"):
        engine.submit(Request([30] * 32, 1))


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": []},
        {"prompt": [9999]},
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"stop": ("",)},
    ],
)
def test_impossible_requests_are_refused(bad: dict[str, object]) -> None:
    engine = Engine(small_model(), small_tokenizer())
    with pytest.raises(UserError):
        engine.submit(Request(**{"prompt": [20], "max_new_tokens": 4, **bad}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="max_model_len 2 to 256"):
        Engine(small_model(), small_tokenizer(), max_model_len=257)


def test_aborting_frees_the_row_for_the_next() -> None:
    model, tokenizer = small_model(), small_tokenizer()
    engine = Engine(model, tokenizer, max_num_seqs=1)
    first = engine.submit(Request([20, 21, 22], 100, chat=False, ignore_end=True))
    second_prompt = prompts(1, 20, 5)[0]
    second = engine.submit(Request(second_prompt, 5, chat=False, ignore_end=True))
    third = engine.submit(Request([40], 5))
    for _ in range(4):
        engine.step()
    engine.abort(third)
    engine.abort(first)
    engine.abort(first)
    while engine.busy:
        engine.step()
    assert first.finish_reason == third.finish_reason == "abort"
    assert 1 <= first.sampled < 100
    assert second.completion().ids == naive(model, second_prompt, 5, (tokenizer.end, tokenizer.eos))


def test_leaving_a_stream_aborts_it() -> None:
    engine = Engine(small_model(), small_tokenizer(), max_num_seqs=1)
    events = engine.stream(Request([20, 21], 200, chat=False, ignore_end=True))
    next(events)
    events.close()
    assert not engine.busy


def test_completions_are_reported_as_they_end() -> None:
    engine = Engine(small_model(), small_tokenizer(), max_num_seqs=2)
    reported: dict[int, Completion] = {}
    asked = [Request([20 + i], 1 + 5 * i, chat=False, ignore_end=True) for i in range(4)]
    done = engine.generate(asked, on_done=reported.__setitem__)
    assert [reported[i] for i in range(4)] == done
    assert list(reported) == sorted(reported)
