"""YAML in and out, by the core schema of YAML 1.2.

PyYAML speaks YAML 1.1, in which `on` is true and `1e-4` is a string. A recipe says `compile: on` and
`z_loss: 1e-4` and means the word and the number, so both directions use the table of scalars below.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from ikirere.errors import UserError

KeyPath = tuple[str | int, ...]

_SCALARS: tuple[tuple[str, str, str], ...] = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own name and form)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


_BREAKS = re.compile("[\x85\u2028\u2029]")  # line ends to YAML 1.1, which plain text would lose


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = '"' if _BREAKS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)

for _tag, _pattern, _first in _SCALARS:
    for _cls in (_Loader, _Dumper):
        _cls.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(f"^(?:{_pattern})$"),
            [c if c != "\0" else "" for c in _first],
        )


@dataclass(frozen=True)
class Parsed:
    """Plain Python values and the line (from 1) on which each key path begins."""

    value: Any
    lines: dict[KeyPath, int]


def parse(text: str, where: str) -> Parsed:
    """Parse one YAML document. Raises UserError with the line: not YAML, a key given twice, a tag."""
    loader = None
    try:
        loader = _Loader(text)  # refuses control characters at once
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise UserError(_not_yaml(error, where)) from None
    finally:
        if loader is not None:
            loader.dispose()
    if node is None:
        return Parsed(None, {})
    lines: dict[KeyPath, int] = {}
    return Parsed(_plain(node, (), lines, where, frozenset()), lines)


def _not_yaml(error: yaml.YAMLError, where: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return f"{where}{line}: not YAML: {' '.join(str(problem).split())}"


def _plain(
    node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], where: str, above: frozenset[int]
) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if id(node) in above:
        raise UserError(f"{where}:{line}: an alias that contains itself; write the value out")
    above = above | {id(node)}
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{where}:{key_line}: a key must be a word, not a list or mapping")
            key = key_node.value
            if key in result:
                raise UserError(
                    f"{where}:{key_line}: {dotted((*path, key))} is given twice "
                    f"(first on line {lines[(*path, key)]}); keep one"
                )
            lines[(*path, key)] = key_line
            result[key] = _plain(value_node, (*path, key), lines, where, above)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, i), lines, where, above) for i, item in enumerate(node.value)]
    return _scalar(node, where, line)


def _scalar(node: yaml.Node, where: str, line: int) -> Any:
    kind, text = node.tag.rpartition(":")[2], node.value
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    try:
        if kind == "int":
            return int(text.replace("_", ""))
        if kind == "float":
            return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        pass
    raise UserError(
        f"{where}:{line}: {text!r} with the tag {node.tag} is not accepted; write plain YAML values"
    )


def dotted(path: KeyPath) -> str:
    """`('data', 'sources', 0)` -> `data.sources.0`."""
    return ".".join(str(part) for part in path)


def dump_yaml(value: Any) -> str:
    """YAML text of plain values, keys in their order; `parse` gives the same values back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
