"""Packing, masks and resume of supervised fine-tuning; rows of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.posttrain.generate import conversations
from ikirere.posttrain.rows import Encoded, encode, encode_all, read_conversations
from ikirere.posttrain.sft import SftSource, collate, pack
from ikirere.recipe.sections import Tokenizer as TokenizerConfig
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.train import train_tokenizer
from ikirere.tokens.batch import IGNORE, Batch
from ikirere.train.objective import CrossEntropy


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small one, trained on this package's own files."""
    texts = [p.read_text() for p in sorted(Path(__file__).parent.parent.rglob("*.py"))]
    config = TokenizerConfig(kind="bpe", vocab_size=400, train_bytes=200_000)
    return train_tokenizer(texts, config, tmp_path_factory.mktemp("tokenizer"), 0)


def rows_of(lengths: list[int], seed: int = 0) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    rows = []
    for i, n in enumerate(lengths):
        trained = rng.random(n) < 0.5
        trained[-1] = True
        rows.append(Encoded(rng.integers(17, 60, n).astype(np.int32), trained, str(i)))
    return rows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.integers(40, 90),
    st.randoms(use_true_random=False),
)
def test_packing_uses_every_row_once_within_capacity(lengths: list[int], capacity: int, rng: Any) -> None:
    order = list(range(len(lengths)))
    rng.shuffle(order)
    groups = pack(lengths, capacity, order)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in g) <= capacity for g in groups)
    fewest = -(-sum(lengths) // capacity)
    assert len(groups) <= 11 / 9 * max(fewest, 1) + sum(x > capacity // 2 for x in lengths) + 1
    assert groups == pack(lengths, capacity, order)


def test_packing_is_best_fit() -> None:
    assert sorted(pack([6, 5, 4, 3, 2], 10, range(5))) == [[0, 2], [1, 3, 4]]
    assert sorted(pack([10, 10], 10, [1, 0])) == [[0], [1]]
    assert pack([4, 4, 4, 4], 8, [2, 0, 3, 1]) == [[2, 0], [3, 1]]


def test_labels_are_the_masked_next_ids_and_documents_stay_apart() -> None:
    rows = rows_of([5, 4, 7])
    batch = collate([[rows[0], rows[1]], [rows[2]]], 8, 0)
    assert batch.tokens[0].tolist() == [*rows[0].ids[:-1], *rows[1].ids[:-1], 0]
    assert batch.document_ids is not None
    assert batch.document_ids[0].tolist() == [0, 0, 0, 0, 1, 1, 1, -1]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    expected = [int(i) if t else IGNORE for row in rows[:2] for i, t in zip(row.ids[1:], row.trained[1:])]
    assert batch.labels[0].tolist() == [*expected, IGNORE]
    assert batch.labels[1, 6:].tolist() == [IGNORE, IGNORE]


def test_a_packed_batch_has_the_loss_of_its_rows_alone() -> None:
    shape = ModelConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = Decoder(shape)
    rows = rows_of([9, 5, 12, 7, 3])
    packed = collate([[rows[0], rows[1]], [rows[2]], [rows[3], rows[4]]], 16, 0)
    alone = [collate([[row]], row.length, 0) for row in rows]
    objective = CrossEntropy()
    total = sum(float(objective(model, b)[0].detach()) * b.tokens_used for b in alone)
    assert float(objective(model, packed)[0].detach()) == pytest.approx(total / packed.tokens_used, rel=1e-5)


def same(a: Batch, b: Batch) -> bool:
    return all(
        torch.equal(getattr(a, n), getattr(b, n)) for n in ("tokens", "labels", "positions", "document_ids")
    )


def test_epochs_hold_every_row_and_differ() -> None:
    rows = rows_of([3 + i % 20 for i in range(50)])
    source = SftSource(rows, 24, 4, 0, seed=1)

    def epoch() -> list[tuple[int, ...]]:
        start, seen = source.epoch, []
        while source.epoch == start or source.position <= 0:
            group = source._group()
            if source.epoch != start:
                source.position -= 1
                break
            seen += [tuple(rows[i].ids) for i in group]
        return seen

    first, second = epoch(), epoch()
    assert sorted(first) == sorted(second) == sorted(tuple(r.ids) for r in rows)
    assert first != second


def test_the_state_is_exact_at_every_step() -> None:
    rows = rows_of([3 + i % 20 for i in range(40)])
    source = SftSource(rows, 24, 3, 0, seed=5)
    states, batches = [], []
    for _ in range(15):
        states.append(json.loads(json.dumps(source.state_dict())))
        batches.append(source.next())
    for i in (0, 4, 9, 14):
        again = SftSource(rows, 24, 3, 0, seed=5)
        again.load_state_dict(states[i])
        assert same(again.next(), batches[i])
        assert i == 14 or same(again.next(), batches[i + 1])
    assert not same(SftSource(rows, 24, 3, 0, seed=6).next(), batches[0])


def test_a_state_of_other_conversations_is_refused_and_one_of_another_batch_size_is_not() -> None:
    rows = rows_of([3 + i % 20 for i in range(40)])
    source = SftSource(rows, 24, 3, 0, seed=5)
    source.next()
    state = source.state_dict()
    for other in (
        SftSource(rows, 24, 3, 0, seed=6),
        SftSource(rows, 25, 3, 0, seed=5),
        SftSource(rows[:-1], 24, 3, 0, seed=5),
        SftSource(rows_of([3 + i % 20 for i in range(40)], seed=1), 24, 3, 0, seed=5),
    ):
        with pytest.raises(UserError, match="trained on other conversations"):
            other.load_state_dict(state)
    wider = SftSource(rows, 24, 5, 0, seed=5)
    wider.load_state_dict(state)
    assert same_rows(wider.next(), [source.next(), source.next()], 5)


def same_rows(batch: Batch, parts: list[Batch], count: int) -> bool:
    return torch.equal(batch.tokens, torch.cat([part.tokens for part in parts])[:count])


def test_only_the_assistant_is_trained(tokenizer: Tokenizer) -> None:
    for row in conversations("calculator", 20, 1, "train"):
        encoded = encode(tokenizer, row, row["id"])
        text = tokenizer.decode(encoded.ids[encoded.trained].tolist(), keep_special=True)
        calls = sum(m["role"] == "assistant" for m in row["messages"])
        assert text.count("<|end|>") == calls and "<|user|>" not in text and "<tool_result>" not in text
        assert text.endswith(row["messages"][-1]["content"] + "<|end|>")


def test_an_empty_mask_is_refused_by_name(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="chat-7"):
        encode(tokenizer, {"messages": [{"role": "user", "content": "Hi"}]}, "chat-7")


def test_long_rows_are_left_out_aloud(tokenizer: Tokenizer) -> None:
    def row(words: int) -> dict[str, Any]:
        return {"id": f"w{words}", "messages": [{"role": "user", "content": "a " * words}, {"role": "assistant", "content": "b"}]}  # fmt: skip

    said: list[str] = []
    assert len(encode_all(tokenizer, [row(3), row(200)], 64, said.append)) == 1
    assert len(said) == 1 and said[0].startswith("1 of 2 conversations") and "w200" in said[0]
    with pytest.raises(UserError, match=r"sft\.sequence_length"):
        encode_all(tokenizer, [row(200)], 64, said.append)


GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ('{"messages": []}', "`messages`"),
        ('{"messages": ["Hi"]}', "`messages`"),
        ('{"messages": [{"role": "king", "content": "Hi"}]}', "king"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', "nothing"),
        (json.dumps({**GOOD, "tools": "calculator"}), "`tools`"),
    ],
)
def test_wrong_rows_of_files_are_named_by_line(
    line: str, part: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD) + "\n\n" + line + "\n")
    with pytest.raises(UserError) as error:
        read_conversations("rows.jsonl", tmp_path, tokenizer)
    assert "rows.jsonl:3" in str(error.value) and part in str(error.value) and "\n" not in str(error.value)


def test_rows_of_files_are_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in (GOOD, {**GOOD, "kind": "mine"}))
    )
    rows = read_conversations("rows.jsonl", tmp_path, tokenizer)
    assert [r["kind"] for r in rows] == ["file", "mine"] and rows[0]["messages"] == GOOD["messages"]
    for name, text in (("empty.jsonl", ""), ("missing.jsonl", None)):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=rf"sft\.rows_files: .*{name}"):
            read_conversations(name, tmp_path, tokenizer)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_conversations("bytes.jsonl", tmp_path, tokenizer)
