"""YAML 1.2 in and out, by ruamel.yaml: plain values, and the line of each key.

In YAML 1.2 `on` is a word and `1e-4` a number, which is what a recipe means by `compile: on` and `z_loss: 1e-4`.
Dates are text, and a tag that names any other type is refused.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter

from ikirere.errors import UserError

KeyPath = tuple[str | int, ...]

_CONVERTED = ("null", "bool", "int", "float")
_TEXT = ("str", "timestamp", "value", "merge")  # the last three: plain words that other YAML reads as more


_BREAKS = re.compile(
    "[\x85\u2028\u2029]"
)  # the scanner takes them for line ends where text stands without quotes


class _Representer(SafeRepresenter):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> ScalarNode:
        style = '"' if _BREAKS.search(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.width = 110
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


@dataclass(frozen=True)
class Parsed:
    """Plain Python values and the line (from 1) on which each key path begins."""

    value: Any
    lines: dict[KeyPath, int]


def parse(text: str, where: str) -> Parsed:
    """Parse one YAML document. Raises UserError with the line: not YAML, a key given twice, a tag."""
    try:
        node = _yaml().compose(text)
    except YAMLError as error:
        raise UserError(_not_yaml(error, text, where)) from None
    if node is None:
        return Parsed(None, {})
    reader = _Reader(where)
    return Parsed(reader.plain(node, (), ()), reader.lines)


def _not_yaml(error: YAMLError, text: str, where: str) -> str:
    if isinstance(error, ReaderError):  # its position counts characters
        at, problem = f":{text.count(chr(10), 0, error.position) + 1}", error.reason
    else:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        at, problem = f":{mark.line + 1}" if mark else "", getattr(error, "problem", None) or error
    return f"{where}{at}: not YAML: {' '.join(str(problem).split())}"


class _Reader:
    """From nodes to plain values; `lines` is filled meanwhile."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[KeyPath, int] = {}
        self._constructor = _yaml().constructor

    def plain(self, node: Node, path: KeyPath, above: tuple[Node, ...]) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        if node in above:
            raise UserError(f"{self.where}:{line}: an alias that contains itself; write the value out")
        above = (*above, node)
        kind = str(node.tag).rpartition(":")[2]
        if isinstance(node, MappingNode) and kind == "map":
            result: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = self._key(key_node, path, result)
                result[key] = self.plain(value_node, (*path, key), above)
            return result
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self.plain(item, (*path, i), above) for i, item in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            if kind in _TEXT:
                return node.value
            try:
                if kind in _CONVERTED:
                    return self._constructor.construct_object(node)
            except (ValueError, KeyError):
                pass  # a tag on a word that is no such value
        raise UserError(
            f"{self.where}:{line}: {_shown(node)} with the tag {node.tag} is not accepted; write plain YAML values"
        )

    def _key(self, node: Node, path: KeyPath, taken: dict[str, Any]) -> str:
        line = node.start_mark.line + 1
        if not isinstance(node, ScalarNode):
            raise UserError(f"{self.where}:{line}: a key must be a word, not a list or mapping")
        here = (*path, node.value)
        if node.value in taken:
            raise UserError(
                f"{self.where}:{line}: {dotted(here)} is given twice (first on line {self.lines[here]}); keep one"
            )
        self.lines[here] = line
        return str(node.value)


def _shown(node: Node) -> str:
    return repr(node.value) if isinstance(node, ScalarNode) else "a list or mapping"


def dotted(path: KeyPath) -> str:
    """`('data', 'sources', 0)` -> `data.sources.0`."""
    return ".".join(str(part) for part in path)


def dump_yaml(value: Any) -> str:
    """YAML text of plain values, keys in their order; `parse` gives the same values back."""
    text = io.StringIO()
    _yaml().dump(value, text)
    return text.getvalue()
