"""From a validation error to one line that names the key, what is accepted and what was given."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic_core import ErrorDetails

from ikirere.recipe.renamed import old_key
from ikirere.recipe.section import KeyErrors
from ikirere.recipe.yamlio import KeyPath

Schema = Mapping[str, Any]
_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}


class Explainer:
    """Reads the JSON schema of a pydantic model to name what each key takes."""

    def __init__(self, schema: Schema, more_root_keys: tuple[str, ...] = ()) -> None:
        self._root = schema
        self._more_root_keys = more_root_keys

    def explain(self, error: ErrorDetails) -> list[tuple[KeyPath, str]]:
        """(the key's path, what is wrong with it in one line) of each key that the error is about."""
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, KeyErrors):
            path, _ = self._walk(error["loc"])
            return [((*path, *_parts(key)), text) for key, text in cause.found.items()]
        return [self._explain(error)]

    def _explain(self, error: ErrorDetails) -> tuple[KeyPath, str]:
        path, schema = self._walk(error["loc"])
        kind = error["type"]
        if kind == "extra_forbidden":
            return path, self._unknown(error["loc"])
        if kind in ("value_error", "assertion_error"):
            return path, str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if kind == "missing":
            return path, f"missing; give {self.accepted(schema)}{_said(schema)}"
        if kind.startswith("union_tag"):
            given = error.get("input")
            tag = given.get("kind") if isinstance(given, dict) else None
            kinds = sorted(self._options(schema))
            found = f"got kind {tag!r}{_closest(str(tag), kinds)}" if tag is not None else "has no kind"
            return path, f"{found}; accepted kinds: {', '.join(kinds)}"
        return path, f"got {_shown(error.get('input'))}; accepted: {self.accepted(schema)}{_said(schema)}"

    def _unknown(self, loc: tuple[int | str, ...]) -> str:
        path, schema = self._walk(loc[:-1])
        if (answer := old_key((*path, loc[-1]))) is not None:
            return answer
        keys = list(self._flat(schema).get("properties", {}))
        keys += self._more_root_keys if len(loc) == 1 else ()
        return f"unknown key{_closest(str(loc[-1]), keys)}; accepted keys: {', '.join(keys)}"

    def accepted(self, schema: Schema) -> str:
        """What a key takes, in words."""
        schema = self._deref(schema)
        if "anyOf" in schema:
            parts = dict.fromkeys(self.accepted(option) for option in schema["anyOf"])
            return " or ".join(parts)
        if "oneOf" in schema:
            return "a mapping with kind " + ", ".join(sorted(self._options(schema)))
        if "enum" in schema:
            return "one of " + ", ".join(str(v) for v in schema["enum"])
        if "const" in schema:
            return str(schema["const"])
        kind = schema.get("type")
        if kind == "array":
            return self._accepted_array(schema)
        if kind == "object":
            inner = schema.get("additionalProperties")
            return f"a mapping of {self.accepted(inner)}" if isinstance(inner, Mapping) else "a mapping"
        return _TYPES.get(str(kind), "any value") + _range(schema)

    def _accepted_array(self, schema: Schema) -> str:
        if "prefixItems" in schema:
            return "a list of " + " and ".join(self.accepted(item) for item in schema["prefixItems"])
        few = " (not empty)" if schema.get("minItems") else ""
        items = schema.get("items")
        return f"a list of {self.accepted(items)}{few}" if items else f"a list{few}"

    def _deref(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            target: Any = self._root
            for part in schema["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            schema = {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
        return schema

    def _flat(self, schema: Schema) -> Schema:
        """The schema without `or null`."""
        schema = self._deref(schema)
        options = [o for o in schema.get("anyOf", ()) if self._deref(o).get("type") != "null"]
        return self._deref(options[0]) if len(options) == 1 else schema

    def _options(self, schema: Schema) -> dict[str, Schema]:
        schema = self._flat(schema)
        mapping = schema.get("discriminator", {}).get("mapping", {})
        return {tag: {"$ref": ref} for tag, ref in mapping.items()}

    def _walk(self, loc: tuple[int | str, ...]) -> tuple[KeyPath, Schema]:
        """Key path (tags of unions left out) and schema of a location."""
        path: list[int | str] = []
        schema: Schema = self._root
        for part in loc:
            flat = self._flat(schema)
            options = self._options(flat)
            if part in options:
                schema = options[str(part)]
                continue
            path.append(part)
            if isinstance(part, int):
                prefix = flat.get("prefixItems", ())
                schema = prefix[part] if part < len(prefix) else flat.get("items", {})
            else:
                more = flat.get("additionalProperties")
                default: Schema = more if isinstance(more, Mapping) else {}
                schema = flat.get("properties", {}).get(part, default)
        return tuple(path), schema


def _parts(key: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in key.split(".")]


def _closest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _range(schema: Schema) -> str:
    words = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    parts = [f"{sign} {schema[key]:g}" for key, sign in words.items() if key in schema]
    if "pattern" in schema:
        parts.append(f"matching {schema['pattern']}")
    return " " + " and ".join(parts) if parts else ""


def _said(schema: Schema) -> str:
    description = schema.get("description")
    return f" ({description})" if description else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return ("a " if value else "an empty ") + ("mapping" if isinstance(value, dict) else "list")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
