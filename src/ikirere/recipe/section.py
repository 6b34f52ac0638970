"""What every section of a recipe is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ikirere.recipe.renamed import old_key

WATCHING: dict[str, Any] = {"changes_result": False}
"""`json_schema_extra` of keys that change what is watched, stored or how fast it goes, and nothing of the result."""

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weights = dict[str, Annotated[float, Field(ge=0.0)]]


class KeyErrors(ValueError):
    """Keys of one section that do not fit together: dotted path below the section -> what is wrong, what is accepted."""

    def __init__(self, found: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{key}: {text}" for key, text in found.items()))
        self.found = dict(found)


class Section(BaseModel):
    """A mapping in which unknown keys are errors and values cannot be changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def result_settings(self) -> dict[str, Any]:
        """Plain values of the keys that the result depends on: those marked `WATCHING` are left out, however deep."""
        return {
            name: _plain(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if field.json_schema_extra is not WATCHING
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.result_settings()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value


S = TypeVar("S", bound=Section)


def checked(key: str, sections: Mapping[str, type[S]], name: str, values: Mapping[str, Any]) -> S:
    """The section `name` below `key`, one of several by name. Raises ValueError naming the key and what is accepted."""
    if name not in sections:
        raise ValueError(f"{key}.{name}: unknown; accepted are {', '.join(sections)}")
    try:
        return sections[name].model_validate(dict(values))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        path = ".".join((key, name, *map(str, detail["loc"])))
        if (
            detail["type"] == "value_error" and not detail["loc"]
        ):  # of the section: the text begins with the key
            raise ValueError(f"{path}.{detail['msg'].removeprefix('Value error, ')}") from None
        if detail["type"] != "extra_forbidden":
            why = detail["msg"].removeprefix("Value error, ")
            raise ValueError(f"{path}: got {detail['input']!r}; {why[:1].lower()}{why[1:]}") from None
        accepted = ", ".join(sections[name].model_fields) or "none"
        answer = old_key((name, *detail["loc"])) or f"{name!r} has no such setting; accepted keys: {accepted}"
        raise ValueError(f"{path}: {answer}") from None
