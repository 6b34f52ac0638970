"""Deep supervision: stablemax, halting, carried answers, the moving average, and an exact resume."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ikirere.errors import UserError
from ikirere.model.build import build_model
from ikirere.model.config import ModelConfig
from ikirere.model.recursive import RecursiveModel
from ikirere.recipe.sections import Optimizer, Schedule, Training
from ikirere.tokens.batch import Batch
from ikirere.tokens.infilling import Example
from ikirere.train.loop import train
from ikirere.train.optimiser import sort_weights
from ikirere.train.recursion import CarriedRows, DeepSupervision, RecursiveTrainer
from ikirere.train.stablemax import log_stablemax, stablemax_nats

LENGTH = 10


class Stretch:
    def __init__(self, steps: int, sequence_length: int, batch_size: int) -> None:
        self.steps, self.sequence_length, self.batch_size = steps, sequence_length, batch_size


PHASES = [Stretch(7, LENGTH, 6), Stretch(6, 6, 4)]


class Sums:
    """Rows of digits whose labels are the digits in reverse; odd ones end in padding."""

    def fingerprint(self, begun: int) -> str:
        return "sums"

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def example(self, phase: int, number: int) -> Example:
        self.asked.append((phase, number))
        length = PHASES[phase].sequence_length
        generator = torch.Generator().manual_seed(100 * phase + number)
        tokens = torch.randint(0, 9, (length,), generator=generator)
        labels = tokens.flip(0).clone()
        labels[: length // 2] = -100
        if number % 2 == 0:
            return Example(tokens, labels)
        ids = torch.zeros_like(tokens)
        ids[-2:], labels[-2:] = -1, -100
        return Example(tokens, labels, ids)


def network(steps: int = 3, ema: float = 0.9) -> RecursiveModel:
    recursion = {"inner_updates": 1, "cycles": 2, "supervision_steps": steps, "puzzle_tokens": 2, "ema": ema}
    mixers = {"recursive": recursion, "kda": {"head_dim": 8, "chunk_size": 16}}
    model = build_model(
        ModelConfig(9, 16, 2, 2, 2, 24, LENGTH, layer_pattern="kda full", mixers=mixers, family="recursive")
    )
    assert isinstance(model, RecursiveModel)
    return model


def parts(rank: int = 0, world: int = 1) -> tuple[RecursiveTrainer, CarriedRows]:
    trainer = RecursiveTrainer(network(), 6 // world, LENGTH, rank)
    return trainer, CarriedRows(Sums(), PHASES, trainer.halted, 3, 0.3, 3, rank, world)


def settings(**changes: Any) -> Training:
    values: dict[str, Any] = {
        "optimizer": Optimizer(name="adamw", lr=0.01),
        "schedule": Schedule(warmup=2),
        "checkpoint_every": 4,
        "log_every": 2,
        "precision": "fp32",
        "micro_batch_size": 4,
    }
    return Training(**{**values, **changes})


def run(
    folder: Path, trainer: RecursiveTrainer, source: CarriedRows, objective: Any = None, **changes: Any
) -> None:
    train(trainer, source, objective or DeepSupervision(), settings(**changes), 13, folder, 5)


# ---------------------------------------------------------------- stablemax


def test_stablemax_is_its_definition() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, -3.0]], requires_grad=True)
    s = torch.tensor([3.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    assert torch.allclose(log_stablemax(logits).exp(), (s / s.sum())[None])
    assert log_stablemax(logits.half()).dtype == torch.float64
    assert torch.autograd.gradcheck(
        log_stablemax, (torch.randn(3, 5, dtype=torch.float64, requires_grad=True),)
    )


def test_stablemax_is_finite_far_out() -> None:
    logits = torch.tensor([[1e30, -1e30, 0.0]], requires_grad=True)
    loss = stablemax_nats(logits, torch.tensor([1])).sum()
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None and logits.grad.isfinite().all()


# ---------------------------------------------------------------- halting and carrying


def stepped(trainer: RecursiveTrainer, batch: Batch) -> Mapping[str, Tensor]:
    _, scalars = DeepSupervision()(trainer, batch)
    trainer.after_step()
    return scalars


def test_rows_halt_where_q_says_so_and_at_the_last_step() -> None:
    trainer, source = parts()
    with torch.no_grad():
        trainer.network.halt_head.bias.fill_(1.0)  # q > 0 everywhere: only exploration holds rows back
    batch = source.next()
    least = batch.extras["least"]
    assert batch.extras["fresh"].all()
    assert {1, 2, 3} >= set(least.tolist()) and least.max() > 1
    stepped(trainer, batch)
    assert trainer.halted().tolist() == (least <= 1).tolist()
    held = list(source.held)
    again = source.next()
    assert again.extras["fresh"].tolist() == (least <= 1).tolist()
    kept = ~again.extras["fresh"]
    assert torch.equal(again.tokens[kept], batch.tokens[kept])
    assert [a == b for a, b in zip(held, source.held)] == kept.tolist()
    with torch.no_grad():
        trainer.network.halt_head.bias.fill_(-5.0)  # never: the last step ends it
    counts = []
    for _ in range(4):
        stepped(trainer, again)
        counts.append(trainer.carried("steps").tolist())
        again = source.next()
    assert max(map(max, counts)) == 3


def test_exploration_holds_back_the_share_that_it_should() -> None:
    source = CarriedRows(Sums(), [Stretch(1, LENGTH, 3000)], lambda: torch.ones(3000), 1, 0.1, 16)
    PHASES[0].sequence_length = LENGTH
    least = source.next().extras["least"]
    longer = least[least > 1]
    assert len(longer) / 3000 == pytest.approx(0.1, abs=0.02)
    assert (int(longer.min()), int(longer.max())) == (2, 16)
    assert longer.double().mean() == pytest.approx(9, abs=0.8)


def test_carried_answers_are_those_of_the_whole_evaluation() -> None:
    """Three training steps from the same weights come to what `forward` makes of the rows in three."""
    trainer, source = parts()
    batch = source.next()
    every = trainer.network(batch.tokens, batch.document_ids, all_steps=True)
    for step in range(3):
        batch.extras["fresh"] = torch.full((6,), step == 0)
        for part in batch.split(4):
            DeepSupervision()(trainer, part)
        trainer.after_step()
        logits = trainer.network.logits(trainer.carried("y"))
        real = batch.document_ids == 0 if batch.document_ids is not None else slice(None)
        assert (logits - every.logits[step])[real].abs().max() < 1e-5
        assert trainer.carried("steps").tolist() == [step + 1] * 6


def test_nothing_moves_before_the_step_is_done() -> None:
    trainer, source = parts()
    before = {name: value.clone() for name, value in trainer.state_dict().items()}
    DeepSupervision()(trainer, source.next())[0].backward()
    assert all(torch.equal(value, before[name]) for name, value in trainer.state_dict().items())
    trainer.after_step()
    assert not torch.equal(trainer.carried("y"), before["carried_y_0"])


def test_the_average_follows_the_weights() -> None:
    trainer, _ = parts()
    with torch.no_grad():
        for p in trainer.network.parameters():
            p.add_(1.0)
    before = {name: p.clone() for name, p in trainer.ema.named_parameters()}
    trainer.after_step()
    for name, p in trainer.ema.named_parameters():
        assert torch.allclose(p, before[name] + 0.1, atol=1e-6), name
    assert not any(p.requires_grad for p in trainer.ema.parameters())
    sorted_weights = [p for part in sort_weights(trainer) for p in part]
    assert {id(p) for p in sorted_weights} == {id(p) for p in trainer.network.parameters()}


def test_phases_begin_with_new_rows_of_their_length() -> None:
    trainer, source = parts()
    lengths = []
    for step in range(13):
        batch = source.next()
        lengths.append((len(batch.tokens), batch.tokens.shape[1]))
        if step in (0, 7):
            assert batch.extras["fresh"].all()
            assert source.held == list(range(len(batch.tokens)))
        stepped(trainer, batch)
    assert lengths == [(6, 10)] * 7 + [(4, 6)] * 6
    with pytest.raises(StopIteration):
        source.next()


# ---------------------------------------------------------------- resuming


def same(a: RecursiveTrainer, b: RecursiveTrainer) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


class Breaking(DeepSupervision):
    """Stops in the middle of a step, at the so-many-th micro-batch."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.left, self.error = at, error

    def __call__(self, trainer: RecursiveTrainer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        found = super().__call__(trainer, batch)
        self.left -= 1
        if not self.left:
            raise self.error
        return found


Whole = tuple[Path, RecursiveTrainer, CarriedRows]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    trainer, source = parts()
    folder = tmp_path_factory.mktemp("unbroken")
    run(folder, trainer, source)
    return folder, trainer, source


# Two micro-batches per step in the first phase, one in the second.
@pytest.mark.parametrize(("at", "error"), [(13, KeyboardInterrupt), (18, RuntimeError)])
def test_a_broken_run_goes_on_with_the_same_bits(
    tmp_path: Path, unbroken: Whole, at: int, error: type[BaseException]
) -> None:
    folder, whole, source = unbroken
    trainer, rows = parts()
    with pytest.raises(error):
        run(tmp_path, trainer, rows, Breaking(at, error))
    trainer, rows = parts()
    run(tmp_path, trainer, rows)
    same(whole, trainer)
    assert rows.state_dict() == source.state_dict()
    logs = [
        [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        for path in (folder, tmp_path)
    ]
    for a, b in zip(*logs, strict=True):
        assert {k: v for k, v in a.items() if "second" not in k} == {
            k: v for k, v in b.items() if "second" not in k
        }


def test_the_first_look_disturbs_nothing(tmp_path: Path, unbroken: Whole) -> None:
    """The loop calls the objective before the first step where it might compile."""
    looked, rows = parts()
    position = rows.state_dict()
    part = next(iter(rows.next().split(4)))
    rows.load_state_dict(position)
    DeepSupervision()(looked, part)[0].backward()
    looked.zero_grad(set_to_none=True)
    run(tmp_path, looked, rows)
    same(unbroken[1], looked)


def test_other_ways_to_the_same_gradient(tmp_path: Path, unbroken: Whole) -> None:
    other, rows = parts()
    run(tmp_path, other, rows, activation_checkpointing=True, micro_batch_size=None)
    for name, p in unbroken[1].network.named_parameters():
        assert torch.allclose(p, other.network.get_parameter(name), atol=1e-4), name


def test_half_precision_keeps_fp64_losses_and_full_states() -> None:
    trainer, source = parts()
    for part in (p for _ in range(2) for p in [source.next()]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = DeepSupervision()(trainer, part)
        assert loss.dtype == torch.float64
        loss.backward()
        trainer.after_step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainer.network.parameters())
    assert trainer.carried("y").dtype == torch.float32


def test_a_position_of_other_examples_is_refused() -> None:
    _, source = parts()
    state = json.loads(json.dumps(source.state_dict()))
    _, other = parts()
    other.load_state_dict(state)
    with pytest.raises(UserError, match="belongs to other examples"):
        other.load_state_dict({**state, "fingerprint": "x"})


def test_ranks_deal_numbers_of_their_own_and_restart_rows_that_are_not_theirs() -> None:
    dealt = []
    for rank in (0, 1):
        trainer, source = parts(rank, 2)
        source.next()
        dealt.append(list(source.held))
        assert f"carried_y_{rank}" in trainer.state_dict()
    assert dealt == [[0, 2, 4], [1, 3, 5]]
    state = source.state_dict()
    _, alone = parts()
    alone.load_state_dict(state)
    batch = alone.next()
    assert batch.extras["fresh"].all()
    assert min(alone.held) > max(dealt[1])
    with pytest.raises(UserError, match=r"phases\.0\.batch_size: 6 is not divisible by the 4 ranks"):
        CarriedRows(Sums(), PHASES, trainer.halted, 3, world=4)


@pytest.mark.slow
def test_two_ranks_resume_each_with_its_own_rows(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("recursion_ranks.py")
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=100)[0].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    for found in (first, second):
        assert found["resumed"] == found["whole"]
        assert found["again"] == found["source"]
        assert found["stopped"] == 7
    shared = set(first["whole"]) & set(second["whole"])
    assert {name: first["whole"][name] for name in shared} == {name: second["whole"][name] for name in shared}
    assert set(first["whole"]) - shared == {f"carried_{n}_0" for n in ("y", "z", "steps", "halted")}
    assert first["whole"]["carried_y_0"] != second["whole"]["carried_y_1"]
