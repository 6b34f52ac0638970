"""What the stages measure with a model at hand: held-out loss, preferences, answers played through the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import torch

from ikirere.model.decoder import Decoder
from ikirere.posttrain.dpo import EncodedPair, pair_logprobs
from ikirere.posttrain.generate.row import Row, prompt_of, question_of
from ikirere.posttrain.pairs import PairRow
from ikirere.posttrain.rows import Encoded
from ikirere.posttrain.sft import collate
from ikirere.serve.engine.engine import Engine
from ikirere.serve.engine.request import Completion, Request
from ikirere.tokenizer.base import Tokenizer
from ikirere.tokenizer.chat_format import render
from ikirere.tokens.batch import IGNORE
from ikirere.train.objective import sequence_logprobs

LONGEST = 128  # tokens that the model may write in answer to one question
MAX_NUM_SEQS, MAX_MODEL_LEN = 32, 1024  # of the engine that answers questions: generated ones are short


class HeldoutLoss(TypedDict):
    """Loss of one held-out conversation: nats over its trained tokens."""

    id: str
    kind: str
    nats: float
    tokens: int


class PreferenceResult(TypedDict):
    """One held-out pair: summed log-probabilities of both answers under policy and reference, and what they prefer."""

    id: str
    kind: str
    reason: str
    on_policy: bool
    chosen: float
    rejected: float
    reference_chosen: float
    reference_rejected: float
    margin: float
    win: int
    prefers_after: int
    prefers_before: int


class PlayedQuestion(TypedDict):
    """A question as the engine answered it. answer_tokens: of the last visible text; sampled: of all that the model
    wrote."""

    id: str
    kind: str
    question: str
    expected: str
    messages: list[dict[str, Any]]
    answer_tokens: int
    sampled: int


class ComparedQuestion(PlayedQuestion):
    """The question as answered after training, and the answer of the model before it."""

    messages_before: list[dict[str, Any]]
    answer_tokens_before: int


def answering_engine(model: Decoder, tokenizer: Tokenizer) -> Engine:
    """The engine that answers questions during post-training."""
    return Engine(model, tokenizer, MAX_NUM_SEQS, min(MAX_MODEL_LEN, model.config.max_position_embeddings))


@torch.no_grad()
def heldout_losses(
    model: Decoder, rows: Sequence[Row], encoded: Sequence[Encoded], pad: int, batch: int = 16
) -> list[HeldoutLoss]:
    """One result per conversation: nats and number of its trained tokens."""
    training = model.training
    model.eval()
    results: list[HeldoutLoss] = []
    kinds = {row["id"]: row["kind"] for row in rows}
    ordered = sorted(encoded, key=lambda e: e.length)
    for first in range(0, len(ordered), batch):
        some = ordered[first : first + batch]
        made = collate([[e] for e in some], max(e.length for e in some), pad)
        nats = -sequence_logprobs(model, made.to(model.device)).double().cpu()
        counts = (made.labels != IGNORE).sum(1)
        results += [
            {"id": e.name, "kind": kinds[e.name], "nats": float(n), "tokens": int(c)}
            for e, n, c in zip(some, nats, counts)
        ]
    model.train(training)
    return results


def preferences(
    model: Decoder,
    pairs: Sequence[PairRow],
    encoded: Sequence[EncodedPair],
    reference: torch.Tensor,
    pad: int,
) -> list[PreferenceResult]:
    """One result per held-out pair, against the reference's log-probabilities [pairs, 2].

    `win`: the implicit reward prefers the chosen answer. `prefers_after` and `prefers_before`: so do the plain
    log-probabilities of the policy and of the reference.
    """
    results: list[PreferenceResult] = []
    policy = pair_logprobs(model, encoded, pad)
    for pair, (c, r), (rc, rr) in zip(pairs, policy.tolist(), reference.tolist(), strict=True):
        results.append(
            {
                "id": pair["id"],
                "kind": pair["kind"],
                "reason": pair["reason"],
                "on_policy": pair["on_policy"],
                "chosen": c,
                "rejected": r,
                "reference_chosen": rc,
                "reference_rejected": rr,
                "margin": (c - rc) - (r - rr),
                "win": int((c - rc) - (r - rr) > 0),
                "prefers_after": int(c > r),
                "prefers_before": int(rc > rr),
            }
        )
    return results


def play(
    engine: Engine,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    on_done: Callable[[int, Completion], None] | None = None,
) -> list[PlayedQuestion]:
    """Each row's question answered greedily with its tools executed; those that do not fit the context are left out."""
    requests, kept = [], []
    for row in rows:
        prompt = render(tokenizer, prompt_of(row), row.get("tools"), add_generation_prompt=True).ids
        if len(prompt) + 8 < engine.max_model_len:
            offered = frozenset(tool["function"]["name"] for tool in row.get("tools") or ())
            requests.append(
                Request(prompt, LONGEST, execute_tools=offered, max_tool_calls=4 if offered else 0)
            )
            kept.append(row)
    results: list[PlayedQuestion] = []
    for row, completion in zip(kept, engine.generate(requests, on_done)):
        final = completion.messages[-1].get("content", "") if completion.messages else ""
        results.append(
            {
                "id": row["id"],
                "kind": row["kind"],
                "question": question_of(row),
                "expected": row["messages"][-1]["content"],
                "messages": completion.messages,
                "answer_tokens": len(tokenizer.encode(final)),
                "sampled": completion.sampled,
            }
        )
    return results


def before_and_after(
    before: Sequence[PlayedQuestion], after: Sequence[PlayedQuestion]
) -> Iterator[ComparedQuestion]:
    """The rows of `after` with `messages_before` and `answer_tokens_before` of the same question."""
    for old, new in zip(before, after, strict=True):
        yield {
            **new,
            "messages_before": old["messages"],
            "answer_tokens_before": old["answer_tokens"],
        }
