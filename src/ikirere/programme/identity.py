"""What a stage's result depends on, kept beside the result, and what of it changed.

`identity.json` in a stage's folder holds the settings themselves, not only their hash, so that a change can be shown
with its old and its new value; by what code and in which environment the result was made, which outdates nothing; the
changes made by `--go-on`; and, once the stage is done, what it made. A folder that was set aside is described by it
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ikirere.common.files import json_sha256, read_json, write_json
from ikirere.errors import UserError
from ikirere.programme.stage import Continued

NAME = "identity.json"
_MISSING = "(not set)"


@dataclass(frozen=True)
class Change:
    """One leaf of the settings that differs."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        if self.key.startswith("inputs."):
            return f"the outputs of {self.key.removeprefix('inputs.')} are others"
        if self.key.startswith("external."):
            return f"{self.key.removeprefix('external.')}: its content changed"
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Identity:
    """The settings and inputs of a stage as the recipe has them now.

    inputs: stage -> hash of the bytes of its outputs. measuring: settings that change what is measured only; they are
    in no key.
    """

    stage: str
    config: Mapping[str, Any]
    external: Mapping[str, str]
    inputs: Mapping[str, str]
    seed: int
    rehearsal: bool
    measuring: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "external": self.external,
            "inputs": self.inputs,
            "seed": self.seed,
            "rehearsal": self.rehearsal,
        }

    @property
    def base(self) -> str:
        """Hash of the settings, whatever `--go-on` changed since."""
        return json_sha256({"stage": self.stage, **self.parts})


@dataclass
class Record:
    """The content of `identity.json`.

    base: `Identity.base`. key: the same with the history of `--go-on`; checkpoints carry it. continued: that history,
    each with the step, the key until then and the settings until then. made_by: {"code", "environment",
    "surroundings"}. finished: {"artifacts", "result", "seconds", "spent", "peak_rss_bytes"} once the stage is done.
    """

    stage: str
    base: str
    key: str
    parts: dict[str, Any]
    measuring: dict[str, Any]
    made_by: dict[str, Any]
    continued: list[dict[str, Any]] = field(default_factory=list)
    finished: dict[str, Any] | None = None

    def write(self, folder: Path) -> None:
        write_json(folder / NAME, vars(self))

    def changes(self, identity: Identity) -> list[Change]:
        """What differs between the settings of the record and those of the recipe."""
        return differences(self.parts, identity.parts)

    def history(self) -> tuple[Continued, ...]:
        return tuple(Continued(int(row["step"]), row["config"]) for row in self.continued)


def new_record(
    identity: Identity, made_by: dict[str, Any], continued: Iterable[dict[str, Any]] = ()
) -> Record:
    """The record of a stage that begins, or continues, with these settings."""
    history = list(continued)
    key = (
        json_sha256([identity.base, [[row["step"], row["key"]] for row in history]])
        if history
        else identity.base
    )
    return Record(
        identity.stage, identity.base, key, plain(identity.parts), plain(identity.measuring), made_by, history
    )


def read_record(folder: Path) -> Record | None:
    """The record of a stage's folder, or None where there is none or it cannot be read (its result then counts as made
    with unknown settings)."""
    try:
        return Record(**read_json(folder / NAME))
    except (UserError, TypeError):
        return None


def plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples as lists, keys as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _leaves(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        pairs: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple) and value:
        pairs = enumerate(value)
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in pairs:
        found |= _leaves(inner, f"{path}.{key}" if path else str(key))
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The leaves in which two `Identity.parts` differ. Settings have the recipe's key paths, other parts are named
    `inputs.STAGE`, `external.LABEL`, `seed`, `rehearsal`."""

    def named(parts: Mapping[str, Any]) -> dict[str, Any]:
        flat = _leaves(plain(parts.get("config", {})), "")
        for part in ("external", "inputs"):
            flat |= {f"{part}.{label}": value for label, value in parts.get(part, {}).items()}
        return flat | {part: parts[part] for part in ("seed", "rehearsal") if part in parts}

    before, after = named(old), named(new)
    before.pop("", None), after.pop("", None)
    return [
        Change(key, before.get(key, _MISSING), after.get(key, _MISSING))
        for key in dict.fromkeys([*before, *after])
        if before.get(key, _MISSING) != after.get(key, _MISSING)
    ]


def changed_settings(continued: Sequence[Continued], config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What the last `--go-on` changed, key -> [old, new]; {} where there was none. config: the settings now."""
    if not continued:
        return {}
    found = differences({"config": continued[-1].config}, {"config": config})
    return {change.key: [change.old, change.new] for change in found}


def outputs_digest(artifacts: Iterable[Mapping[str, Any]], outputs: Iterable[str]) -> str:
    """Hash of the names and bytes of those artifacts that later stages read.

    artifacts: rows with `path` and `sha256`. outputs: files or folders, as `Stage.outputs` has them.
    """
    wanted = tuple(outputs)
    rows = sorted(
        (str(row["path"]), str(row["sha256"]))
        for row in artifacts
        if any(row["path"] == name or str(row["path"]).startswith(f"{name}/") for name in wanted)
    )
    return json_sha256(rows)
