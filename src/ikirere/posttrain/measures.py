"""What the stages measure with a model at hand: held-out loss, preferences, answers played through the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ikirere.model.decoder import Decoder
from ikirere.posttrain.dpo import EncodedPair, pair_logprobs
from ikirere.posttrain.generate.row import prompt_of, question_of
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


@torch.no_grad()
def heldout_losses(
    model: Decoder, rows: Sequence[Mapping[str, Any]], encoded: Sequence[Encoded], pad: int, batch: int = 16
) -> list[dict[str, Any]]:
    """One result per conversation: nats and number of its trained tokens."""
    training = model.training
    model.eval()
    results: list[dict[str, Any]] = []
    kinds = {str(row["id"]): row["kind"] for row in rows}
    ordered = sorted(encoded, key=lambda e: e.places)
    for first in range(0, len(ordered), batch):
        some = ordered[first : first + batch]
        made = collate([[e] for e in some], max(e.places for e in some), pad)
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
) -> list[dict[str, Any]]:
    """One result per held-out pair, against the reference's log-probabilities [pairs, 2].

    `win`: the implicit reward prefers the chosen answer. `prefers_after` and `prefers_before`: so do the plain
    log-probabilities of the policy and of the reference.
    """
    results = []
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
    rows: Sequence[Mapping[str, Any]],
    on_done: Callable[[int, Completion], None] | None = None,
) -> list[dict[str, Any]]:
    """Each row's question answered greedily with its tools executed: question, messages, length of the answer.

    `answer_tokens` counts the last visible text; `sampled` everything that the model wrote.
    """
    requests, kept = [], []
    for row in rows:
        prompt = render(tokenizer, prompt_of(row), row.get("tools"), add_generation_prompt=True).ids
        if len(prompt) + 8 < engine.max_model_len:
            offered = frozenset(tool["function"]["name"] for tool in row.get("tools") or ())
            requests.append(
                Request(prompt, LONGEST, execute_tools=offered, max_tool_calls=4 if offered else 0)
            )
            kept.append(row)
    results = []
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
