"""Phases over changes of a recipe: what was trained stays what it was, nothing is left out, extensions extend."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikirere.errors import UserError
from ikirere.pretrain.curriculum import (
    CurriculumPhase,
    attention_of,
    phase_at,
    phases_of,
    spliced_phases,
    steps_of,
    theta_of,
)
from ikirere.tokens.batch import Batch
from ikirere.tokens.loader import PackedLoader
from ikirere.tokens.shards import Shard


def _shard(seed: int, multiple: int = 1) -> Shard:
    """Every token of it is another number."""
    lengths = np.random.default_rng(seed).integers(2, 40, 25)
    lengths[-1] += -int(lengths.sum()) % multiple
    starts = np.cumsum(lengths) + seed * 1000
    return Shard.from_documents([list(range(s - n, s)) for s, n in zip(starts.tolist(), lengths.tolist())])


SHARDS = {"a": _shard(1), "b": _shard(2)}
MIXTURES = ({"a": 1.0}, {"a": 0.5, "b": 0.5}, {"a": 0.25, "b": 0.75})

phase = st.builds(
    CurriculumPhase,
    steps=st.integers(1, 9),
    sequence_length=st.sampled_from([8, 16]),
    batch_size=st.sampled_from([2, 4]),
    mixture=st.sampled_from(MIXTURES),
    long_fraction=st.sampled_from([None, 0.5]),
    rope_theta=st.sampled_from([1e4, 5e4]),
    attention=st.sampled_from(["full", "hybrid"]),
)
recipe = st.lists(phase, min_size=1, max_size=3)
packing = st.sampled_from(["concatenate", "best-fit"])


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[int, list[CurriculumPhase]]], list[CurriculumPhase]]:
    """Up to three versions of a recipe, and the steps at which one took the place of the other."""
    versions = draw(st.lists(recipe, min_size=2, max_size=3))
    if draw(st.booleans()):  # only steps change
        grown = [
            CurriculumPhase(**{**vars(p), "steps": p.steps + draw(st.integers(0, 5))}) for p in versions[0]
        ]
        versions[1] = grown
    continued, step = [], 1
    for before, after in itertools.pairwise(versions):
        last = min(steps_of(before), steps_of(after))
        if step > last:
            break
        step = draw(st.integers(step, last))
        continued.append((step, before))
    return continued, versions[len(continued)]


def loader(phases: Sequence[CurriculumPhase], how: str) -> PackedLoader:
    return PackedLoader(SHARDS, phases, 3, packing=how)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.labels, b.labels)


@settings(max_examples=150, deadline=None)
@given(histories(), packing)
def test_up_to_each_change_the_batches_are_the_old_ones(history: Any, how: str) -> None:
    """And a position of then is one of the new sequence."""
    continued, phases = history
    for i, (step, before) in enumerate(continued):
        old = loader(spliced_phases(continued[:i], before), how)
        new = loader(spliced_phases(continued, phases), how)
        assert all(same(old.at(n), new.at(n)) for n in range(step))
        old.seek(step)
        new.load_state_dict(old.state_dict())
        assert new.step == step


@settings(max_examples=150, deadline=None)
@given(histories())
def test_steps_bases_and_patterns_are_those_of_the_version_in_force(history: Any) -> None:
    continued, phases = history
    run = spliced_phases(continued, phases)
    assert steps_of(run) == steps_of(phases)
    for done in range(steps_of(run)):
        version = next((before for step, before in continued if done < step), phases)
        there, wanted = phase_at(run, done), phase_at(version, done)
        assert (there.sequence_length, there.batch_size, there.mixture, there.long_fraction) == (
            wanted.sequence_length, wanted.batch_size, wanted.mixture, wanted.long_fraction,
        )  # fmt: skip
        assert theta_of(run)(done) == wanted.rope_theta
        assert attention_of(run)(done) == wanted.attention


@settings(max_examples=100, deadline=None)
@given(recipe, st.data(), packing)
def test_a_change_of_nothing_changes_nothing(
    phases: list[CurriculumPhase], data: st.DataObject, how: str
) -> None:
    step = data.draw(st.integers(1, steps_of(phases)))
    plain, run = loader(phases, how), loader(spliced_phases([(step, phases)], phases), how)
    assert all(same(plain.at(n), run.at(n)) for n in range(plain.steps))
    assert plain.fingerprint(plain.steps) == run.fingerprint(run.steps)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 20), st.sampled_from(MIXTURES[1:]))
def test_no_token_is_left_out_or_comes_again_before_all_were_seen(
    planned: int, after: int, cut: int, mixture: dict[str, float]
) -> None:
    """Over a change of the mixture in the middle of a phase, rows being of one length."""
    before = [CurriculumPhase(planned, 8, 4, {"a": 0.5, "b": 0.5})]
    step = min(planned, cut + 1)
    changed = [CurriculumPhase(step + after, 8, 4, mixture)]
    # No row spans two epochs.
    shards = {name: _shard(i, multiple=8) for i, name in enumerate("ab", 1)}
    run = PackedLoader(shards, spliced_phases([(step, before)], changed), 3)
    seen = Counter(torch.cat([run.at(n).tokens.flatten() for n in range(run.steps)]).tolist())
    for shard in shards.values():
        counts = {seen[token] for token in shard.data.tolist()}
        assert max(counts) - min(counts) <= 1
    assert sum(seen.values()) == run.steps * 32


def test_extending_a_finished_training_continues_where_its_data_ended() -> None:
    before = [CurriculumPhase(3, 8, 4, {"a": 1.0})]
    run = spliced_phases([(3, before)], [CurriculumPhase(10, 8, 4, {"a": 1.0})])
    assert run == [CurriculumPhase(10, 8, 4, {"a": 1.0}, layout=(3, 7))]
    data = loader(run, "concatenate")
    seen = torch.cat([data.at(n).tokens.flatten() for n in range(10)])
    assert len(set(seen.tolist())) == len(seen) < len(SHARDS["a"].data)


def test_an_extension_in_the_middle_keeps_the_rows_of_its_phase() -> None:
    before = [CurriculumPhase(6, 8, 4, {"a": 1.0}), CurriculumPhase(4, 16, 2, {"b": 1.0})]
    longer = [CurriculumPhase(9, 8, 4, {"a": 1.0}), CurriculumPhase(4, 16, 2, {"b": 1.0})]
    run = spliced_phases([(2, before)], longer)
    assert [(p.steps, p.layout) for p in run] == [(9, (6, 3)), (4, None)]
    old, new = loader(before, "concatenate"), loader(run, "concatenate")
    assert all(same(old.at(n), new.at(n)) for n in range(6))


def test_later_phases_may_change_and_earlier_ones_may_not() -> None:
    first, second = CurriculumPhase(4, 8, 4, {"a": 1.0}), CurriculumPhase(4, 16, 2, {"b": 1.0})
    data = loader([first, second], "concatenate")
    data.seek(4)
    state = data.state_dict()
    other = loader([first, CurriculumPhase(9, 8, 2, {"a": 1.0})], "concatenate")
    other.load_state_dict(state)
    assert other.step == 4
    data.seek(5)
    for phases in ([first, CurriculumPhase(9, 8, 2, {"a": 1.0})], [second, first]):
        with pytest.raises(UserError, match="other shards, phases or another seed"):
            loader(phases, "concatenate").load_state_dict(data.state_dict())


def test_a_state_of_an_earlier_version_loads_where_all_phases_are_equal() -> None:
    phases = [CurriculumPhase(4, 8, 4, {"a": 1.0})]
    data = loader(phases, "concatenate")
    data.load_state_dict(
        {"step": 2, "fingerprint": "f40502737623d0ea2806a9447c212b50f6eb204b92168104d0f11d1ecf518abf"}
    )
    assert data.step == 2


def test_phases_that_end_before_the_change_are_refused() -> None:
    before = [CurriculumPhase(6, 8, 4, {"a": 1.0})]
    with pytest.raises(UserError, match=r"pretrain\.phases: 3 steps in all, but 5 are made"):
        spliced_phases([(5, before)], [CurriculumPhase(3, 8, 4, {"a": 1.0})])


def test_bases_and_attention_that_a_phase_does_not_name() -> None:
    plain: dict[str, Any] = {"sequence_length": 32, "batch_size": 8, "mixture": {"code": 1}}
    phases = [
        {"steps": 2, "attention": "full", **plain},
        {"steps": 3, "rope_theta": 5e4, "attention": None, **plain},
        {"steps": 2, "rope_theta": None, **plain},
    ]
    made = phases_of(phases, 1e4, "hybrid")
    theta, attention = theta_of(made), attention_of(made)
    assert [theta(done) for done in range(8)] == [1e4, 1e4, 5e4, 5e4, 5e4, 5e4, 5e4, 5e4]
    assert [attention(done) for done in range(8)] == ["full"] * 2 + ["hybrid"] * 6
