"""The stage after `--go-on`: other phases and rates from the step of the change, and nothing before it touched."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from pretrain_helpers import context, made_inputs, one_thread, recipe, weights

from ikirere.common.checkpoints import catalogue
from ikirere.errors import UserError
from ikirere.pretrain import decoder as module
from ikirere.pretrain.curriculum import phases_of
from ikirere.pretrain.recursive import RecursiveFamily
from ikirere.pretrain.stage import PretrainStage
from ikirere.programme.identity import differences
from ikirere.programme.stage import Continued, StageResult
from ikirere.recipe.load import load_recipe
from ikirere.recipe.rehearse import shrink
from ikirere.recipe.schema import Recipe
from ikirere.tokens.batch import Batch
from ikirere.train.parallel import World

STAGE = PretrainStage()
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return made_inputs(tmp_path_factory.mktemp("inputs"))


def phase(steps: int, **changes: Any) -> dict[str, Any]:
    mixture = {"code": 0.5, "docs": 0.5}
    return {
        "name": "x", "steps": steps, "sequence_length": 32, "batch_size": 8, "mixture": mixture, **changes,
    }  # fmt: skip


def wanted(*phases: dict[str, Any], **pretrain: Any) -> Recipe:
    named = [phase | {"name": f"phase {i}"} for i, phase in enumerate(phases)]
    return recipe(**{"phases": named, "milestones": [], "evaluate_every": None, **pretrain})


def run(
    folder: Path, inputs: dict[str, Path], asked: Recipe, *before: tuple[int, Recipe], lines: Any = None
) -> StageResult:
    """before: (step of the change, recipe until then)."""
    continued = tuple(Continued(step, STAGE.config(old)) for step, old in before)
    keys = [f"key{i}" for i in range(len(before) + 1)]
    return STAGE.run(
        context(
            folder, inputs, asked, [] if lines is None else lines,
            key=keys[-1], accepted=frozenset(keys[:-1]), continued=continued,
        )
    )  # fmt: skip


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


FIRST = wanted(phase(10))
LONGER = wanted(
    phase(12),
    phase(4, sequence_length=64, batch_size=4, mixture={"code": 1.0}),
    optimizer={"name": "muon", "lr": 1e-3, "muon_lr": 5e-3, "grad_clip": 0.5},
)


class Dies(RuntimeError):
    """In place of a kill."""


def test_a_finished_training_is_extended(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Also where it is cut off after the change, twice: the bytes are the same."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        run(folder, inputs, FIRST)
    old = weights(whole)
    result = run(whole, inputs, LONGER, (10, FIRST))
    assert weights(whole) != old
    tokens = next(metric.value for metric in result.metrics if metric.name == "tokens")
    assert tokens == 12 * 8 * 32 + 4 * 4 * 64
    rows = log(whole)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 10, 12, 14, 16]
    assert rows[5]["go_on"]["pretrain.optimizer.lr"] == [FIRST.pretrain.optimizer.lr, 1e-3]
    assert rows[5]["go_on"]["pretrain.phases.0.steps"] == [10, 12]
    assert [(info.step, info.key) for info in catalogue(whole)] == [
        (10, "key0"), (15, "key1"), (16, "key1"),
    ]  # fmt: skip

    at = module.PackedLoader.at
    for dies in (11, 15):
        with pytest.MonkeyPatch.context() as patched:

            def dying(self: Any, step: int, last: int = dies) -> Batch:
                if step == last:
                    raise Dies
                return at(self, step)

            patched.setattr(module.PackedLoader, "at", dying)
            with pytest.raises(Dies):
                run(cut, inputs, LONGER, (10, FIRST))
    run(cut, inputs, LONGER, (10, FIRST))
    assert weights(cut) == weights(whole)
    times = {"seconds", "tokens_per_second", "wait_seconds"}
    strip = [[{k: v for k, v in row.items() if k not in times} for row in log(f)] for f in (cut, whole)]
    assert strip[0] == strip[1]


def test_a_running_phase_is_changed_twice(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At step 5 the mixture, at step 10 the length. Each batch is what its version of the recipe asks for."""
    second = wanted(phase(12, mixture={"docs": 1.0}))
    third = wanted(phase(12, mixture={"docs": 1.0}, sequence_length=64, batch_size=2))
    versions = [(FIRST, 5), (second, 10), (third, 12)]
    at, shapes = module.PackedLoader.at, dict[int, Any]()
    for i, (version, stop) in enumerate(versions):

        def noted(self: Any, step: int, stop: int = stop) -> Batch:
            if step == stop:
                raise Dies
            batch = at(self, step)
            shapes[step] = tuple(batch.tokens.shape)
            return batch

        monkeypatch.setattr(module.PackedLoader, "at", noted)
        history = [(stop, old) for old, stop in versions[:i]]
        if i < 2:
            with pytest.raises(Dies):
                run(tmp_path, inputs, version, *history)
        else:
            run(tmp_path, inputs, version, *history)
    assert [shapes[step] for step in range(12)] == [(8, 32)] * 10 + [(2, 64)] * 2
    assert [(row["step"], sorted(row["go_on"])) for row in log(tmp_path) if "go_on" in row] == [
        (5, ["pretrain.phases.0.mixture.code", "pretrain.phases.0.mixture.docs", "pretrain.phases.0.steps"]),
        (10, ["pretrain.phases.0.batch_size", "pretrain.phases.0.sequence_length"]),
    ]
    assert [info.step for info in catalogue(tmp_path)] == [5, 10, 12]


def test_steps_that_are_made_cannot_be_taken_back(inputs: dict[str, Path], tmp_path: Path) -> None:
    run(tmp_path, inputs, FIRST)
    with pytest.raises(UserError, match=r"pretrain\.phases: 6 steps in all, but 10 are made"):
        run(tmp_path, inputs, wanted(phase(6)), (10, FIRST))


@pytest.mark.parametrize(
    ("accepted", "change"),
    [
        (True, {"phases": [phase(10), phase(4, name="y", sequence_length=64)]}),
        (True, {"phases": [phase(10, mixture={"code": 1.0}, attention="full", rope_theta=5e4)]}),
        (True, {"optimizer": {**FIRST.pretrain.optimizer.model_dump(), "betas": [0.8, 0.9], "eps": 1e-7}}),
        (True, {"optimizer": {**FIRST.pretrain.optimizer.model_dump(), "grad_clip": 0.1, "momentum": 0.9}}),
        (True, {"schedule": {"name": "cosine"}}),
        (True, {"z_loss": 0.5, "precision": "bf16"}),
        (False, {"packing": "best-fit"}),
        (False, {"optimizer": {"name": "adamw", "lr": 1e-3}}),
    ],
)
def test_what_can_change_on_the_way(accepted: bool, change: dict[str, Any]) -> None:
    old, new = ({"config": STAGE.config(r)} for r in (FIRST, wanted(**{"phases": [phase(10)], **change})))
    changed = [found.key for found in differences(old, new)]
    assert changed and (STAGE.can_go_on(changed) == []) is accepted


def test_the_shape_seed_and_inputs_cannot() -> None:
    keys = ["model.hidden_size", "seed", "inputs.shards", "rehearsal", "pretrain.optimizer.name"]
    assert STAGE.can_go_on([*keys, "pretrain.z_loss", "pretrain.phases.0.steps"]) == keys


@pytest.mark.parametrize(
    "change",
    [
        {"log_every": 1}, {"checkpoint_every": 7}, {"keep_checkpoints": 9}, {"evaluate_bytes": 999},
        {"micro_batch_size": 2}, {"compile": "auto"}, {"parallel": "ddp"}, {"evaluate_every": 3},
        {"milestones": [{"name": "a", "step": 2}]}, {"activation_checkpointing": True},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_only_watches_is_in_no_key(change: dict[str, Any]) -> None:
    assert STAGE.config(wanted(phase(10), **change)) == STAGE.config(FIRST)


def test_micro_batches_are_in_the_key_where_experts_are_balanced_in_them() -> None:
    shape = FIRST.model.model_copy(update={"ffn_pattern": "dense moe"})
    configs = [
        STAGE.config(wanted(phase(10), micro_batch_size=size).model_copy(update={"model": shape}))
        for size in (None, 2)
    ]
    assert configs[0] != configs[1]


def test_a_recursive_model_takes_no_larger_rows_than_it_carries() -> None:
    asked = shrink(load_recipe(ROOT / "recipes" / "smol-100m-trm.yaml"))
    family = RecursiveFamily(asked, tokenizer=None)  # type: ignore[arg-type]
    plain = phases_of([phase(5)], 1e4, "full")
    with torch.device("meta"):
        smaller = family.trainer(
            _network(asked), phases_of([phase(5), phase(2, batch_size=4)], 1e4, "full"), World(), plain
        )
    assert smaller.carried("y").shape[0] == 8
    for change in ({"batch_size": 16}, {"sequence_length": 64}):
        with pytest.raises(UserError, match="--go-on accepts no larger ones"):
            family.trainer(_network(asked), phases_of([phase(9, **change)], 1e4, "full"), World(), plain)


def _network(asked: Recipe) -> Any:
    from ikirere.model.build import on_meta
    from ikirere.model.config import ModelConfig

    return on_meta(ModelConfig.from_recipe(asked.model))
