"""Preference pairs: what is made, what is sampled, how they are encoded and batched."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.posttrain.dpo import PairSource, Preference, pair_logprobs
from ikirere.posttrain.generate import Row, conversations
from ikirere.posttrain.onpolicy import judge, sampled_pairs
from ikirere.posttrain.pairs import (
    BREVITY,
    CORRECTNESS,
    TOOL,
    encode_pair,
    encode_pairs,
    made_pairs,
    read_pairs,
    turns,
)
from ikirere.posttrain.stage_rows import shares
from ikirere.recipe.sections import Tokenizer as TokenizerConfig
from ikirere.serve.engine.engine import Engine
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.train import train_tokenizer
from ikirere.train.optimiser import build_optimizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = [p.read_text() for p in sorted(Path(__file__).parent.glob("*.py"))]
    config = TokenizerConfig(kind="bpe", vocab_size=400, train_bytes=100_000)
    return train_tokenizer(texts, config, tmp_path_factory.mktemp("tokenizer"), 0)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [
        r for kind in ("calculator", "units", "chat", "direct") for r in conversations(kind, 25, 1, "train")
    ]


def tiny(tokenizer: Tokenizer, seed: int = 0) -> Decoder:
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    model = Decoder(shape)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model


def call(name: str, **arguments: str) -> dict[str, Any]:
    function = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [function]}


def say(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_made_pairs_are_wrong_where_they_say_so(rows: list[Row]) -> None:
    by_id = {r["id"]: r for r in rows}
    pairs = made_pairs(rows, 300, 7)
    assert len(pairs) == 300 and len({repr((p["prompt"], p["rejected"])) for p in pairs}) == 300
    assert pairs == made_pairs(rows, 300, 7) != made_pairs(rows, 300, 8)
    reasons = Counter(p["reason"] for p in pairs)
    assert set(reasons) == {CORRECTNESS, BREVITY, TOOL} and min(reasons.values()) > 30
    assert min(Counter(p["kind"] for p in pairs).values()) > 25
    for pair in pairs:
        row = by_id[pair["id"].split("/")[0]]
        good, bad = pair["chosen"][0], pair["rejected"][0]
        assert good in row["messages"] and pair["prompt"] == row["messages"][: row["messages"].index(good)]
        assert good != bad and not pair["on_policy"] and pair["prompt"][-1]["role"] in ("user", "tool")
        if pair["reason"] == BREVITY:
            assert good["content"] in bad["content"] and len(bad["content"]) > len(good["content"]) + 4
        if pair["reason"] == TOOL:
            assert bool(good.get("tool_calls")) != bool(bad.get("tool_calls"))
        if pair["reason"] == CORRECTNESS and good.get("tool_calls"):
            wrong, right = (m["tool_calls"][0]["function"] for m in (bad, good))
            assert wrong["name"] == right["name"] and wrong["arguments"] != right["arguments"]


def test_turns_are_those_after_the_question(rows: list[Row]) -> None:
    row = next(r for r in rows if r["kind"] == "calculator")
    first, second = turns(row)
    assert first.right["tool_calls"] and second.right["content"] and second.prompt[-1]["role"] == "tool"
    assert len(turns(next(r for r in rows if r["kind"] == "chat"))) == 1


@pytest.mark.parametrize(
    ("message", "number", "tokens", "reason"),
    [
        (call("calculator", expression="12*34"), 0, 20, None),
        (call("calculator", expression="12*34"), 0, 60, BREVITY),
        (call("calculator", expression="12*35"), 0, 20, CORRECTNESS),
        (call("python_exec", code="12*34"), 0, 20, TOOL),
        (say("408."), 0, 4, TOOL),
        (say("408."), 1, 4, None),
        (say("It is 408."), 1, 6, None),
        (say("409."), 1, 4, CORRECTNESS),
        (say("408. " * 9), 1, 40, BREVITY),
        (call("calculator", expression="12*34"), 1, 20, TOOL),
    ],
)
def test_sampled_turns_are_judged(
    message: dict[str, Any], number: int, tokens: int, reason: str | None
) -> None:
    row = {
        "id": "x", "kind": "calculator", "tools": None, "answer": "408", "expects_tool": "calculator",
        "messages": [{"role": "user", "content": "What is 12 * 34?"}, call("calculator", expression="12*34"),
                     {"role": "tool", "content": "408"}, say("408.")],
    }  # fmt: skip
    assert judge(turns(row)[number], message, tokens, 10 if number else 20) == reason


def test_an_untrained_model_gives_pairs_or_says_so(tokenizer: Tokenizer, rows: list[Row]) -> None:
    model = tiny(tokenizer)
    with torch.no_grad():  # a model that likes to end its turn: its answers are short and wrong
        model.embed_tokens.weight[tokenizer.end] += 2.0
    some = [*rows[:10], *rows[-10:]]
    found = [sampled_pairs(Engine(model, tokenizer, 8, 256), tokenizer, some, 10, 3, 256) for _ in range(2)]
    assert found[0] == found[1] and len(found[0]) <= 10
    for pair in found[0]:
        assert pair["on_policy"] and pair["reason"] in (CORRECTNESS, BREVITY, TOOL)
        assert encode_pair(tokenizer, pair, pair["id"]).start > 0


def test_encoding_keeps_the_prompt_and_both_answers(tokenizer: Tokenizer, rows: list[Row]) -> None:
    for pair in made_pairs(rows, 60, 1):
        encoded = encode_pair(tokenizer, pair, pair["id"])
        assert (encoded.chosen[: encoded.start] == encoded.rejected[: encoded.start]).all()
        for ids in (encoded.chosen, encoded.rejected):
            assert ids[-1] == tokenizer.end and ids[encoded.start - 1] == tokenizer.id("<|assistant|>")


def test_wrong_pairs_are_named(tokenizer: Tokenizer, rows: list[Row], tmp_path: Path) -> None:
    pair = made_pairs(rows, 1, 1)[0]
    with pytest.raises(UserError, match=r"p1.*same"):
        encode_pair(tokenizer, {**pair, "rejected": pair["chosen"]}, "p1")
    with pytest.raises(UserError, match="p2, rejected"):
        encode_pair(tokenizer, {**pair, "rejected": [{"role": "king", "content": "x"}]}, "p2")
    said: list[str] = []
    with pytest.raises(UserError, match=r"dpo\.sequence_length"):
        encode_pairs(tokenizer, [pair], 5, said.append)
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(pair) + "\n" + json.dumps({**pair, "chosen": "yes"}) + "\n")
    with pytest.raises(UserError, match=r"pairs\.jsonl:2: `chosen`"):
        read_pairs("pairs.jsonl", tmp_path, tokenizer)
    path.write_text(json.dumps({k: pair[k] for k in ("prompt", "chosen", "rejected")}) + "\n")  # type: ignore[literal-required]
    assert read_pairs("pairs.jsonl", tmp_path, tokenizer)[0]["reason"] == "file"


def test_batches_are_dealt_exactly_and_hold_the_reference(tokenizer: Tokenizer, rows: list[Row]) -> None:
    _, encoded = encode_pairs(tokenizer, made_pairs(rows, 21, 1), 256, print)
    reference = torch.arange(42.0).view(21, 2)

    def source(**more: int) -> PairSource:
        return PairSource(encoded, reference, 256, 4, tokenizer.pad, 3, **more)

    whole = source()
    states, batches = [], []
    for _ in range(12):
        states.append(json.loads(json.dumps(whole.state_dict())))
        batches.append(whole.next())
    seen = torch.cat([b.extras["reference"] for b in batches])[: 2 * 20].view(-1, 2)
    assert len({tuple(r) for r in seen.tolist()}) == 20 and bool((seen[:, 1] == seen[:, 0] + 1).all())
    for i in (3, 7):
        again = source()
        again.load_state_dict(states[i])
        assert torch.equal(again.next().tokens, batches[i].tokens)
    halves = [source(rank=r, world=2).next() for r in (0, 1)]
    assert torch.equal(torch.cat([h.tokens for h in halves]), batches[0].tokens)
    with pytest.raises(UserError, match=r"dpo\.batch_size"):
        source(rank=0, world=3)


def test_reference_values_do_not_depend_on_the_batch(tokenizer: Tokenizer, rows: list[Row]) -> None:
    _, encoded = encode_pairs(tokenizer, made_pairs(rows, 12, 1), 256, print)
    model = tiny(tokenizer)
    one, five = (pair_logprobs(model, encoded, tokenizer.pad, n) for n in (1, 5))
    assert torch.allclose(one, five, atol=1e-3) and bool((one < 0).all())


def test_training_raises_the_margin(tokenizer: Tokenizer, rows: list[Row]) -> None:
    from ikirere.recipe.sections import Optimizer

    _, encoded = encode_pairs(tokenizer, made_pairs(rows, 16, 1), 256, print)
    model = tiny(tokenizer)
    source = PairSource(encoded, pair_logprobs(model, encoded, tokenizer.pad), 256, 8, tokenizer.pad, 1)
    optimizer = build_optimizer(model, Optimizer(lr=2e-3, weight_decay=0.0))
    objective = Preference(0.1)
    assert objective.rows == 2 and objective.weight(source.next()) == 8
    first = last = None
    for _ in range(12):
        loss, metrics = objective(model, source.next())
        loss.backward()
        for part in optimizer.parts:
            part.step()
        optimizer.zero_grad()
        first, last = first or metrics, metrics
    assert first is not None and last is not None
    assert float(last["rewards/margins"]) > float(first["rewards/margins"]) + 0.1
    assert float(last["rewards/accuracies"]) >= 0.8


def test_shares_are_whole_and_complete() -> None:
    assert shares({"calculator": 0.45, "units": 0.1, "chat": 0.45}, 10) == {
        "calculator": 5,
        "units": 1,
        "chat": 4,
    }
    assert sum(shares({"calculator": 1, "units": 1, "chat": 1}, 100).values()) == 100
    assert shares({"calculator": 0.99, "units": 0.01, "chat": 0.0}, 5) == {"calculator": 5, "units": 1}
    for bad in ({"riddles": 1.0}, {"chat": 0.0}):
        with pytest.raises(UserError, match=r"sft\.mixture"):
            shares(bad, 5)
