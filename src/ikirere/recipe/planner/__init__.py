"""What a recipe means before any hardware is rented: `plan(recipe)`, `render(plan)`, `Plan.to_json()`."""

from ikirere.recipe.planner.plan import Plan, plan
from ikirere.recipe.planner.render import render

__all__ = ["Plan", "plan", "render"]
