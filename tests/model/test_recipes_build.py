"""Every recipe's model at full size, on the meta device: built as it stands, with as many weights as planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from ikirere.model.build import on_meta
from ikirere.model.config import ModelConfig
from ikirere.recipe.load import load_recipe
from ikirere.recipe.planner.counts import count

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.yaml"))
# What the programmes call them, in weights.
NAMED = {
    "irm-2b.yaml": 2.01e9,
    "nanollama-1b.yaml": 1.10e9,
    "smol-100m-kda.yaml": 100e6,
    "smol-100m-trm.yaml": 100e6,
}


def test_the_named_recipes_are_there() -> None:
    assert set(NAMED) <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_model_is_built_and_counted_alike(name: str) -> None:
    recipe = load_recipe(ROOT / name)
    model = on_meta(ModelConfig.from_recipe(recipe.model))
    counts = count(recipe.model)
    assert model.num_parameters() == counts.total
    if name in NAMED:
        assert abs(counts.total / NAMED[name] - 1) < 0.02
