"""Hybrid attention against its definition written with dense masks, plain softmax and autograd."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ikirere.model.layers import summaries as summaries_module
from ikirere.model.layers.ring import Rank, merged_summaries, ring_order, shard_summaries
from ikirere.model.layers.split_attention import hybrid_attention
from ikirere.model.layers.summaries import layout_of, summaries


def dense(
    q: Tensor, k: Tensor, v: Tensor, logits: Tensor, documents: Tensor, chunk: int, stride: int, top_k: int
) -> Tensor:
    """The definition, query by query where choosing, with a column for each token and each block.

    q [B, T, heads, Dh]; k, v [B, kv_heads, T, Dh]; logits [B, kv_heads, T] -> [B, T, heads, Dh].
    """
    batch, length, heads, width = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    rows = []
    for b in range(batch):
        begin = [0] * length
        for i in range(1, length):
            begin[i] = begin[i - 1] if documents[b, i] == documents[b, i - 1] else i
        blocks = [  # documents' whole blocks: (begin of the document, first token)
            (begin[t], t)
            for t in range(length - stride + 1)
            if (t - begin[t]) % stride == 0 and begin[t + stride - 1] == begin[t]
        ]
        out = []
        for h in range(kv_heads):
            pooled_k, pooled_v = [], []
            for _, t in blocks:
                weights = logits[b, h, t : t + stride].softmax(0)
                pooled_k.append((weights[:, None] * k[b, h, t : t + stride]).sum(0))
                pooled_v.append((weights[:, None] * v[b, h, t : t + stride]).sum(0))
            keys = torch.cat((k[b, h], torch.stack(pooled_k))) if blocks else k[b, h]
            values = torch.cat((v[b, h], torch.stack(pooled_v))) if blocks else v[b, h]
            seen = torch.zeros(length, len(keys), dtype=torch.bool)
            for i in range(length):
                place = max(0, i - begin[i] - chunk + 1)
                low = begin[i] + place // stride * stride
                seen[i, low : i + 1] = True
                before = [n for n, (d, t) in enumerate(blocks) if d == begin[i] and t + stride <= low]
                fit = {
                    n: sum(float((q[b, i, h * group + g] @ keys[length + n]).detach()) for g in range(group))
                    for n in before
                }
                for n in before:
                    seen[i, length + n] = True
                for n in sorted(before, key=lambda n: (-fit[n], n))[:top_k]:
                    seen[i, blocks[n][1] : blocks[n][1] + stride] = True
            for g in range(group):
                scores = q[b, :, h * group + g] @ keys.T / width**0.5
                out.append(scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values)
        rows.append(torch.stack(out, 1))
    return torch.stack(rows)


def ours(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logits: Tensor,
    documents: Tensor | None,
    chunk: int,
    stride: int,
    top_k: int,
) -> Tensor:
    layout = layout_of(documents, q.shape[1], chunk, stride)
    keys, values = summaries(logits, k, v, layout)
    return hybrid_attention(q, k, v, keys, values, layout, top_k)


def tensors(
    seed: int, batch: int, length: int, kv_heads: int, group: int, width: int, dtype: torch.dtype
) -> list[Tensor]:
    r = torch.Generator().manual_seed(seed)
    shapes = [
        (batch, length, kv_heads * group, width),
        (batch, kv_heads, length, width),
        (batch, kv_heads, length, width),
        (batch, kv_heads, length),
    ]
    return [torch.randn(s, generator=r, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def documents_of(seed: int, batch: int, length: int) -> Tensor:
    """A few documents in each row, some of one token."""
    r = random.Random(seed)
    rows = []
    for _ in range(batch):
        cuts = sorted(r.sample(range(length), min(length, r.randint(0, 4))))
        rows.append([sum(c <= i for c in cuts) for i in range(length)])
    return torch.tensor(rows)


def compare(given_: list[Tensor], documents: Tensor | None, exact: float, slope: float, *how: int) -> None:
    """Forward within `exact`, gradients within `slope`, both relative to the greatest number where that is above 1."""
    known = documents if documents is not None else torch.zeros(given_[0].shape[:2])
    found, expected = ours(*given_, documents, *how), dense(*given_, known, *how)
    assert (found - expected).abs().max() <= exact * max(1.0, float(expected.detach().abs().max()))
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected.dtype)
    a = torch.autograd.grad((found * weight).sum(), given_)
    b = torch.autograd.grad((expected * weight).sum(), given_, allow_unused=True)
    for one, other in zip(a, b, strict=True):
        other = torch.zeros_like(one) if other is None else other
        assert torch.isfinite(one).all()
        assert (one - other).norm() <= slope * max(float(other.norm()), 1e-3)


CASES = [
    # batch, length, key-value heads, group, width, chunk, stride, top_k
    (1, 64, 1, 1, 8, 8, 4, 2),
    (2, 61, 2, 3, 6, 7, 5, 1),
    (1, 53, 1, 4, 16, 16, 8, 3),
    (3, 40, 2, 1, 4, 1, 1, 4),
    (2, 47, 1, 2, 8, 5, 3, 100),
    (1, 30, 2, 2, 8, 64, 4, 2),
    (1, 33, 1, 2, 4, 3, 40, 2),
    (2, 70, 1, 2, 8, 20, 6, 2),
]


@pytest.mark.parametrize("held", [1 << 19, 64])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("batch", "length", "kv", "group", "width", "chunk", "stride", "top_k"), CASES)
def test_parts_equal_the_dense_definition(
    batch: int,
    length: int,
    kv: int,
    group: int,
    width: int,
    chunk: int,
    stride: int,
    top_k: int,
    packed: bool,
    held: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one tile, and in many small ones."""
    monkeypatch.setitem(summaries_module._SCORES, "cpu", held)
    documents = documents_of(length, batch, length) if packed else None
    bounds = ((torch.float32, 1e-5, 1e-4), (torch.float64, 1e-13, 1e-12))
    for dtype, exact, slope in bounds if held > 64 else bounds[1:]:
        given_ = tensors(length, batch, length, kv, group, width, dtype)
        compare(given_, documents, exact, slope, chunk, stride, top_k)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6), batch=st.integers(1, 3), length=st.integers(1, 45), kv=st.integers(1, 2),
    group=st.integers(1, 3), chunk=st.integers(1, 50), stride=st.integers(1, 12), top_k=st.integers(1, 6),
    packed=st.booleans(), held=st.sampled_from([64, 1000, 1 << 19]),
)  # fmt: skip
def test_random_shapes_equal_the_dense_definition(
    seed: int,
    batch: int,
    length: int,
    kv: int,
    group: int,
    chunk: int,
    stride: int,
    top_k: int,
    packed: bool,
    held: int,
) -> None:
    documents = documents_of(seed, batch, length) if packed else None
    given_ = tensors(seed, batch, length, kv, group, 4, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(summaries_module._SCORES, "cpu", held)
        compare(given_, documents, 1e-12, 1e-10, chunk, stride, top_k)


def test_equal_scores_go_to_the_first_blocks() -> None:
    """Queries of zeros: all summaries fit equally well."""
    given_ = tensors(3, 1, 40, 1, 2, 4, torch.float64)
    with torch.no_grad():
        given_[0].zero_()
    compare(given_, None, 1e-13, 1e-12, 4, 4, 3)


def test_extreme_scores_stay_finite() -> None:
    """Scores of several hundreds, where exp overflows in fp32."""
    given_ = tensors(4, 2, 50, 1, 2, 8, torch.float32)
    with torch.no_grad():
        given_[0].mul_(60.0)
    y = ours(*given_, None, 6, 4, 2)
    grads = torch.autograd.grad(y.sum(), given_)
    expected = dense(*given_, torch.zeros(2, 50), 6, 4, 2)
    assert (y - expected).abs().max() <= 1e-4
    assert all(torch.isfinite(t).all() for t in (y, *grads))


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_stays_within_its_rounding(autocast: bool) -> None:
    """Inputs, output and gradients carry 8 bits; sums are fp32. Bound: 1% of the norm forward, 2% backward, over the
    definition in fp64 from the same rounded inputs, on which both choose blocks."""
    given_ = [t.detach().bfloat16().requires_grad_() for t in tensors(5, 2, 90, 2, 2, 16, torch.float32)]
    exact = [t.detach().double().requires_grad_() for t in given_]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = ours(*given_, None, 12, 8, 100)
        grads = torch.autograd.grad(found.float().square().sum(), given_)
    expected = dense(*exact, torch.zeros(2, 90), 12, 8, 100)
    assert (found.double() - expected).norm() <= 1e-2 * expected.norm()
    for one, other in zip(grads, torch.autograd.grad(expected.square().sum(), exact)):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).norm() <= 2e-2 * other.norm()


# ---------------------------------------------------------------- over ranks


def test_ring_order_meets_each_shard_once() -> None:
    assert ring_order(1, 4) == [1, 0, 3, 2]
    for size in range(1, 5):
        orders = [ring_order(rank, size) for rank in range(size)]
        assert all(sorted(step) == list(range(size)) for step in zip(*orders))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_shards_in_ring_order_equal_the_whole(ranks: int, packed: bool) -> None:
    """Shards of unequal length that cut blocks apart."""
    length, chunk, stride, top_k = 59, 11, 5, 2
    documents = documents_of(ranks, 2, length) if packed else None
    leaves = tensors(ranks, 2, length, 2, 2, 6, torch.float64)
    whole = ours(*leaves, documents, chunk, stride, top_k)
    weight = torch.randn_like(whole)
    expected = torch.autograd.grad((whole * weight).sum(), leaves)

    q, k, v, logits = leaves
    layout = layout_of(documents, length, chunk, stride)
    bases = [0, *sorted(random.Random(ranks).sample(range(1, length), ranks - 1)), length]
    spans = [slice(a, b) for a, b in itertools.pairwise(bases)]
    shards = [shard_summaries(logits[:, :, s], k[:, :, s], v[:, :, s], layout, s.start) for s in spans]
    keys, values = merged_summaries(shards)
    found = [torch.zeros_like(t) for t in leaves]
    shares = [torch.zeros_like(keys), torch.zeros_like(values)]
    for rank, own in enumerate(spans):
        part = Rank(q[:, own], keys, values, layout.part(own.start, own.stop), top_k)
        order = [spans[i] for i in ring_order(rank, ranks)]
        for s in order:
            part.see(k[:, :, s], v[:, :, s], s.start)
        torch.testing.assert_close(part.output(), whole[:, own], rtol=0, atol=1e-12)
        part.begin_backward(weight[:, own])
        for s in order:
            for target, new in zip(found[1:3], part.back(k[:, :, s], v[:, :, s], s.start)):
                target[:, :, s] += new
        found[0][:, own], *more = part.end_backward()
        for share, new in zip(shares, more):
            share += new
    through = torch.autograd.grad((keys, values), leaves[1:], shares)
    for one, new in zip(found[1:], through):
        one += new
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Keys and values travel by send and receive, forward and backward."""
    given_ = tensors(9, 2, 61, 1, 2, 8, torch.float64)
    whole = ours(*given_, None, 10, 6, 2)
    weight = torch.randn_like(whole)
    grads = torch.autograd.grad((whole * weight).sum(), given_)
    asked = [t.detach() for t in (*given_, weight)]
    torch.save({"tensors": asked, "how": (10, 6, 2), "cuts": [0, 29, 61]}, tmp_path / "asked")
    program = Path(__file__).with_name("hybrid_helpers.py")
    subprocess.run([sys.executable, str(program), str(tmp_path)], check=True, timeout=300)
    parts = [torch.load(tmp_path / f"rank{rank}") for rank in range(2)]
    for i, (expected, axis) in enumerate(zip((whole, *grads), (1, 1, 2, 2, 2))):
        found = torch.cat([part[i] for part in parts], axis)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-11)
