"""Packing, mixing and resuming: nothing lost, nothing twice, nothing across documents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.data.batch import IGNORE, Batch
from ikirere.data.loader import LoaderPhase, PackedLoader
from ikirere.data.mixture import Schedule
from ikirere.data.shards import Shard
from ikirere.errors import UserError

EXAMPLES = settings(max_examples=50, deadline=None)


def numbered(lengths: list[int], first: int = 0) -> Shard:
    """A shard whose token at place p of the data is first + p: each token is told from all others."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Shard(np.arange(first, first + offsets[-1], dtype=np.uint32), offsets, np.array(lengths))


def same(a: Batch, b: Batch) -> bool:
    ids = (a.document_ids is None) == (b.document_ids is None)
    if a.document_ids is not None and b.document_ids is not None:
        ids = torch.equal(a.document_ids, b.document_ids)
    return ids and all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("tokens", "labels", "positions"))


def with_ids(batch: Batch) -> torch.Tensor:
    return torch.zeros_like(batch.tokens) if batch.document_ids is None else batch.document_ids


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=25)


@EXAMPLES
@given(lengths, st.integers(1, 24), st.integers(1, 5), st.integers(1, 30), st.integers(0, 99))
def test_every_token_once_per_epoch(
    lengths: list[int], length: int, batch: int, steps: int, seed: int
) -> None:
    shard = numbered(lengths)
    loader = PackedLoader({"a": shard}, [LoaderPhase(steps, length, batch, {"a": 1.0})], seed)
    seen = torch.cat([b.tokens.flatten() for b in loader])
    counts = np.bincount(seen.numpy(), minlength=shard.total_tokens)
    epochs = len(seen) // shard.total_tokens
    assert set(counts.tolist()) <= {epochs, epochs + 1}
    if len(seen) % shard.total_tokens == 0:
        assert set(counts.tolist()) == {epochs}


@EXAMPLES
@given(lengths, st.lists(st.integers(1, 24), min_size=1, max_size=3), st.integers(0, 99))
def test_phases_continue_one_stream(lengths: list[int], row_lengths: list[int], seed: int) -> None:
    """Also across phases of other lengths, only the epoch's remainder is left over, not a row more."""
    shard = numbered(lengths)
    phases = [LoaderPhase(3, length, 2, {"a": 1.0}) for length in row_lengths]
    seen = torch.cat([b.tokens.flatten() for b in PackedLoader({"a": shard}, phases, seed)])
    counts = np.bincount(seen.numpy(), minlength=shard.total_tokens)
    assert counts.max() - counts.min() <= 1


@EXAMPLES
@given(lengths, st.integers(1, 30), st.integers(0, 99))
def test_labels_positions_and_ids_follow_documents(lengths: list[int], length: int, seed: int) -> None:
    shard = numbered(lengths)
    last = shard.offsets[1:] - 1
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for batch in PackedLoader({"a": shard}, [LoaderPhase(4, length, 3, {"a": 1.0})], seed):
        tokens, labels = batch.tokens.numpy(), batch.labels.numpy()
        assert (labels == np.where(np.isin(tokens, last), IGNORE, tokens + 1)).all()
        assert batch.tokens_used == int((~np.isin(tokens, last)).sum())
        ids, positions = with_ids(batch).numpy(), batch.positions.numpy()
        assert (ids[:, 0] == 0).all() and (positions[:, 0] == 0).all()
        step = np.diff(ids, axis=1)
        assert set(np.unique(step)) <= {0, 1}
        moved = tokens[:, 1:] != tokens[:, :-1] + 1
        assert (step[moved] == 1).all()
        assert (document_of[tokens[:, 1:]] == document_of[tokens[:, :-1]])[step == 0].all()
        assert (positions[:, 1:] == np.where(step == 1, 0, positions[:, :-1] + 1)).all()


two = {"code": numbered([7, 30, 1, 12, 50, 9]), "docs": numbered([3, 3, 80, 5, 20], first=1000)}
curriculum = [
    LoaderPhase(5, 16, 4, {"code": 0.7, "docs": 0.3}),
    LoaderPhase(4, 33, 2, {"code": 0.2, "docs": 0.8}),
    LoaderPhase(3, 8, 6, {"docs": 1.0}, long_fraction=0.5),
]


@EXAMPLES
@given(st.integers(0, 12), st.integers(0, 99))
def test_resume_at_any_step(step: int, seed: int) -> None:
    whole = list(PackedLoader(two, curriculum, seed))
    assert len(whole) == 12
    first = PackedLoader(two, curriculum, seed)
    for _ in range(step):
        first.next()
    second = PackedLoader(two, curriculum, seed)
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert len(rest) == 12 - step
    assert all(same(a, b) for a, b in zip(whole[step:], rest))


@EXAMPLES
@given(st.integers(0, 99), st.integers(0, 11))
def test_ranks_share_one_global_batch(seed: int, step: int) -> None:
    whole = PackedLoader(two, curriculum, seed).at(step)
    parts = [PackedLoader(two, curriculum, seed, rank, 2).at(step) for rank in range(2)]
    for name in ("tokens", "labels", "positions"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
    assert torch.equal(torch.cat([with_ids(p) for p in parts]), with_ids(whole))


def test_resume_on_other_ranks() -> None:
    one = PackedLoader(two, curriculum, 3)
    one.next()
    half = PackedLoader(two, curriculum, 3, rank=1, world=2)
    half.load_state_dict(one.state_dict())
    assert torch.equal(half.next().tokens, one.next().tokens[2:])


@EXAMPLES
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), st.integers(0, 3000), st.integers(1, 64))
def test_mixture_keeps_to_its_weights(weights: list[float], start: int, size: int) -> None:
    schedule = Schedule(weights)
    share = np.array(weights) / sum(weights)
    domain, ordinal = schedule.rows(start, start + size)
    before, after = schedule.counts(start), schedule.counts(start + size)
    assert before.sum() == start and after.sum() == start + size
    assert (before + np.bincount(domain, minlength=len(weights)) == after).all()
    for d in range(len(weights)):
        assert ordinal[domain == d].tolist() == list(range(before[d], after[d]))
    bound = 0.5 + share * len(weights) / 2 + 1e-6
    assert (np.abs(after - share * (start + size)) <= bound).all()


def test_mixture_within_a_batch() -> None:
    for batch in PackedLoader(two, [LoaderPhase(20, 16, 10, {"code": 0.7, "docs": 0.3})], 0):
        assert int((batch.tokens[:, 0] < 1000).sum()) == 7


def test_long_fraction_draws_long_documents() -> None:
    shard = numbered([4] * 50 + [200] * 5)
    loader = PackedLoader({"a": shard}, [LoaderPhase(10, 64, 4, {"a": 1.0}, long_fraction=0.25)], 1)
    long_rows = sum(int((b.tokens >= 200).all(dim=1).sum()) for b in loader)
    assert long_rows == 10 and not loader.notes
    short = PackedLoader(
        {"a": numbered([4] * 50)}, [LoaderPhase(2, 64, 4, {"a": 1.0}, long_fraction=0.25)], 1
    )
    assert len(list(short)) == 2 and "no documents a>16" in short.notes[0]


def test_epochs_and_seeds_differ() -> None:
    shard = {"a": numbered([5] * 40)}
    phase = [LoaderPhase(10, 20, 10, {"a": 1.0})]  # ten epochs
    batches = [b.tokens for b in PackedLoader(shard, phase, 0)]
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], PackedLoader(shard, phase, 1).next().tokens)
    assert torch.equal(batches[0], PackedLoader(shard, phase, 0).next().tokens)


def test_single_document_rows_need_no_ids() -> None:
    batch = PackedLoader({"a": numbered([4000])}, [LoaderPhase(1, 8, 4, {"a": 1.0})], 0).next()
    assert batch.document_ids is None
    assert [len(b.tokens) for b in batch.split(3)] == [3, 1]
    assert torch.equal(torch.cat([b.labels for b in batch.to("cpu").split(3)]), batch.labels)


@pytest.mark.parametrize(
    ("phase", "world", "words"),
    [
        (
            LoaderPhase(1, 8, 2, {"prose": 1.0}),
            1,
            "mixture.prose: no training tokens; domains are code, docs",
        ),
        (LoaderPhase(1, 8, 2, {"code": 0.0}), 1, "no domain has a weight above 0"),
        (LoaderPhase(1, 8, 3, {"code": 1.0}), 2, "batch_size: 3 is not divisible by the 2 ranks"),
    ],
)
def test_mistakes_are_named(phase: LoaderPhase, world: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        PackedLoader(two, [phase], 0, world=world)


def test_state_of_other_data_is_refused() -> None:
    state = PackedLoader(two, curriculum, 3).state_dict()
    for other in (PackedLoader(two, curriculum, 4), PackedLoader(two, curriculum[:2], 3)):
        with pytest.raises(UserError, match="other shards, phases or another seed"):
            other.load_state_dict(state)
