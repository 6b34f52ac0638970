"""Shrinking keeps structure and fits the time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ikirere.errors import UserError
from ikirere.recipe.load import dump, load_recipe, parse_recipe
from ikirere.recipe.planner import plan
from ikirere.recipe.planner.flops import stages
from ikirere.recipe.rehearse import rehearse, shrink
from ikirere.recipe.rehearse.training import DPO_SECONDS, PRETRAIN_SECONDS, RATE, SFT_SECONDS, move_step
from ikirere.recipe.schema import Recipe
from ikirere.recipe.sections import Local, PythonEnvironment
from ikirere.recipe.yamlio import parse

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(RECIPES.rglob("*.yaml"))
FULL = sorted(RECIPES.glob("*.yaml"))


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IKIRERE_DATA", raising=False)


def named(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml")


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_structure_stays(path: Path) -> None:
    full = load_recipe(path)
    small = shrink(full)
    assert (small.name, small.seed, small.stages, small.gates) == (
        full.name,
        full.seed,
        full.stages,
        full.gates,
    )
    assert small.planned == full.planned
    assert small.model.layer_pattern == full.model.layer_pattern
    assert small.model.family == full.model.family
    group = full.model.num_attention_heads // full.model.num_key_value_heads
    assert small.model.num_attention_heads // small.model.num_key_value_heads == group
    assert (small.model.qk_norm, small.model.tie_word_embeddings) == (
        full.model.qk_norm,
        full.model.tie_word_embeddings,
    )
    assert small.model.vocab_size == small.tokenizer.vocab_size
    for before, after in zip(full.pretrain.phases, small.pretrain.phases, strict=True):
        assert (before.name, before.mixture, before.rope_theta) == (
            after.name,
            after.mixture,
            after.rope_theta,
        )
        assert before.attention == after.attention
        share = before.steps / full.pretrain.steps
        assert after.steps / small.pretrain.steps == pytest.approx(share, abs=0.03)
        assert after.sequence_length <= small.model.max_position_embeddings
    assert [m.name for m in small.pretrain.milestones] == [m.name for m in full.pretrain.milestones]
    assert small.pretrain.z_loss == full.pretrain.z_loss
    assert small.pretrain.schedule.name == full.pretrain.schedule.name
    assert {s.domain for s in small.data.sources} == {s.domain for s in full.data.sources}
    assert small.hardware.device == "cpu"
    assert plan(small).peak_memory.total < 4e9


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_training_fits_its_share_of_the_time(path: Path) -> None:
    shares = {"pretrain": PRETRAIN_SECONDS, "sft": SFT_SECONDS, "dpo": DPO_SECONDS}
    for minutes in (10.0, 3.0):
        for work in stages(shrink(load_recipe(path), minutes)):
            slack = 1.4 if work.name == "dpo" else 1.1  # held-out pairs are few but not scaled
            assert work.flops / RATE <= shares[work.name] * minutes / 10 * slack


def test_nanollama_keeps_its_three_phases() -> None:
    full, small = named("nanollama-1b"), shrink(named("nanollama-1b"))
    phases = small.pretrain.phases
    assert [p.sequence_length for p in phases] == [64, 128, 256, 64]
    assert [p.batch_size for p in phases] == [64, 32, 16, 64]
    assert [p.rope_theta for p in phases] == [10_000, 70_711, 500_000, 500_000]
    assert len({p.batch_size * p.sequence_length for p in phases}) == 1
    ends = [sum(p.steps for p in phases[: i + 1]) for i in range(4)]
    steps = {m.name: m.step for m in small.pretrain.milestones}
    assert [steps[f"step_{n}"] for n in (184_000, 194_000, 207_000, 230_000)] == ends
    assert small.pretrain.schedule.decay == full.pretrain.schedule.decay / full.pretrain.steps
    assert (small.tokenizer.kind, small.tokenizer.vocab_size) == ("bpe", 2048)
    assert not small.model.tie_word_embeddings
    assert small.pretrain.optimizer.lr > full.pretrain.optimizer.lr
    assert small.stated.parameters is None
    assert small.tracker.kind == "trackio"


def test_patterns_keep_whole_periods_and_names() -> None:
    kda = shrink(named("smol-100m-kda")).model
    assert kda.layers == ("kda", "kda", "kda", "full") * 2
    assert kda.mixers["kda"]["head_dim"] == kda.head_dim
    assert kda.mixers["full"] == {"rope": False}
    trm = shrink(named("smol-100m-trm")).model
    assert trm.layers == ("kda", "kda", "kda", "full")
    full, small = named("smol-100m-trm").model.mixers["recursive"], trm.mixers["recursive"]
    assert small["cycles"] == 2
    assert small["inner_updates"] * small["cycles"] * small["supervision_steps"] <= 16
    assert small["ema"] < full["ema"]
    same = ("halt_exploration", "bidirectional")
    assert [small[key] for key in same] == [full[key] for key in same]
    irm = shrink(named("irm-2b"))
    assert [p.attention for p in irm.pretrain.phases] == ["full", "hybrid"]
    assert [p.sequence_length for p in irm.pretrain.phases] == [64, 256]
    assert irm.model.mixers["hybrid"]["window"] < 64


def test_a_pretrained_tokenizer_becomes_a_small_one_and_says_why() -> None:
    small = rehearse(named("smol-100m-kda"))
    assert (small.recipe.tokenizer.kind, small.recipe.tokenizer.pretrained) == ("bpe", None)
    why = next(c for c in small.changes if c.key == "tokenizer.kind")
    assert (why.before, why.after) == ("pretrained", "bpe")
    assert "50,274 ids" in why.rule
    assert "pretrained -> bpe" in str(why)


def test_unigram_stays_unigram() -> None:
    assert shrink(named("irm-2b")).tokenizer.kind == "unigram"


def test_without_a_mirror_disjoint_slices_of_the_environment_stand_in() -> None:
    small = shrink(named("nanollama-1b"))
    slices: dict[tuple[str, ...], list[str]] = {}
    for source in small.data.sources:
        assert isinstance(source, PythonEnvironment)
        assert source.max_bytes is not None
        slices.setdefault(source.include, []).append(source.slice)
    assert slices == {("docs",): [f"{i}/5" for i in range(1, 6)], ("code",): ["1/1"]}


def test_with_a_mirror_its_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus" / "edu").mkdir(parents=True)
    (tmp_path / "corpus" / "edu" / "a.parquet").touch()
    monkeypatch.setenv("IKIRERE_DATA", str(tmp_path))
    first, *others = shrink(named("nanollama-1b")).data.sources
    assert isinstance(first, Local)
    assert (first.kind, first.path, first.pattern) == ("parquet", "${IKIRERE_DATA}/corpus/edu", "*.parquet")
    assert (first.text_field, first.licence_field, first.domain) == ("text", "spdx", "edu")
    assert "fineweb" not in first.name
    assert all(isinstance(source, PythonEnvironment) for source in others)
    (tmp_path / "benchmarks" / "arc_agi_1" / "training").mkdir(parents=True)
    (tmp_path / "benchmarks" / "gsm8k").mkdir()
    (tmp_path / "benchmarks" / "gsm8k" / "train.jsonl").touch()
    small = {s.name: s for s in shrink(named("smol-100m-kda")).data.sources}
    assert [name for name, s in small.items() if not isinstance(s, PythonEnvironment)] == [
        "web-mirror-0",
        "math-mirror-5",
        "program-synthesis",
        "arc-agi-1",
    ]
    # A mirror in the dataset's own columns is read by the preset that knows them.
    assert (small["math-mirror-5"].kind, small["math-mirror-5"].preset) == ("hub", "gsm8k-train")
    assert all(s.max_bytes == 3_000_000 for s in small.values())
    # The interpreter's code stands in by slices, whether as a mirror or for want of one.
    assert small["codeparrot-clean-stand-in"].include == ("code",)


def test_changes_are_exactly_the_differences() -> None:
    full = named("nanollama-1b")
    small = rehearse(full)
    values = parse(dump(full), "x").value
    for change in small.changes:
        holder = values
        *above, last = [int(p) if re.fullmatch(r"\d+", p) else p for p in change.key.split(".")]
        for part in above:
            holder = holder[part]
        assert holder[last] == change.before != change.after
        assert change.rule
        holder[last] = change.after
    assert parse_recipe(values) == small.recipe


def test_a_small_model_keeps_its_shape_and_steps_only_shrink() -> None:
    overrides = ["model.hidden_size=64", "model.num_hidden_layers=2", "model.intermediate_size=128"]
    full = load_recipe(
        Path(__file__).with_name("small.yaml"), [*overrides, "pretrain.phases.0.steps=30", "sft.steps=5"]
    )
    small = shrink(full)
    assert (small.model.hidden_size, small.model.num_hidden_layers) == (64, 2)
    assert small.pretrain.steps == 30
    assert small.sft is not None
    assert small.sft.steps == 5


def test_shrinking_twice_keeps_the_structure() -> None:
    once = shrink(named("nanollama-1b"))
    twice = shrink(once)
    assert twice.model == once.model
    assert [p.sequence_length for p in twice.pretrain.phases] == [64, 128, 256, 64]


def test_steps_move_to_the_same_share_of_their_phase() -> None:
    before, after = [100, 10, 50], [10, 3, 6]
    assert [move_step(s, before, after) for s in (1, 50, 100, 110, 160)] == [1, 5, 10, 13, 19]
    moved = [move_step(s, before, after) for s in range(1, 161)]
    assert moved == sorted(moved)
    assert (moved[0], moved[-1]) == (1, 19)


def test_no_time_is_refused() -> None:
    with pytest.raises(UserError, match="give a number above 0"):
        shrink(named("demo"), 0)
