"""A training that continues with other settings, and one that a callback ends: what is kept, written and used."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from train_helpers import fingerprint, one_thread, run, small_model

from ikirere.common.checkpoints import catalogue
from ikirere.recipe.sections import Optimizer, Schedule
from ikirere.train import checkpoint
from ikirere.train.callbacks import Callbacks
from ikirere.train.loop import _Run
from ikirere.train.optimiser import Optimizers
from ikirere.train.schedule import lr_factor


@pytest.fixture(autouse=True)
def _thread() -> Iterator[None]:
    with one_thread():
        yield


class Stop(Exception):
    """Ends a training."""


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


CHANGE = {"optimizer.lr": [3e-3, 1e-3]}


def go_on(folder: Path, **changes: Any) -> Any:
    """From a finished run of eight steps with key a: to twelve, other key."""
    callbacks = changes.pop("callbacks", Callbacks(go_on=CHANGE))
    return run(folder, steps=12, key="b", accepted={"a"}, callbacks=callbacks, **changes)


def test_it_continues_from_the_last_checkpoint_of_an_accepted_key(tmp_path: Path) -> None:
    run(tmp_path, steps=8)
    assert go_on(tmp_path).resumed_from == 8
    rows = log(tmp_path)
    assert [row["step"] for row in rows] == [3, 6, 8, 8, 9, 12]
    assert rows[3] == {"go_on": CHANGE, "step": 8}
    kept = {info.step: (info.key, info.purpose, info.tokens) for info in catalogue(tmp_path)}
    assert kept == {8: ("a", "last", 8 * 8 * 16), 12: ("b", "last", 12 * 8 * 16)}
    assert catalogue(tmp_path)[-1].loss == pytest.approx(rows[-1]["loss"])


def test_a_key_that_is_not_accepted_is_set_aside(tmp_path: Path) -> None:
    run(tmp_path, steps=8)
    assert run(tmp_path, steps=4, key="c").resumed_from == 0
    assert (tmp_path / "step-000008.of-a").is_dir()


def test_the_last_checkpoint_before_each_change_outlives_the_newest(tmp_path: Path) -> None:
    run(tmp_path, steps=6, every=2)
    run(tmp_path, steps=10, every=2, key="b", accepted={"a"})
    run(tmp_path, steps=20, every=2, key="c", accepted={"a", "b"})
    assert [info.step for info in catalogue(tmp_path)] == [6, 10, 18, 20]


def test_stopped_before_its_first_checkpoint_the_change_is_written_once(tmp_path: Path) -> None:
    run(tmp_path, steps=8)

    def stop(step: int, model: object) -> None:
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError):
        go_on(tmp_path, callbacks=Callbacks(go_on=CHANGE, every=[({9}, stop)]))
    go_on(tmp_path)
    assert [row for row in log(tmp_path) if "go_on" in row] == [{"go_on": CHANGE, "step": 8}]


def test_new_settings_of_the_optimiser_are_used_and_its_state_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, steps=8)
    seen: list[Optimizers] = []
    restore = _Run._restore

    def watched(self: _Run, path: Path) -> None:
        restore(self, path)
        seen.append(self.optimizers)
        before = {f"optimizer/{n}": torch.zeros_like(t) for n, t in self.optimizers.tensors().items()}
        checkpoint.load(path, before)
        for name, tensor in self.optimizers.tensors().items():
            assert torch.equal(tensor, before[f"optimizer/{name}"])

    monkeypatch.setattr(_Run, "_restore", watched)
    changed = Optimizer(
        name="muon", lr=1e-3, muon_lr=5e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.3, momentum=0.8,
        grad_clip=0.25,
    )  # fmt: skip
    schedule = Schedule(name="constant", warmup=0)
    go_on(tmp_path, training={"optimizer": changed, "schedule": schedule})
    (optimizers,) = seen
    muon, adam = (part.param_groups[0] for part in optimizers.parts)
    assert (muon["lr"], muon["momentum"], muon["weight_decay"]) == (5e-3, 0.8, 0.3)
    assert (adam["lr"], adam["betas"], adam["eps"]) == (1e-3, (0.8, 0.99), 1e-6)
    assert optimizers.grad_clip == 0.25
    assert log(tmp_path)[-1]["lr"] == 5e-3 * lr_factor(schedule, 11, 12)


def test_a_changed_number_format_is_used(tmp_path: Path) -> None:
    run(tmp_path, steps=4)
    wanted: dict[str, Any] = {"training": {"precision": "bf16"}, "steps": 8}
    assert run(tmp_path, key="b", accepted={"a"}, **wanted).precision == "bf16"
    assert run(tmp_path, key="b", **wanted).precision == "bf16"


def test_milestones_are_kept_besides_the_newest(tmp_path: Path) -> None:
    callbacks = Callbacks(milestones={3: "early", 8: "late", 20: "end"})
    run(tmp_path, steps=20, every=4, callbacks=callbacks)
    assert [(c.step, c.purpose) for c in catalogue(tmp_path)] == [
        (3, "milestone early"), (8, "milestone late"), (12, ""), (16, ""), (20, "milestone end"),
    ]  # fmt: skip
    checkpoint.prune(tmp_path, 1)
    assert [c.step for c in catalogue(tmp_path)] == [3, 8, 16, 20]


def test_a_callback_that_ends_training_leaves_the_checkpoint_of_its_step(tmp_path: Path) -> None:
    """Step 5 has no checkpoint of its own; the run that is allowed to pass ends as one that was never stopped."""
    whole, cut, again = small_model(), small_model(), small_model()
    allowed: list[int] = []

    def judge(step: int, model: object) -> None:
        if not allowed:
            raise Stop

    def callbacks() -> Callbacks:
        return Callbacks(every=[({5}, judge)], stops=(Stop,))

    run(tmp_path / "whole", whole, callbacks=Callbacks())
    with pytest.raises(Stop):
        run(tmp_path / "cut", cut, callbacks=callbacks())
    newest = catalogue(tmp_path / "cut")[-1]
    assert newest.step == 5 and checkpoint.fault_of(newest.path) == ""
    allowed.append(1)
    assert run(tmp_path / "cut", again, callbacks=callbacks()).resumed_from == 5
    assert fingerprint(whole) == fingerprint(again)


def test_what_happens_before_the_first_step(tmp_path: Path) -> None:
    seen: list[int] = []

    def refuse(done: int) -> None:
        seen.append(done)
        if done:
            raise Stop

    callbacks = Callbacks(resumed=refuse, before=lambda done, model: seen.append(-done), stops=(Stop,))
    run(tmp_path, steps=4, callbacks=callbacks)
    assert seen == [0, 0, -1, -2, -3]
    with pytest.raises(Stop):
        run(tmp_path, steps=8, callbacks=callbacks)
    assert seen[5:] == [4] and [c.step for c in catalogue(tmp_path)] == [4]
