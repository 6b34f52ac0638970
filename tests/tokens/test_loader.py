"""Packing, mixing and resuming: nothing lost, nothing twice, nothing across documents."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.errors import UserError
from ikirere.tokens.batch import IGNORE, Batch
from ikirere.tokens.loader import LoaderPhase, PackedLoader
from ikirere.tokens.mixture import Schedule
from ikirere.tokens.shards import Shard

EXAMPLES = settings(max_examples=50, deadline=None)
PACKINGS = ("concatenate", "best-fit")
packings = st.sampled_from(PACKINGS)


def numbered(lengths: list[int], first: int = 0) -> Shard:
    """A shard whose token at index p of the data is first + p: each token differs from all others."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Shard(np.arange(first, first + offsets[-1], dtype=np.uint32), offsets, np.array(lengths))


def same(a: Batch, b: Batch) -> bool:
    ids = (a.document_ids is None) == (b.document_ids is None)
    if a.document_ids is not None and b.document_ids is not None:
        ids = torch.equal(a.document_ids, b.document_ids)
    names = ("tokens", "labels", "positions", "cu_seqlens")
    return (
        ids and a.max_seqlen == b.max_seqlen and all(torch.equal(getattr(a, k), getattr(b, k)) for k in names)
    )


def with_ids(batch: Batch) -> torch.Tensor:
    return torch.zeros_like(batch.tokens) if batch.document_ids is None else batch.document_ids


def real(batch: Batch) -> torch.Tensor:
    """Tokens that are not padding, [n]."""
    return batch.tokens[with_ids(batch) >= 0]


def together(parts: list[Batch]) -> Batch:
    """The global batch of the ranks' batches."""
    ids = torch.cat([with_ids(part) for part in parts])
    names = ("tokens", "labels", "positions")
    columns = [torch.cat([getattr(part, name) for part in parts]) for name in names]
    return Batch(*columns, ids if bool(ids.any()) else None)


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=25)


@EXAMPLES
@given(packings, lengths, st.integers(1, 24), st.integers(1, 5), st.integers(1, 30), st.integers(0, 99))
def test_every_token_once_per_epoch(
    packing: str, lengths: list[int], length: int, batch: int, steps: int, seed: int
) -> None:
    shard = numbered(lengths)
    loader = PackedLoader(
        {"a": shard}, [LoaderPhase(steps, length, batch, {"a": 1.0})], seed, packing=packing
    )
    seen = torch.cat([real(b) for b in loader])
    counts = np.bincount(seen.numpy(), minlength=shard.total_tokens)
    epochs = len(seen) // shard.total_tokens
    assert set(counts.tolist()) <= {epochs, epochs + 1}
    if len(seen) % shard.total_tokens == 0:
        assert set(counts.tolist()) == {epochs}
    total = steps * length * batch
    assert len(seen) == total or (packing == "best-fit" and len(seen) < total)
    assert loader.full == len(seen) / total
    if loader.full < 0.99:
        assert f"are {loader.full:.1%} full" in loader.notes[0]


@EXAMPLES
@given(packings, lengths, st.lists(st.integers(1, 24), min_size=1, max_size=3), st.integers(0, 99))
def test_phases_continue_one_stream(
    packing: str, lengths: list[int], row_lengths: list[int], seed: int
) -> None:
    """Also across phases of other lengths, only the epoch's remainder is left over, not a row more."""
    shard = numbered(lengths)
    phases = [LoaderPhase(3, length, 2, {"a": 1.0}) for length in row_lengths]
    loader = PackedLoader({"a": shard}, phases, seed, packing=packing)
    seen = torch.cat([real(b) for b in loader])
    counts = np.bincount(seen.numpy(), minlength=shard.total_tokens)
    assert counts.max() - counts.min() <= 1


@EXAMPLES
@given(packings, lengths, st.integers(1, 30), st.integers(0, 99))
def test_labels_positions_and_ids_follow_documents(
    packing: str, lengths: list[int], length: int, seed: int
) -> None:
    shard = numbered(lengths)
    last = shard.offsets[1:] - 1
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    phases = [LoaderPhase(4, length, 3, {"a": 1.0})]
    for batch in PackedLoader({"a": shard}, phases, seed, packing=packing):
        tokens, labels = batch.tokens.numpy(), batch.labels.numpy()
        ids, positions = with_ids(batch).numpy(), batch.positions.numpy()
        padding = ids < 0
        assert (labels == np.where(np.isin(tokens, last) | padding, IGNORE, tokens + 1)).all()
        assert batch.tokens_used == int((~np.isin(tokens, last) & ~padding).sum())
        assert (ids[:, 0] == 0).all() and (positions[:, 0] == 0).all()
        assert (tokens[padding] == 0).all() and (np.diff(padding.astype(int), axis=1) >= 0).all()
        step = np.diff(ids, axis=1)
        inner = ~padding[:, 1:]
        assert set(np.unique(step[inner])) <= {0, 1}
        moved = (tokens[:, 1:] != tokens[:, :-1] + 1) & inner
        assert (step[moved] == 1).all()
        assert (document_of[tokens[:, 1:]] == document_of[tokens[:, :-1]])[(step == 0) & inner].all()
        assert (positions[:, 1:] == np.where(step == 0, positions[:, :-1] + 1, 0)).all()
        if packing == "best-fit":
            for row, documents, begin in zip(tokens, ids, positions):
                starts = np.flatnonzero((begin == 0) & (documents >= 0))
                of = document_of[row[starts]]
                short = np.array(lengths)[of] <= length
                # Only what is longer than a row begins elsewhere than at its beginning.
                assert (row[starts] == shard.offsets[of])[short].all()
                assert np.isin(row[np.append(starts[1:], (documents >= 0).sum()) - 1], last)[short].all()


@EXAMPLES
@given(packings, lengths, st.integers(1, 30), st.integers(1, 4))
def test_bounds_of_documents(packing: str, lengths: list[int], length: int, micro: int) -> None:
    phases = [LoaderPhase(2, length, 4, {"a": 1.0})]
    for batch in PackedLoader({"a": numbered(lengths)}, phases, 0, packing=packing):
        positions = batch.positions.flatten().tolist()
        expected = [i for i, position in enumerate(positions) if position == 0] + [len(positions)]
        assert batch.cu_seqlens.dtype == torch.int32 and batch.cu_seqlens.tolist() == expected
        assert batch.max_seqlen == max(np.diff(expected))
        for part in [*batch.split(micro), *batch.to("cpu").split(micro)]:
            anew = Batch(part.tokens, part.labels, part.positions, part.document_ids)
            assert part.bounds is not None and anew.bounds is None and same(part, anew)


two = {"code": numbered([7, 30, 1, 12, 50, 9]), "docs": numbered([3, 3, 80, 5, 20], first=1000)}
curriculum = [
    LoaderPhase(5, 16, 4, {"code": 0.7, "docs": 0.3}),
    LoaderPhase(4, 33, 2, {"code": 0.2, "docs": 0.8}),
    LoaderPhase(3, 8, 6, {"docs": 1.0}, long_fraction=0.5),
]


shards = st.fixed_dictionaries({"code": lengths, "docs": lengths})
phases = st.lists(
    st.builds(
        LoaderPhase,
        steps=st.integers(1, 5),
        sequence_length=st.integers(1, 40),
        batch_size=st.sampled_from([4, 8]),
        mixture=st.fixed_dictionaries({"code": st.floats(0.05, 1.0), "docs": st.floats(0.05, 1.0)}),
        long_fraction=st.sampled_from([None, 0.0, 0.3, 1.0]),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=30, deadline=None)
@given(packings, shards, phases, st.integers(0, 99), st.lists(st.sampled_from([1, 2, 4]), min_size=15))
def test_any_ranks_at_any_step_give_the_same_batches(
    packing: str, drawn: dict[str, list[int]], phases: list[LoaderPhase], seed: int, worlds: list[int]
) -> None:
    """Before every step all ranks are stopped, and another number of them continues from the state."""
    data = {name: numbered(lengths, 5000 * i) for i, (name, lengths) in enumerate(drawn.items())}

    def ranks(world: int) -> list[PackedLoader]:
        return [PackedLoader(data, phases, seed, rank, world, packing) for rank in range(world)]

    whole = list(ranks(1)[0])
    assert len(whole) == sum(phase.steps for phase in phases)
    for world in (2, 4):
        parts = [together(list(step)) for step in zip(*ranks(world), strict=True)]
        assert len(parts) == len(whole) and all(map(same, parts, whole))
    state = ranks(1)[0].state_dict()
    for expected, world in zip(whole, worlds):
        group = ranks(world)
        for loader in group:
            loader.load_state_dict(json.loads(json.dumps(state)))
        assert same(together([loader.next() for loader in group]), expected)
        state = group[0].state_dict()
        assert all(loader.state_dict() == state for loader in group)


@EXAMPLES
@given(packings, shards, phases, st.integers(0, 99), st.data())
def test_resume_at_any_step(
    packing: str, drawn: dict[str, list[int]], phases: list[LoaderPhase], seed: int, data: st.DataObject
) -> None:
    data_of = {name: numbered(lengths, 5000 * i) for i, (name, lengths) in enumerate(drawn.items())}
    whole = list(PackedLoader(data_of, phases, seed, packing=packing))
    step = data.draw(st.integers(0, len(whole)))
    first = PackedLoader(data_of, phases, seed, packing=packing)
    for _ in range(step):
        first.next()
    second = PackedLoader(data_of, phases, seed, packing=packing)
    second.load_state_dict(first.state_dict())
    assert all(same(a, b) for a, b in zip(whole[step:], second, strict=True))


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_far_apart_are_found_alike(packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are located at once, and whichever step is asked for first."""
    steps = [11, 0, 7, 4, 5, 9, 2, 10, 3, 8, 1, 6]
    one = PackedLoader(two, curriculum, 3, packing=packing)
    wide = [one.at(step) for step in steps]
    monkeypatch.setattr("ikirere.tokens.loader.AHEAD", 200)
    other = PackedLoader(two, curriculum, 3, packing=packing)
    assert all(same(other.at(step), batch) for step, batch in zip(steps, wide))


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


@pytest.mark.parametrize("packing", PACKINGS)
def test_mixture_within_a_batch(packing: str) -> None:
    phases = [LoaderPhase(20, 16, 10, {"code": 0.7, "docs": 0.3})]
    for batch in PackedLoader(two, phases, 0, packing=packing):
        assert int((batch.tokens[:, 0] < 1000).sum()) == 7


@pytest.mark.parametrize("packing", PACKINGS)
def test_long_fraction_draws_long_documents(packing: str) -> None:
    shard = numbered([4] * 50 + [200] * 5)
    phase = [LoaderPhase(10, 64, 4, {"a": 1.0}, long_fraction=0.25)]
    loader = PackedLoader({"a": shard}, phase, 1, packing=packing)
    long_rows = sum(int(((b.tokens >= 200) | (with_ids(b) < 0)).all(dim=1).sum()) for b in loader)
    assert long_rows == 10 and not [note for note in loader.notes if "long_fraction" in note]
    short = PackedLoader(
        {"a": numbered([4] * 50)}, [LoaderPhase(2, 64, 4, {"a": 1.0}, long_fraction=0.25)], 1, packing=packing
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


def test_unknown_packing_is_named() -> None:
    with pytest.raises(UserError, match=r"pretrain.packing: 'tight' .* concatenate, best-fit"):
        PackedLoader(two, curriculum, 0, packing="tight")


def test_state_of_other_data_is_refused() -> None:
    loader = PackedLoader(two, curriculum, 3)
    loader.seek(loader.steps)
    state = loader.state_dict()
    for other in (
        PackedLoader(two, curriculum, 4),
        PackedLoader(two, curriculum[:2], 3),
        PackedLoader(two, curriculum, 3, packing="best-fit"),
    ):
        with pytest.raises(UserError, match="other shards, phases or another seed"):
            other.load_state_dict(state)
