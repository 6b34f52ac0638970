"""What every section of a recipe is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

WATCHING: dict[str, Any] = {"changes_result": False}
"""`json_schema_extra` of keys that change what is watched, stored or how fast it goes, and nothing of the result."""

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weights = dict[str, Annotated[float, Field(ge=0.0)]]


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
