"""The recipes' gates: a built stage makes what its gates name, and no target of a specification has vanished."""

from __future__ import annotations

from pathlib import Path

import pytest

from ikirere.programme.metric_names import unmade
from ikirere.recipe.load import load_recipe
from ikirere.stages import load_stage

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(RECIPES.rglob("*.yaml"))

# What the specifications ask for: (metric, comparison, target), the stop bound of a milestone last.
ASKED: dict[str, list[tuple[str, str, float, float | None]]] = {
    "irm-2b": [
        ("verified_share", ">=", 0.95, None),
        ("evaluation_overlap", "==", 0, None),
        ("round_trip_failures", "==", 0, None),
        ("needle/512k", ">=", 0.99, None),
        ("perplexity_ratio/text@pretrain", "<=", 1, None),
        ("rationale_tokens_median", "<=", 256, None),
        ("win_rate_uplift", ">=", 0.10, None),
        ("refusal_increase/safe_coding", "<=", 0, None),
        ("tool_precision", ">=", 0.90, None),
        ("tool_recall", ">=", 0.90, None),
        ("repair_rate", ">=", 0.60, None),
        ("unsafe_tool_calls", "==", 0, None),
        ("code_benchmark_drop", "<=", 0, None),
        ("retrieval_hit_rate", ">=", 0.90, None),
        ("sidecar_gain", ">=", 0.05, None),
        ("sidecar_gain", ">=", 0.10, None),
        ("benchmark/humaneval_guided", ">=", 0.80, None),
        ("benchmark/mbpp_guided", ">=", 0.85, None),
        ("benchmark/gsm8k_sc5", ">=", 0.70, None),
        ("benchmark/mmlu", ">=", 0.70, None),
        ("latency_p95_ms@200k", "<=", 200, None),
        ("needle/1m", ">=", 0.99, None),
    ],
    "nanollama-1b": [
        ("perplexity/edu@step_50000", "<=", 25, 30),
        ("perplexity@step_100000", "<=", 18, 22),
        ("perplexity@step_150000", "<=", 15, 17),
        ("perplexity@step_184000", "<=", 13, None),
        ("perplexity@step_230000", "<=", 12, 13),
        ("tokens_per_second", ">=", 20_000, None),
        ("peak_memory_bytes", "<=", 70e9, None),
        ("needle/16k", ">=", 0.85, 0.70),
        ("benchmark/mmlu", ">=", 0.28, 0.25),
        ("benchmark/gsm8k", ">=", 0.12, None),
        ("final_loss", "<=", 2.0, None),
        ("final_loss", "<", 0.5, None),
        ("benchmark/mmlu", ">=", 0.30, None),
        ("benchmark/gsm8k", ">=", 0.15, None),
        ("benchmark/hellaswag", ">=", 0.50, None),
        ("benchmark/arc_challenge", ">=", 0.30, None),
        ("benchmark/truthfulqa", ">=", 0.35, None),
        ("toxicity_max", "<", 0.30, None),
        ("needle/16k", ">=", 0.85, None),
        ("tool_syntax", ">=", 0.95, None),
        ("tool_semantics", ">=", 0.60, None),
        ("perplexity", "<", 12, None),
        ("benchmark/mmlu", ">=", 0.35, None),
        ("benchmark/mmlu", ">=", 0.40, None),
        ("benchmark/gsm8k", ">=", 0.20, None),
        ("benchmark/gsm8k", ">=", 0.25, None),
    ],
    "smol-100m-kda": [
        ("rank_loss_difference", "==", 0, None),
        ("resume_loss_difference", "==", 0, None),
        ("benchmark/arc_agi_1", ">=", 0.05, None),
        ("benchmark/arc_agi_2", ">", 0, None),
        ("benchmark/sudoku_extreme", ">", 0, None),
        ("benchmark/maze_hard", ">", 0, None),
        ("perplexity_ratio/web@stage1", "<=", 1.10, None),
    ],
    "smol-100m-trm": [
        ("rank_loss_difference", "==", 0, None),
        ("benchmark/arc_agi_1", ">=", 0.446, None),
        ("benchmark/arc_agi_2", ">=", 0.078, None),
        ("benchmark/sudoku_extreme", ">=", 0.747, None),
        ("benchmark/maze_hard", ">=", 0.853, None),
        ("perplexity_ratio/web@stage1", "<=", 1.10, None),
    ],
}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_built_stages_make_what_their_gates_name(path: Path) -> None:
    recipe = load_recipe(path)
    assert unmade(recipe, {name: load_stage(name) for name in recipe.stages}) == []


@pytest.mark.parametrize("name", ASKED)
def test_what_a_specification_asks_is_a_gate(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    gates = [(g.metric, g.op, g.target, g.stop_beyond) for some in recipe.gates.values() for g in some]
    assert [one for one in ASKED[name] if one not in gates] == []


def test_a_change_of_language_is_over_the_milestone_that_the_gate_means() -> None:
    """The first milestone of the dense 100M model is its short run; the change is over the end of stage 1."""
    recipe = load_recipe(RECIPES / "smol-100m-kda.yaml")
    assert recipe.pretrain.milestones[0].name == "short-run"
    assert recipe.evaluate.compare_to == "stage1"
    after = load_recipe(RECIPES / "irm-2b.yaml").pretrain.milestones[1]
    assert (after.name, after.compare_to) == ("after-512k", "before-512k")
