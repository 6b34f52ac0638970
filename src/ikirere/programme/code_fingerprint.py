"""The version of a stage's code: a hash of every file of the foundry that it can reach.

Reached are the modules named in import statements (also those inside functions) and those that a registry
names in a string (`"ikirere.corpus.steps.pii:Redactor"`), from the stage's own module downwards, with the
`__init__.py` of the packages on the way and the other files that lie in those packages (templates, pages;
not README.md). So an edit in a package that a stage does not use is not an edit of the stage.

Not seen: module names that are put together at run time, and the code of third parties, whose versions
stand in environment.json.
"""

from __future__ import annotations

import ast
import hashlib
import re
from functools import cache
from pathlib import Path

PACKAGE = "ikirere"
ROOT = Path(__file__).resolve().parent.parent
REGISTERED = re.compile(rf"{PACKAGE}(?:\.\w+)+(?::\w+)?")
SKIPPED_FILES = {"README.md"}
SKIPPED_ENDINGS = {".py", ".pyc", ".part"}


def module_file(name: str, root: Path = ROOT) -> Path | None:
    """The file of module `name` (`ikirere` or below it), or None where there is none."""
    first, *rest = name.split(".")
    if first != PACKAGE:
        return None
    base = root.joinpath(*rest)
    for candidate in (base / "__init__.py", base.with_suffix(".py") if rest else base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _statements(node: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """Import statements below `node`, leaving out those that only type checkers see."""
    found: list[ast.Import | ast.ImportFrom] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            found.append(child)
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for branch in child.orelse:
                found.extend(_statements(ast.Module([branch], [])))
        else:
            found.extend(_statements(child))
    return found


def _named(statement: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> list[str]:
    """Module names that a statement may mean; `from a import b` means `a` and perhaps `a.b`."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    base = statement.module or ""
    if statement.level:
        parts = module.split(".")
        parts = parts[: len(parts) - statement.level + (1 if is_package else 0)]
        base = ".".join([*parts, base] if base else parts)
    return [base, *(f"{base}.{alias.name}" for alias in statement.names)]


@cache
def _imports(path: Path, module: str, stamp: tuple[int, int]) -> tuple[str, ...]:
    tree = ast.parse(path.read_bytes(), filename=str(path))
    names: list[str] = []
    for statement in _statements(tree):
        names.extend(_named(statement, module, path.name == "__init__.py"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and REGISTERED.fullmatch(node.value)
        ):
            names.append(node.value.partition(":")[0])
    return tuple(name for name in names if name == PACKAGE or name.startswith(PACKAGE + "."))


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def closure(start: Path, module: str, root: Path = ROOT) -> dict[str, Path]:
    """module name -> file, of `start` and of all that it imports from the foundry, however deep."""
    found = {module: start}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        wanted = list(_imports(found[name], name, _stamp(found[name])))
        wanted.extend(name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1))
        for other in wanted:
            path = module_file(other, root)
            if other not in found and path is not None:
                found[other] = path
                waiting.append(other)
    return found


def _data_files(folder: Path) -> list[Path]:
    """Files that are not code in a package's folder and in its subfolders that are no packages."""
    found = []
    for child in sorted(folder.iterdir()):
        if child.is_dir():
            if child.name != "__pycache__" and not (child / "__init__.py").is_file():
                found.extend(_data_files(child))
        elif child.name not in SKIPPED_FILES and child.suffix not in SKIPPED_ENDINGS:
            found.append(child)
    return found


def code_hash(module: str, root: Path = ROOT) -> str:
    """sha256 over names and bytes of all files that the module can reach; '' where there is no such module."""
    start = module_file(module, root)
    if start is None:
        return ""
    modules = closure(start, module, root)
    files: dict[str, Path] = {f"module {name}": path for name, path in modules.items()}
    for name, path in modules.items():
        if path.name == "__init__.py":
            for data in _data_files(path.parent):
                files[f"data {name}/{data.relative_to(path.parent).as_posix()}"] = data
    digest = hashlib.sha256()
    for label in sorted(files):
        content = files[label].read_bytes()
        digest.update(f"{label}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
