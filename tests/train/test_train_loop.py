"""The loop: micro-batches, callbacks, phases of a source, the log, and what ends a run early."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from train_helpers import Numbers, fingerprint, one_thread, run, settings, small_model

from ikirere.errors import UserError
from ikirere.tokens.batch import Batch
from ikirere.tokens.loader import LoaderPhase, PackedLoader
from ikirere.tokens.shards import Shard
from ikirere.train.callbacks import Bar
from ikirere.train.loop import Callbacks, train
from ikirere.train.objective import CrossEntropy


@pytest.fixture(autouse=True)
def _thread() -> Iterator[None]:
    with one_thread():
        yield


TIMES = {"seconds", "tokens_per_second", "wait_seconds"}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def test_it_learns_and_says_so(tmp_path: Path) -> None:
    summary = run(tmp_path, steps=60, every=100, rows=16)
    log = rows(tmp_path)
    assert [row["step"] for row in log] == list(range(3, 61, 3))
    assert log[-1]["loss"] < log[0]["loss"] - 0.5
    assert log[0]["loss"] == pytest.approx(math.log(61), abs=0.1)
    assert set(log[0]) == {"step", "loss", "nll", "z_loss", "lr", "grad_norm", "tokens"}
    assert summary.steps == 60 and summary.tokens == 60 * 16 * 16 == log[-1]["tokens"]
    assert summary.final_loss == log[-1]["loss"]
    assert 0 < summary.wait_seconds < summary.seconds
    assert summary.tokens_per_second == pytest.approx(summary.tokens / summary.seconds)
    assert 50e6 < summary.start_rss_bytes <= summary.peak_rss_bytes


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path, micro: int) -> None:
    """Rows have different numbers of labels, so a plain mean of means would differ."""
    whole, parts = small_model(), small_model()
    # AdamW divides by the gradient's size, which would hide a wrong scale and blow up rounding.
    options: dict[str, Any] = {"steps": 4, "every": 99, "training": {"log_every": 1}}
    run(tmp_path / "whole", whole, **options)
    run(tmp_path / "parts", parts, micro=micro, **options)
    for a, b in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-4)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-3, rtol=0)


def test_gradients_of_micro_batches_are_exact(tmp_path: Path) -> None:
    model = small_model()
    batch = Numbers().next()
    CrossEntropy()(model, batch)[0].backward()
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for part in batch.split(3):
        (CrossEntropy()(model, part)[0] * (part.tokens_used / batch.tokens_used)).backward()
    for a, p in zip(wanted, model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, a, atol=1e-6, rtol=1e-5)


class Weighed(CrossEntropy):
    """Two rows make one example; the weight is given, and the sizes of micro-batches are noted."""

    rows = 2

    def __init__(self, weight: int) -> None:
        super().__init__()
        self.value, self.sizes = weight, list[int]()

    def weight(self, batch: Batch) -> int:
        return self.value

    def __call__(self, model: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.sizes.append(len(batch.tokens))
        return super().__call__(model, batch)


def test_rows_of_one_example_stay_in_one_micro_batch(tmp_path: Path) -> None:
    objective = Weighed(1)
    run(tmp_path, objective=objective, steps=1, micro=3)
    assert objective.sizes == [6, 2]


def test_a_batch_of_no_weight_has_no_gradient(tmp_path: Path) -> None:
    run(tmp_path, objective=Weighed(0), steps=3, micro=3)
    assert (rows(tmp_path)[0]["loss"], rows(tmp_path)[0]["grad_norm"]) == (0, 0)


def test_callbacks_and_progress(tmp_path: Path) -> None:
    seen: list[Any] = []
    bars: list[Any] = []

    class Shown:
        def advance(self, amount: float = 1, **shown: object) -> None:
            bars.append(amount)

    @contextmanager
    def progress(label: str, total: float, unit: str) -> Iterator[Bar]:
        bars.append((label, total, unit))
        yield Shown()

    def evaluate(step: int, model: torch.nn.Module) -> None:
        model.eval()
        torch.rand(1)
        seen.append(("every", step))

    callbacks = Callbacks(
        progress=progress,
        track=lambda values, step: seen.append((sorted(values), step)),
        every=[(4, evaluate), ({1, 5}, lambda step, model: seen.append(("set", step)))],
        before=lambda done, model: seen.append(("before", done)),
        label="x",
    )
    run(tmp_path, steps=5, every=99, callbacks=callbacks)
    assert bars == [("x", 5, "steps"), 1, 1, 1, 1, 1]
    names = ["x/grad_norm", "x/loss", "x/lr", "x/tokens_per_second"]
    assert [s for s in seen if s[0] != "before"] == [
        ("set", 1),
        (names, 3),
        ("every", 4),
        (names, 5),
        ("set", 5),
    ]
    assert [s[1] for s in seen if s[0] == "before"] == [0, 1, 2, 3, 4]


def test_callbacks_do_not_change_training(tmp_path: Path) -> None:
    plain, watched = small_model(), small_model()

    def disturb(step: int, model: torch.nn.Module) -> None:
        torch.manual_seed(0)
        model.eval()

    run(tmp_path / "a", plain, steps=4)
    run(tmp_path / "b", watched, steps=4, callbacks=Callbacks(every=[(1, disturb)]))
    assert fingerprint(plain) == fingerprint(watched) and watched.training


def test_phases_switch_at_their_steps_and_after_a_resume(tmp_path: Path) -> None:
    documents = [[(i * j) % 60 for j in range(40)] + [60] for i in range(30)]
    shards = {"a": Shard.from_documents(documents)}
    phases = [LoaderPhase(3, 8, 4, {"a": 1.0}), LoaderPhase(3, 16, 2, {"a": 1.0})]
    thetas: list[tuple[int, float]] = []

    def ramp(done: int, model: Any) -> None:
        theta = 10_000.0 if done < 3 else 50_000.0
        if model.config.rope_theta != theta:
            model.set_rope_theta(theta)
            thetas.append((done, theta))

    def go(folder: Path, model: torch.nn.Module, stop: bool) -> None:
        source: Any = PackedLoader(shards, phases, 0)
        if stop:
            source.at = _interrupt_at(source, 5)
        training = settings(checkpoint_every=4, log_every=1)
        train(model, source, CrossEntropy(), training, 6, folder, callbacks=Callbacks(before=ramp))

    whole, cut, again = small_model(), small_model(), small_model()
    go(tmp_path / "whole", whole, False)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", cut, True)
    go(tmp_path / "cut", again, False)
    assert fingerprint(whole) == fingerprint(again)
    assert thetas == [(3, 5e4), (3, 5e4), (5, 5e4)]
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    assert [row["tokens"] for row in rows(tmp_path / "whole")] == [32, 64, 96, 128, 160, 192]


def _interrupt_at(source: PackedLoader, step: int) -> Any:
    at = source.at

    def interrupted(now: int) -> Batch:
        if now == step:
            raise KeyboardInterrupt
        return at(now)

    return interrupted


def test_ctrl_c_writes_a_checkpoint_between_steps(tmp_path: Path) -> None:
    whole, cut, again = small_model(), small_model(), small_model()

    class Interrupted(Numbers):
        def next(self) -> Batch:
            if self.step == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return super().next()

    before = signal.getsignal(signal.SIGINT)
    run(tmp_path / "whole", whole)
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", cut, source=Interrupted(), callbacks=Callbacks(say=lines.append))
    assert (tmp_path / "cut" / "step-000006").is_dir() and any("interrupted" in line for line in lines)
    assert signal.getsignal(signal.SIGINT) is before
    run(tmp_path / "cut", again)
    assert fingerprint(whole) == fingerprint(again)
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    model, again = small_model(), small_model()
    first = run(tmp_path, model, steps=4)
    second = run(
        tmp_path, again, steps=4, callbacks=Callbacks(before=lambda done, model: pytest.fail("a step"))
    )
    assert fingerprint(model) == fingerprint(again)
    assert second.resumed_from == 4 and second.final_loss == first.final_loss
    assert (second.tokens, second.seconds) == (first.tokens, first.seconds)


def test_another_configuration_starts_anew(tmp_path: Path) -> None:
    run(tmp_path, steps=4, key="a")
    assert run(tmp_path, steps=4, key="b").resumed_from == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, bad: float) -> None:
    plain = CrossEntropy()
    calls = []

    def objective(model: Any, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        calls.append(1)
        loss, scalars = plain(model, batch)
        return (loss * bad if len(calls) == 7 else loss), scalars

    with pytest.raises(UserError, match=r"step 7.*step-000004"):
        run(tmp_path, objective=objective)
    assert sorted(p.name for p in tmp_path.glob("step*")) == ["step-000004"]


def test_data_that_ends_early_is_reported(tmp_path: Path) -> None:
    class Short(Numbers):
        def next(self) -> Batch:
            if self.step == 2:
                raise StopIteration
            return super().next()

    with pytest.raises(UserError, match="2 of 12"):
        run(tmp_path, source=Short())


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_narrow_formats_train_alike(tmp_path: Path, name: str) -> None:
    """fp16 goes through the loss scaler, whose state is kept too."""
    run(tmp_path / "wide", steps=6)
    narrow: dict[str, Any] = {"training": {"precision": name}, "steps": 6}
    with pytest.raises(RuntimeError, match="cut"):
        run(tmp_path / name, callbacks=Callbacks(every=[({5}, _cut)]), **narrow)
    summary = run(tmp_path / name, **narrow)
    assert (summary.precision, summary.resumed_from) == (name, 4)
    for a, b in zip(rows(tmp_path / "wide"), rows(tmp_path / name), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.02)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=0.1)


def _cut(step: int, model: torch.nn.Module) -> None:
    raise RuntimeError("cut")


def test_activation_checkpointing_changes_nothing_and_is_undone(tmp_path: Path) -> None:
    plain, saving = small_model(), small_model()
    run(tmp_path / "a", plain, steps=3)
    run(tmp_path / "b", saving, steps=3, training={"activation_checkpointing": True})
    assert fingerprint(plain) == fingerprint(saving)
    assert not any("forward" in vars(block) for block in saving.layers)


def test_a_source_may_keep_any_json_state(tmp_path: Path) -> None:
    class Keeper(Numbers):
        def state_dict(self) -> dict[str, Any]:
            return {"step": self.step, "deep": {"list": [1, 2.5, None, "ß"]}}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            assert state["deep"] == {"list": [1, 2.5, None, "ß"]}
            super().load_state_dict(state)

    run(tmp_path, steps=4, source=Keeper())
    run(tmp_path, steps=4, source=Keeper())
