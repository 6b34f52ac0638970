"""The code hash sees what a stage can reach and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from ikirere.programme import code_fingerprint as code

FILES = {
    "__init__.py": "",
    "errors.py": "class UserError(Exception): ...",
    "kitchen/__init__.py": "",
    "kitchen/README.md": "a room",
    "kitchen/menu.jinja": "{{ dish }}",
    "kitchen/web/page.html": "<p>",
    "kitchen/stage.py": "from ikirere.kitchen import menu, stove\nclass Cook:\n    name = 'cook'\n",
    "kitchen/stove.py": "def heat():\n    from ..cellar.wood import log\n    return log\n",
    "kitchen/unused.py": "x = 1",
    "kitchen/menu.py": "DISHES = {'soup': 'ikirere.kitchen.soup:Soup'}",
    "kitchen/soup.py": "class Soup: ...",
    "cellar/__init__.py": "",
    "cellar/wood.py": (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ikirere.garden import tree\n"
        "from ikirere import errors\nlog = errors\n"
    ),
    "garden/__init__.py": "",
    "garden/tree.py": "",
}


COOK = "ikirere.kitchen.stage"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    root = tmp_path / "ikirere"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    "name", ["kitchen/stage.py", "kitchen/stove.py", "kitchen/soup.py", "cellar/wood.py", "cellar/__init__.py", "errors.py", "__init__.py",
             "kitchen/menu.jinja", "kitchen/web/page.html"],
)  # fmt: skip
def test_an_edit_within_reach_changes_the_hash(house: Path, name: str) -> None:
    root = house
    before = code.code_hash(COOK, root)
    (root / name).write_text(FILES[name] + "\n# edited\n")
    assert code.code_hash(COOK, root) != before


@pytest.mark.parametrize(
    "name", ["kitchen/README.md", "kitchen/unused.py", "garden/tree.py", "garden/__init__.py"]
)
def test_an_edit_elsewhere_does_not(house: Path, name: str) -> None:
    root = house
    before = code.code_hash(COOK, root)
    (root / name).write_text(FILES[name] + "\n# edited\n")
    (root / "garden" / "new.html").write_text("new")
    assert code.code_hash(COOK, root) == before


def test_a_new_file_of_data_changes_the_hash(house: Path) -> None:
    root = house
    before = code.code_hash(COOK, root)
    (root / "kitchen" / "web" / "style.css").write_text("p {}")
    assert code.code_hash(COOK, root) != before


def test_the_real_runner_reaches_recipe_and_errors_and_no_stage_package() -> None:
    from ikirere.programme import runner

    reached = code.closure(Path(runner.__file__), "ikirere.programme.runner")
    assert {"ikirere.recipe.schema", "ikirere.errors", "ikirere.programme.ledger", "ikirere"} <= set(reached)
    assert {name.split(".")[1] for name in reached if "." in name} == {
        "recipe",
        "errors",
        "common",
        "programme",
    }
