"""Definitions and execution by name: arguments are checked, nothing raises."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from ikirere.errors import UserError
from ikirere.tools.registry import TOOLS, definitions, execute


def test_definitions_are_in_the_standard_form() -> None:
    found = definitions(["python_exec", "calculator"])
    assert [d["function"]["name"] for d in found] == ["python_exec", "calculator"]
    for definition in found:
        assert definition["type"] == "function"
        assert set(definition["function"]) == {"name", "description", "parameters"}
        Draft202012Validator.check_schema(definition["function"]["parameters"])


def test_an_unknown_tool_is_named() -> None:
    with pytest.raises(UserError, match=r"'web'.*calculator, python_exec"):
        definitions(["web"])
    assert execute("web", {}).content == "error: no tool 'web'; tools are calculator, python_exec"


@pytest.mark.parametrize(
    "arguments",
    [{}, {"expression": 3}, {"expression": "1", "more": 1}, {"exp": "1"}, "1+1", None, ["1+1"], 7],
)
def test_wrong_arguments_are_results(arguments: Any) -> None:
    result = execute("calculator", arguments)
    assert not result.ok and result.content.startswith("error: arguments: ")


def test_a_tool_that_breaks_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: dict[str, Any]) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(TOOLS["calculator"], "call", broken)
    assert execute("calculator", {"expression": "1"}).content == "error: RuntimeError: no luck"
