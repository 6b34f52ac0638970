"""The loss that teaches the choice of blocks: equal to its definition, without gradient where it has none, learning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.config import ModelConfig
from ikirere.model.decoder import Decoder
from ikirere.model.layers import selection
from ikirere.model.layers.selection import selection_loss
from ikirere.model.layers.summaries import layout_of, summaries
from ikirere.tokens.batch import Batch
from ikirere.train.objective import CrossEntropy
from ikirere.train.parallel import checkpoint_activations

CHUNK, STRIDE = 5, 3


def drawn(length: int, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """q [2, T, heads, 8], k [2, kv_heads, T, 8] and the logits of summaries [2, kv_heads, T]."""
    shapes = (2, length, heads, 8), (2, kv_heads, length, 8), (2, kv_heads, length)
    q, k, logits = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return q, k, logits


def written_out(q: Tensor, k: Tensor, logits: Tensor, documents: list[list[int]]) -> Tensor:
    """The definition, query by query. documents: the lengths of each row's documents; negative ones are padding."""
    group, scale = q.shape[2] // k.shape[1], q.shape[3] ** -0.5
    terms = []
    for row, lengths in enumerate(documents):
        begin = 0
        for length in lengths:
            for position in range(length):
                whole = max(0, position - (CHUNK - 1)) // STRIDE
                if whole < 2:
                    continue
                for head in range(k.shape[1]):
                    keys = k[row, head, begin : begin + position + 1]
                    mine = q[row, begin + position, head * group : (head + 1) * group]
                    p = (mine @ keys.T * scale).softmax(-1).mean(0).detach()
                    blocks = [slice(b * STRIDE, (b + 1) * STRIDE) for b in range(whole)]
                    wanted = torch.stack([p[b].sum() for b in blocks])
                    pooled = torch.stack(
                        [
                            logits[row, head, begin : begin + position + 1][b].softmax(0) @ keys[b]
                            for b in blocks
                        ]
                    )
                    found = (mine.mean(0) @ pooled.T * scale).log_softmax(0)
                    share = wanted / wanted.sum()
                    terms.append(wanted.sum() * (share * (share.log() - found)).sum())
            begin += abs(length)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("at_once", [1, 200, 1 << 19])
@pytest.mark.parametrize("documents", [None, [[9, 22], [1, 20, -10]], [[31], [2, 29]]])
def test_it_is_its_definition_and_so_are_its_gradients(
    documents: list[list[int]] | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(selection.scores_at_once.__globals__["_SCORES"], "cpu", at_once)
    q, k, logits = drawn(31)
    ids = None
    if documents is not None:
        ids = torch.tensor(
            [[i if n > 0 else -1 for i, n in enumerate(row) for _ in range(abs(n))] for row in documents]
        )
    layout = layout_of(ids, 31, CHUNK, STRIDE)
    keys, _ = summaries(logits, k, k.detach(), layout)
    found = selection_loss(q, k, keys, layout, None if ids is None else ids >= 0)
    expected = written_out(q, k, logits, documents or [[31], [31]])
    torch.testing.assert_close(found, expected)
    for mine, right in zip(
        torch.autograd.grad(found, (q, k, logits)), torch.autograd.grad(expected, (q, k, logits)), strict=True
    ):
        torch.testing.assert_close(mine, right)


def test_blocks_of_one_key_leave_nothing_to_learn() -> None:
    """Their exact shares are the softmax of the summaries' scores."""
    q, _, logits = drawn(30, heads=2)
    k = torch.randn(2, 2, 10, 1, 8, dtype=torch.float64).expand(-1, -1, -1, STRIDE, -1).flatten(2, 3)
    k.requires_grad_()
    layout = layout_of(None, 30, CHUNK, STRIDE)
    loss = selection_loss(q, k, summaries(logits, k, k.detach(), layout)[0], layout)
    assert abs(float(loss.detach())) < 1e-12
    assert all(float(g.abs().max()) < 1e-12 for g in torch.autograd.grad(loss, (q, k, logits)))


def test_queries_that_are_drawn_stand_for_all() -> None:
    q, k, logits = drawn(60)
    layout = layout_of(None, 60, CHUNK, STRIDE)
    keys, _ = summaries(logits, k, k.detach(), layout)
    torch.manual_seed(0)
    some = torch.stack([selection_loss(q, k, keys, layout, most=10) for _ in range(400)])
    whole = selection_loss(q, k, keys, layout)
    assert some.std() > 0
    torch.testing.assert_close(some.mean(), whole, rtol=0.05, atol=0.0)
    torch.manual_seed(1)
    again = selection_loss(q, k, keys, layout, most=10)
    torch.manual_seed(1)
    assert torch.equal(selection_loss(q, k, keys, layout, most=10), again)


def test_without_a_choice_there_is_no_loss() -> None:
    q, k, logits = drawn(8)
    layout = layout_of(None, 8, CHUNK, STRIDE)
    keys, _ = summaries(logits, k, k.detach(), layout)
    assert selection_loss(q, k, keys, layout) == 0
    ids = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]] * 2)
    layout = layout_of(ids, 8, CHUNK, STRIDE)
    keys, _ = summaries(logits, k, k.detach(), layout)
    assert selection_loss(q, k, keys, layout, ids >= 0) == 0


# ---------------------------------------------------------------- in a model


def model(**settings: Any) -> Decoder:
    mixers = {"hybrid": {"window": 7, "block_size": 4, "top_k": 2, **settings}}
    shape = ModelConfig(
        50, 32, 2, 4, 2, 48, 128, layer_pattern="hybrid", mixers=mixers, initializer_range=0.3
    )
    return Decoder(shape)


def test_it_is_added_in_training_only_and_only_where_blocks_are_chosen() -> None:
    tokens = torch.randint(0, 50, (2, 40))
    batch = Batch(tokens, tokens.roll(-1, 1), torch.arange(40).repeat(2, 1))
    given, plain = model(selection_weight=0.5).train(), model().train()
    loss, scalars = CrossEntropy()(given, batch)
    assert scalars["selection_loss"] > 0
    torch.testing.assert_close(loss, scalars["nll"] + scalars["selection_loss"])
    without, none = CrossEntropy()(plain, batch)
    assert torch.equal(without, scalars["nll"]) and none == {}
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in given.parameters())
    layers = [layer.mixer.auxiliary for layer in given.layers]
    torch.testing.assert_close(scalars["selection_loss"], sum(layers))
    given.set_attention("full")
    assert CrossEntropy()(given, batch)[1] == {}
    given.set_attention("hybrid")
    short = Batch(tokens[:, :7], tokens[:, 1:8], torch.arange(7).repeat(2, 1))
    assert CrossEntropy()(given, short)[1]["selection_loss"] == 0
    assert CrossEntropy()(given.eval(), batch)[1] == {}


def test_activations_that_are_made_again_ask_the_same_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection_loss, "__defaults__", (None, 10))
    tokens = torch.randint(0, 50, (2, 60))
    batch = Batch(tokens, tokens.roll(-1, 1), torch.arange(60).repeat(2, 1))
    made = model(selection_weight=1.0).train()
    found = []
    for again in (False, True):
        if again:
            checkpoint_activations(made)
        made.zero_grad()
        torch.manual_seed(5)
        loss, _ = CrossEntropy()(made, batch)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in made.parameters())])
    torch.testing.assert_close(found[1], found[0])


def test_it_teaches_the_choice() -> None:
    """One token of each block is marked, and each query looks for the marked token of one block. A mean of the block
    drowns it; what has learned the mark finds nearly every one."""
    generator = torch.Generator().manual_seed(0)
    stride, blocks, width = 8, 12, 16
    keys = torch.randn(1, 1, blocks * stride, width, generator=generator)
    marked = torch.arange(blocks) * stride + torch.randint(0, stride, (blocks,), generator=generator)
    keys[..., 0] = 0.0
    keys[0, 0, marked, 0] = 2.0
    sought = torch.randint(0, blocks, (64,), generator=generator)
    queries = 2 * keys[0, 0, marked[sought]].clone()
    queries[:, 0] = 0.0
    q = torch.cat((torch.zeros(blocks * stride, width), queries)).view(1, -1, 1, width)
    k = torch.cat((keys, torch.zeros(1, 1, 64, width)), 2)
    layout = layout_of(None, q.shape[1], 1, stride)
    layout = replace(layout, last=layout.last.clamp_max(blocks)).part(blocks * stride, q.shape[1])

    def pooled(w: Tensor) -> Tensor:
        return summaries(k @ w, k, k, layout)[0]

    def found(w: Tensor) -> float:
        best = (queries @ pooled(w)[0, 0, :blocks].T).argmax(1)
        return float((best == sought).float().mean())

    w = torch.zeros(width, requires_grad=True)
    before, optimiser = found(w), torch.optim.Adam([w], 0.1)
    for _ in range(60):
        loss = selection_loss(q[:, blocks * stride :], k, pooled(w), layout)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert before < 0.7 and found(w.detach()) > 0.95


def test_a_weight_below_zero_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"model.mixers.hybrid.selection_weight: .*greater than or equal to 0"
    ):
        model(selection_weight=-1.0)
