"""The faults that `make mutation` puts in: which there are, that each compiles, and that the source is as it was after."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "mutation"))
from operators import mutants

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "mutation"
MODULES = tomllib.loads((FOLDER / "modules.toml").read_text())


def changes(source: str) -> list[str]:
    return [mutant.name.partition(": ")[2] for mutant in mutants(ast.parse(source))]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", ["a < b -> a <= b", "a < b -> a >= b"]),
        ("a == b", ["a == b -> a != b"]),
        ("a < b <= c", ["a < b <= c -> a <= b <= c", "a < b <= c -> a >= b <= c",
                        "a < b <= c -> a < b < c", "a < b <= c -> a < b > c"]),
        ("a - b", ["a - b -> a + b"]),
        ("a and b", ["a and b -> a or b"]),
        ("not a", ["not a -> a"]),
        ("-a", ["-a -> a"]),
        ("7", []),
        ("a[7]", ["7 -> 8", "7 -> 6"]),
        ("x = True", ["True -> False"]),
        ("x = sqrt(y)", ["sqrt(y) -> y"]),
        ("x += y", ["x += y -> x -= y", "x += y -> pass"]),
        ("x.y = z", ["x.y = z -> pass"]),
        ("x = y", []),
        ("f(x)", ["f(x) -> pass"]),
        ("def f():\n    'Says 1 + 1.'\n    return x", ["return x -> return None"]),
        ("def f() -> 1:\n    return None", []),
        ("def f(x: 3 = 4):\n    pass", ["4 -> 5", "4 -> 3"]),
        ("if a:\n    raise b", ["a -> not a", "raise b -> pass"]),
        ("while a:\n    break", ["a -> not a", "break -> pass"]),
        ("x = f'{a + 1}' + 'b'", []),
        ("assert a == 1\nimport b", []),
        ("@f(1)\ndef g():\n    pass", []),
        ("try:\n    f()\nexcept E:\n    g()", ["f() -> pass", "g() -> pass"]),
    ],
)  # fmt: skip
def test_each_construct_has_its_faults(source: str, expected: list[str]) -> None:
    assert changes(source) == expected


def test_names_tell_equal_changes_apart_and_say_where() -> None:
    found = list(mutants(ast.parse("def f():\n    x[1]\n\n    x[1]\n")))
    assert [(m.line, m.name) for m in found] == [
        (2, "f: 1 -> 2"), (2, "f: 1 -> 0"), (4, "f: 1 -> 2 #2"), (4, "f: 1 -> 0 #2"),
    ]  # fmt: skip


@pytest.mark.parametrize("path", MODULES)
def test_every_mutant_of_a_core_module_differs_and_compiles(path: str) -> None:
    tree = ast.parse((ROOT / "src" / "ikirere" / path).read_text())
    before, names = ast.dump(tree), set()
    for number, mutant in enumerate(mutants(tree)):
        names.add(mutant.name)
        if number % 20 == 0:
            assert ast.dump(tree) != before
            compile(ast.fix_missing_locations(tree), path, "exec")
    assert ast.dump(tree) == before and len(names) == number + 1


def test_lists_name_what_there_is() -> None:
    for path, tests in MODULES.items():
        assert tests and all((ROOT / test).is_file() for test in tests)
        assert (ROOT / "src" / "ikirere" / path).is_file()
    for path, names in tomllib.loads((FOLDER / "equivalent.toml").read_text()).items():
        tree = ast.parse((ROOT / "src" / "ikirere" / path).read_text())
        assert set(names) <= {mutant.name for mutant in mutants(tree)}
