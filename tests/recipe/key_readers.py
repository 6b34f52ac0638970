"""Who reads a key of the recipe: attribute reads in the source, each attributed to the section that the object is.

A small inference over syntax trees: annotations, `isinstance`, calls that return a section, fields of sections, loops and
comprehensions. A container counts as what it holds. What cannot be inferred reads nothing, so a key that only such code
reads is reported, never the other way round. The schema's own validators (private functions of a section's class) are no
readers.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from ikirere.recipe.section import Section

Classes = frozenset[type[Section]]
NONE: Classes = frozenset()
PASSED_ON = {
    "list",
    "tuple",
    "sorted",
    "reversed",
    "enumerate",
    "zip",
    "chain",
    "set",
    "max",
    "min",
    "next",
    "iter",
}
KEPT = {"model_copy", "get", "items", "values", "setdefault", "pop"}


def sections(root: type[Section] = Section) -> Iterator[type[Section]]:
    """All classes below `root`."""
    for cls in root.__subclasses__():
        yield cls
        yield from sections(cls)


def held(annotation: Any) -> Classes:
    """The sections in a field's type, whatever holds them."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return frozenset([annotation])
    return NONE.union(*(held(inner) for inner in get_args(annotation)))


class Readers:
    """`reads`: (section, field) -> positions "file:line" that read it. same: names of classes that hold a section's fields
    under the same names."""

    def __init__(
        self, known: Iterable[type[Section]], same: Mapping[str, type[Section]] | None = None
    ) -> None:
        self.classes: dict[str, set[type[Section]]] = defaultdict(set)
        for cls in known:
            self.classes[cls.__name__].add(cls)
        self.same = dict(same or {})
        self.reads: dict[tuple[type[Section], str], list[str]] = defaultdict(list)
        self.returns: dict[str, Classes] = {}
        self.attributes: dict[str, Classes] = defaultdict(lambda: NONE)  # of objects of any file

    def read(self, files: Mapping[str, str]) -> None:
        """Reads the sources, file name -> text, and fills `reads`."""
        modules = [_Module(self, name, ast.parse(text)) for name, text in files.items()]
        for module in modules:
            module.declarations()
        for _ in range(2):  # what the attributes of later files hold
            for module in modules:
                module.walk()

    def found(self, owner: type[Section], field: str) -> list[str]:
        """Places that read a field, through this class or one that shares it by inheritance."""
        kin = [
            cls
            for cls, name in self.reads
            if name == field and (issubclass(cls, owner) or issubclass(owner, cls))
        ]
        return [where for cls in kin for where in self.reads[cls, field]]


class _Module:
    def __init__(self, readers: Readers, name: str, tree: ast.Module) -> None:
        self.readers, self.name, self.tree = readers, name, tree
        self.names: dict[str, Classes] = {}  # as which a section's class is known here
        self.modules: set[str] = set()  # names of modules of recipe/
        self.attributes: dict[str, Classes] = defaultdict(
            lambda: NONE
        )  # of objects of this file: self.config
        self.own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self._imported(node.module or "", alias.name, alias.asname or alias.name)
        if name.startswith("recipe/"):
            for own in self.own:
                self.names[own] = frozenset(readers.classes.get(own, ()))

    def _imported(self, module: str, name: str, local: str) -> None:
        if name in self.readers.same:
            self.names[local] = frozenset([self.readers.same[name]])
        elif module.startswith("ikirere.recipe"):
            if name in self.readers.classes:
                self.names[local] = frozenset(self.readers.classes[name])
            elif name[0].islower():
                self.modules.add(local)

    def declarations(self) -> None:
        """What functions return and what attributes hold, by annotation."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef) and (found := self.annotated(node.returns)):
                self.readers.returns[node.name] = self.readers.returns.get(node.name, NONE) | found
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name | ast.Attribute):
                name = node.target.id if isinstance(node.target, ast.Name) else node.target.attr
                self.holds(name, self.annotated(node.annotation))

    def holds(self, attribute: str, found: Classes) -> None:
        self.attributes[attribute] |= found
        self.readers.attributes[attribute] |= found

    def annotated(self, node: ast.expr | None) -> Classes:
        if node is None:
            return NONE
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.annotated(ast.parse(node.value, mode="eval").body)
        found = NONE
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                found |= self.names.get(part.id, NONE)
            elif (
                isinstance(part, ast.Attribute)
                and isinstance(part.value, ast.Name)
                and part.value.id in self.modules
            ):
                found |= frozenset(self.readers.classes.get(part.attr, ()))
        return found

    def walk(self) -> None:
        self._block(self.tree.body, {}, None)

    def _block(self, body: list[ast.stmt], env: dict[str, Classes], owner: Classes | None) -> None:
        for _ in range(2):  # loops carry names backwards
            for statement in body:
                _Function(self, env, owner).visit(statement)


class _Function(ast.NodeVisitor):
    """Follows one body. env: local name -> sections; owner: the section in whose class it stands."""

    def __init__(self, module: _Module, env: dict[str, Classes], owner: Classes | None) -> None:
        self.module, self.env, self.owner = module, env, owner

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.module._block(node.body, {}, self.module.names.get(node.name, NONE))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if self.owner and node.name.startswith("_"):
            return
        env = dict(self.env)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            env[argument.arg] = self.module.annotated(argument.annotation)
        if self.owner and arguments and arguments[0].arg in ("self", "cls"):
            env[arguments[0].arg] = self.owner
        self.module._block(node.body, env, None)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        env = {**self.env, **{argument.arg: NONE for argument in node.args.args}}
        _Function(self.module, env, None).visit(node.body)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self.env[node.target.id] = self.module.annotated(node.annotation)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self._bind(node.target, node.value)

    def visit_For(self, node: ast.For) -> None:
        self._bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._bind(node.target, node.iter)
        self.generic_visit(node)

    def _comprehension(self, node: Any) -> None:
        for generator in node.generators:
            self.visit(generator)
        self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_Call(self, node: ast.Call) -> None:
        if (
            isinstance(node.func, ast.Name)
            and node.func.id == "isinstance"
            and isinstance(node.args[0], ast.Name)
        ):
            name = node.args[0].id
            self.env[name] = self.env.get(name, NONE) | self.module.annotated(node.args[1])
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            for cls in self.of(node.value):
                if node.attr in cls.model_fields:
                    self.module.readers.reads[cls, node.attr].append(f"{self.module.name}:{node.lineno}")

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if (
            isinstance(target, ast.Tuple)
            and isinstance(value, ast.Tuple)
            and len(target.elts) == len(value.elts)
        ):
            for name, one in zip(target.elts, value.elts):
                self._bind(name, one)
            return
        found = self.of(value)
        for part in ast.walk(target):
            if isinstance(part, ast.Name):
                self.env[part.id] = found
            elif isinstance(part, ast.Attribute) and part is target:
                self.module.holds(part.attr, found)

    def of(self, node: ast.expr) -> Classes:
        """The sections that an expression may be or hold."""
        if isinstance(node, ast.Name):
            return self.env.get(node.id, NONE)
        if isinstance(node, ast.Attribute):
            bases = self.of(node.value)
            fields = [
                cls.model_fields[node.attr].annotation for cls in bases if node.attr in cls.model_fields
            ]
            found = NONE.union(*(held(annotation) for annotation in fields))
            if bases:
                return found
            return self.module.attributes[node.attr] or self.module.readers.attributes[node.attr]
        if isinstance(node, ast.Call):
            return self._called(node)
        if isinstance(node, ast.Subscript | ast.Starred):
            return self.of(node.value)
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
            return self.of(node.elt)
        parts: list[ast.expr] = []
        if isinstance(node, ast.BoolOp):
            parts = node.values
        elif isinstance(node, ast.IfExp):
            parts = [node.body, node.orelse]
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            parts = node.elts
        elif isinstance(node, ast.Dict):
            parts = node.values
        return NONE.union(*(self.of(part) for part in parts))

    def _called(self, node: ast.Call) -> Classes:
        named = NONE.union(
            *(self.module.annotated(a) for a in node.args if isinstance(a, ast.Name | ast.Attribute))
        )
        if isinstance(node.func, ast.Name):
            found = self.module.names.get(node.func.id, NONE) | self.module.readers.returns.get(
                node.func.id, NONE
            )
            if node.func.id in PASSED_ON:
                found = found.union(*(self.of(argument) for argument in node.args))
            return found | named
        if isinstance(node.func, ast.Attribute):
            found = self.module.readers.returns.get(node.func.attr, NONE) | self.module.annotated(node.func)
            return found | named | (self.of(node.func.value) if node.func.attr in KEPT else NONE)
        return named


def sources(root: Path) -> dict[str, str]:
    """All Python files below a package, by their path in it."""
    return {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(root.rglob("*.py"))
    }
