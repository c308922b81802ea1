"""Who imports whom in the project, read from the source text without running any of it.

Every import counts, wherever it stands: at the top of a file, in a function, or under `if TYPE_CHECKING`. Absolute and
relative imports and `from package import module` all lead to the file that they name. That Python also runs the
`__init__.py` of each package on the way to a module is not counted: otherwise a package whose `__init__.py` names its
own modules would be a circle.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

from tests.support.workplace import PROJECT

OURS = ("data", "models", "tuner", "tests", "benchmarks")  # the folders with code; tune.py lies beside them
Sources = Mapping[str, str]  # the text of each file, by its path in the project


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name."""

    file: str  # that imports it
    line: int
    name: str  # absolute and dotted: what follows `import`, or module and name of `from module import name`
    target: str | None  # the file of the project that it leads to

    @property
    def top(self) -> str:
        """The top-level package or module: `ray` of `ray.train`."""
        return self.name.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: imports {self.target or self.name}"


@cache
def project_sources() -> dict[str, str]:
    """The text of every Python file of the project."""
    files = [PROJECT / "tune.py", *(path for folder in OURS for path in sorted((PROJECT / folder).rglob("*.py")))]
    return {path.relative_to(PROJECT).as_posix(): path.read_text() for path in files}


@cache
def parsed(file: str, text: str) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(text, file)


@cache
def _names(file: str, text: str) -> tuple[tuple[int, str], ...]:
    """Line and absolute dotted name of each imported name."""
    found = []
    for node in ast.walk(parsed(file, text)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = file.split("/")[:-1]
            start = folder[: len(folder) - node.level + 1] if node.level else []
            module = [*start, *([node.module] if node.module else [])]
            found += [(alias.lineno, ".".join([*module, alias.name])) for alias in node.names]
    return tuple(sorted(found))


def imports_of(sources: Sources) -> list[Import]:
    """Every import of every file, in the order of files and lines; several names of one module in a line are one."""
    files = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in sources}
    found = [
        # `from module import name`: the name is a module, or it is in the module.
        Import(file, line, name, files.get(name) or files.get(name.rpartition(".")[0]))
        for file, text in sources.items()
        for line, name in _names(file, text)
    ]
    return list({(one.file, one.line, one.target or one.name): one for one in found}.values())


def circle(imports: list[Import]) -> list[Import]:
    """The imports of one circle of files, or an empty list where there is none."""
    edges = {(one.file, one.target): one for one in imports if one.target and one.target != one.file}
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for file, target in edges:
        sorter.add(file, target)
    try:
        sorter.prepare()
    except CycleError as error:
        files = error.args[1]  # each is imported by the next one
        return [edges[importer, imported] for imported, importer in pairwise(files)]
    return []


def floors(edges: Iterator[tuple[str, str]]) -> dict[str, int]:
    """The floor of each room of an acyclic graph of (importer, imported): one above the highest that it imports."""
    below: dict[str, set[str]] = {}
    for importer, imported in edges:
        below.setdefault(importer, set()).add(imported)
        below.setdefault(imported, set())
    found: dict[str, int] = {}
    for room in TopologicalSorter(below).static_order():
        found[room] = 1 + max((found[imported] for imported in below[room]), default=0)
    return found


def foreign_private_names(sources: Sources) -> Iterator[tuple[str, int, str]]:
    """File, line and name of each private name of a library that a file imports or takes from an object.

    A name is private where it, or a module on the way to it, begins with one underscore. Of which class an object is
    the text does not say: an attribute that no file of the project defines is a library's.
    """
    own = {name for file, text in sources.items() for name in _defined(file, text)}
    for file, text in sources.items():
        for line, name in _names(file, text):
            if name.split(".")[0] not in OURS and any(map(_is_private, name.split("."))):
                yield file, line, name
        for node in ast.walk(parsed(file, text)):
            if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in own:
                yield file, node.lineno, node.attr


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.strip("_") != ""


@cache
def _defined(file: str, text: str) -> frozenset[str]:
    """The private names that a file defines: functions, classes, variables, parameters, attributes, modules."""
    found = {Path(file).stem}
    for node in ast.walk(parsed(file, text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return frozenset(filter(_is_private, found))
