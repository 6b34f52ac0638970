"""The training loop: every stage that trains goes through `train`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ikirere.common.files import write_json
from ikirere.errors import UserError
from ikirere.recipe.sections import Training
from ikirere.train import checkpoint, memory, rng
from ikirere.train.callbacks import Bar, Callbacks, NoBar, Source, TrainSummary
from ikirere.train.interrupt import Interrupts
from ikirere.train.log import Log, Meter, Scalar
from ikirere.train.objective import Objective, weight_of
from ikirere.train.optimiser import build_optimizer
from ikirere.train.parallel import DistributedModel, checkpoint_activations, release_activations, world_of
from ikirere.train.precision import Precision, choose, compile_blocks, decide_compile
from ikirere.train.schedule import lr_factor

if TYPE_CHECKING:
    from ikirere.tokens.batch import Batch

__all__ = ["Callbacks", "Source", "TrainSummary", "train"]


def train(
    model: nn.Module,
    source: Source,
    objective: Objective,
    training: Training,
    total_steps: int,
    folder: Path,
    seed: int = 0,
    callbacks: Callbacks | None = None,
    key: str = "",
    accepted: Collection[str] = (),
) -> TrainSummary:
    """Trains `model` in place for `total_steps` optimiser steps and returns what happened.

    folder: for checkpoints and log.jsonl; where it holds a checkpoint of `key`, or of a key in `accepted` (earlier
    settings from which this training continues), the run continues from there. Without a change of settings it ends
    on the CPU with the same bits as if it had not stopped (same machine and threads).
    objective: mean losses of micro-batches are weighted so that the step's gradient is that of the mean over
    the whole batch, whatever the micro-batches and ranks are.
    Raises UserError for a loss that is not finite and a full disk; after Ctrl-C a checkpoint is written and
    KeyboardInterrupt raised.
    """
    run = _Run(
        model, source, objective, training, total_steps, folder, callbacks or Callbacks(), key, accepted
    )
    with checkpoint.full_disk_is_users(folder):
        try:
            run.prepare(seed)
            return run.all_steps()
        finally:
            run.release()


class _Run:
    def __init__(
        self,
        model: nn.Module,
        source: Source,
        objective: Objective,
        training: Training,
        total_steps: int,
        folder: Path,
        callbacks: Callbacks,
        key: str,
        accepted: Collection[str],
    ) -> None:
        self.model, self.source, self.objective, self.training = model, source, objective, training
        self.total, self.folder, self.callbacks = total_steps, folder, callbacks
        self.key, self.accepted = key, accepted
        self.world = world_of(training.parallel)
        self.say = callbacks.say if self.world.first else lambda line: None
        self.device = next(model.parameters()).device
        self.log, self.meter = Log(folder / "log.jsonl"), Meter()
        self.done = self.resumed = self.tokens = 0
        self.seconds = self.wait = self.loss = 0.0
        self.since = {"tokens": 0, "seconds": 0.0, "wait": 0.0}
        self.last: Path | None = None  # the checkpoint of `saved` steps
        self.saved = -1

    # ------------------------------------------------------------ start and end

    def prepare(self, seed: int) -> None:
        """Everything before the first step: number format, placement on devices, optimiser, checkpoint to continue from."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        memory.reset_peak()
        memory.keep_pages()
        self.start_rss = memory.rss()
        self.folder.mkdir(parents=True, exist_ok=True)
        rng.seed_all(seed + self.world.rank)
        self.model.train()
        if self.training.activation_checkpointing:
            checkpoint_activations(self.model)
        self.last = checkpoint.latest_valid(self.folder, self.say, {self.key, *self.accepted})
        self.precision, self.compiled = self._engine()
        self.placed = DistributedModel(self.model, self.objective, self.training.parallel, self.world)
        self.optimizers = build_optimizer(self.model, self.training.optimizer)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.name == "fp16")
        if self.last is not None:
            self._restore(self.last)
        if self.world.first and (row := self.log.cut(self.done)) is not None:
            self.loss = row["loss"]
        if self.world.first and self.done and self.restored_key != self.key:
            self.log.changed(self.done, self.callbacks.go_on)
        with rng.untouched():
            self.callbacks.resumed(self.done)

    def release(self) -> None:
        """Removes compilation and activation checkpointing from the model and closes the log."""
        self.log.close()
        memory.give_pages()
        compile_blocks(self.model, False)
        release_activations(self.model)

    def all_steps(self) -> TrainSummary:
        progress = self.callbacks.progress if self.world.first else None
        opened = progress(self.callbacks.label, self.total, "steps") if progress else nullcontext(NoBar())
        with opened as bar, Interrupts(self.say) as interrupts:
            if self.done:
                bar.advance(self.done)
            while self.done < self.total:
                stop = self._step(interrupts)
                self._after(bar)
                if stop:
                    self._save()
                    interrupts.deliver()
        return self._summary()

    def _summary(self) -> TrainSummary:
        on_card = self.device.type == "cuda"
        return TrainSummary(
            steps=self.done,
            tokens=self.tokens,
            seconds=self.seconds,
            tokens_per_second=self.tokens / self.seconds if self.seconds else 0.0,
            final_loss=self.loss,
            peak_rss_bytes=torch.cuda.max_memory_allocated(self.device) if on_card else memory.peak_rss(),
            start_rss_bytes=self.start_rss,
            wait_seconds=self.wait,
            log=self.log.path,
            precision=self.precision.name,
            compiled=self.compiled,
            resumed_from=self.resumed,
        )

    # ------------------------------------------------------------ number format

    def _engine(self) -> tuple[Precision, bool]:
        """Format and compilation. What was chosen at the start is kept at a resume, else the bits would differ, as
        long as the recipe asks for the same."""
        path = self.folder / "engine.json"
        chosen: dict[str, Any] = {}
        if self.last is not None and path.exists():
            chosen = json.loads(path.read_bytes())
        asked = [self.training.precision, self.training.compile]
        if chosen.get("device") == str(self.device) and chosen.get("asked", asked) == asked:
            if chosen["compile"]:
                compile_blocks(self.model)
            return Precision(chosen["precision"], self.device, "as at the start"), chosen["compile"]
        measured = choose(self.training.precision, self.device)
        precision = replace(measured, name=self.world.agree(measured.name))
        setting = self.training.compile
        if setting == "auto" and self.world.size > 1:
            compiled, line = False, "compile off: auto measures one process only, `on` compiles in several"
        else:
            with rng.untouched():
                compiled, line = decide_compile(
                    setting, self.model, self.device, self.total, lambda: self._probe(precision)
                )
        self.say(f"{self.callbacks.label}: {precision.line}; {line}")
        if self.world.first:
            chosen = {"device": str(self.device), "precision": precision.name, "compile": compiled}
            write_json(path, {**chosen, "asked": asked})
        return precision, compiled

    def _probe(self, precision: Precision) -> None:
        """Forward and backward of the next micro-batch, without advancing the data."""
        position = self.source.state_dict()
        micro = next(iter(self._parts(self.source.next())))
        self.source.load_state_dict(position)
        with precision.context():
            loss, _ = self.objective(self.model, micro.to(self.device))
        loss.backward()
        self.model.zero_grad(set_to_none=True)

    # ------------------------------------------------------------ one step

    def _parts(self, batch: Batch) -> list[Batch]:
        size = self.training.micro_batch_size
        rows = getattr(self.objective, "rows", 1)
        return [batch] if size is None else list(batch.split(size * rows))

    def _step(self, interrupts: Interrupts) -> bool:
        """Makes one optimiser step; returns whether to stop after it."""
        self.callbacks.before(self.done, self.model)
        position = self.source.state_dict()
        began = time.perf_counter()
        try:
            parts = self._parts(self._batch())
            waited = time.perf_counter() - began
            scalars, tokens, stop = self._gradients(parts, interrupts)
        except KeyboardInterrupt:
            # Only the data position has moved, so the state after the last step is still intact.
            if self.world.size == 1:
                self.source.load_state_dict(position)
                self._save()
            raise
        self.optimizers.set_factor(lr_factor(self.training.schedule, self.done, self.total))
        self.optimizers.unscale(self.scaler)
        norm = self.optimizers.clip()
        self.optimizers.step(self.scaler)
        self.optimizers.zero_grad()
        self.done += 1
        after: dict[str, torch.Tensor] = getattr(self.model, "after_step", dict)()
        # Every rank has the same figures here, and rows add up those of all ranks.
        once = [(name, value, 1 / self.world.size) for name, value in after.items()]
        self.meter.step([*scalars, *once, ("grad_norm", norm, 1.0)])
        self._count(tokens, time.perf_counter() - began, waited)
        return stop

    def _batch(self) -> Batch:
        try:
            return self.source.next()
        except StopIteration:
            raise UserError(
                f"{self.callbacks.label}: the data ended after {self.done} of {self.total} steps"
            ) from None

    def _gradients(self, parts: list[Batch], interrupts: Interrupts) -> tuple[list[Scalar], int, bool]:
        """Adds up the gradient of the mean loss over all micro-batches of all ranks.

        Returns the scalars to log, the positions in all batches, and whether somebody asked to stop.
        """
        weights = [weight_of(self.objective, part) for part in parts]
        sums = [
            float(sum(weights)),
            float(sum(part.tokens.numel() for part in parts)),
            float(interrupts.asked),
        ]
        if self.world.size > 1:
            sums = self.world.total(torch.tensor(sums, dtype=torch.float64, device=self.device)).tolist()
        scalars: list[Scalar] = []
        for i, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            share = weight / sums[0] if sums[0] else 0.0
            with self.placed.accumulate(last=i + 1 == len(parts)):
                with self.precision.context():
                    loss, further = self.placed(part.to(self.device))
                # DDP and FSDP take the mean over ranks; the shares are of the sum.
                scaled = loss if share == 1.0 else loss * (share * self.world.size)
                self.scaler.scale(scaled).backward()
            scalars += [(name, value.detach(), share) for name, value in {"loss": loss, **further}.items()]
        stop = bool(sums[2]) if self.world.size > 1 else interrupts.asked
        return scalars, int(sums[1]), stop

    def _count(self, tokens: int, seconds: float, waited: float) -> None:
        self.tokens += tokens
        self.seconds += seconds
        self.wait += waited
        for name, value in (("tokens", tokens), ("seconds", seconds), ("wait", waited)):
            self.since[name] += value

    # ------------------------------------------------------------ between steps

    def _after(self, bar: Bar) -> None:
        """Log row, callbacks and checkpoint that are due."""
        due = self.done % self.training.log_every == 0 or self.done == self.total
        saving = self.done % self.training.checkpoint_every == 0 or self._purpose() != ""
        if due or saving or self.device.type == "cpu":
            self._check_finite()
        if due:
            self._write_row()
        rate = self.tokens / self.seconds if self.seconds else 0.0
        bar.advance(1, loss=f"{self.loss:.3f}", tokens_per_second=f"{rate:,.0f}")
        try:
            self._call_callbacks()
        except self.callbacks.stops:
            self._save()
            raise
        if saving:
            self._save()

    def _check_finite(self) -> None:
        loss = self._shared(self.meter.values())["loss"]
        if math.isfinite(loss):
            return
        last = f"the last checkpoint is {self.last}" if self.last else "there is no checkpoint yet"
        raise UserError(
            f"{self.callbacks.label}: the loss is {loss} at step {self.done}; {last}; lower optimizer.lr or "
            "optimizer.grad_clip, or lengthen schedule.warmup"
        )

    def _shared(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over ranks; the gradient norm is the same on all of them."""
        if self.world.size == 1:
            return values
        total = self.world.total(torch.tensor(list(values.values()), device=self.device)).tolist()
        shared = dict(zip(values, total, strict=True))
        return {n: v / self.world.size if n == "grad_norm" else v for n, v in shared.items()}

    def _write_row(self) -> None:
        means = {n: v / self.meter.count for n, v in self._shared(self.meter.values()).items()}
        self.loss = means["loss"]
        seconds = self.since["seconds"]
        row: dict[str, float] = {
            "step": self.done,
            **means,
            "lr": self.optimizers.lr,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.since["tokens"] / seconds if seconds else 0.0,
            "wait_seconds": self.since["wait"],
        }
        self.meter.clear()
        self.since = dict.fromkeys(self.since, 0)
        if self.world.first:
            self.log.write(row)
            shown = ("loss", "lr", "grad_norm", "tokens_per_second")
            self.callbacks.track({f"{self.callbacks.label}/{n}": row[n] for n in shown}, self.done)

    def _call_callbacks(self) -> None:
        for when, call in self.callbacks.every:
            if self.done in when if isinstance(when, set | frozenset) else self.done % when == 0:
                with rng.untouched():
                    call(self.done, self.model)
                self.model.train()

    # ------------------------------------------------------------ checkpoints

    def _tensors(self) -> dict[str, torch.Tensor]:
        model = {f"model/{name}": t for name, t in self.model.state_dict().items()}
        return model | {f"optimizer/{name}": t for name, t in self.optimizers.tensors().items()}

    def _purpose(self) -> str:
        """The purpose of a checkpoint after this step, as its listing names it; "" for an ordinary one."""
        if self.done in self.callbacks.milestones:
            return checkpoint.MILESTONE + self.callbacks.milestones[self.done]
        return checkpoint.LAST if self.done == self.total else ""

    def _save(self) -> None:
        if self.saved == self.done:
            return
        self.log.sync()
        state = {
            "step": self.done,
            "source": self.source.state_dict(),
            "rng": rng.capture(),
            "meter": self.meter.state_dict(),
            "counters": [self.tokens, self.seconds, self.wait, self.since],
            "scaler": self.scaler.state_dict(),
        }
        since = self._shared(self.meter.values())
        loss = since["loss"] / self.meter.count if since else self.loss
        self.last = checkpoint.save(
            self.folder, self.done, self._tensors(), state, self.key, self.training.keep_checkpoints,
            self.tokens, loss, self._purpose(),
        )  # fmt: skip
        self.saved = self.done

    def _restore(self, path: Path) -> None:
        with torch.no_grad():
            state = checkpoint.load(path, self._tensors())
        self.done = self.resumed = self.saved = state["step"]
        self.restored_key = checkpoint.key_of(path)
        self.source.load_state_dict(state["source"])
        self.meter.load_state_dict(state["meter"], self.device)
        self.tokens, self.seconds, self.wait, self.since = state["counters"]
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        rng.restore(state["rng"])
        if self.world.first:
            checkpoint.prune(self.folder, self.training.keep_checkpoints)
        self.say(f"{self.callbacks.label}: continuing from {path.name}, step {self.done} of {self.total}")
