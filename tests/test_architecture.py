"""The rules of the design as tables, compared with the code: a breach names file and line.

A *room* is a package of `tuner/` with all that is in it, a module that lies in `tuner/` itself, `data`, `models`, the
commands, or the benchmarks. What counts as an import: tests/support/imports.py.
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import PurePath

import pytest

from tests.support.imports import (
    Import,
    Sources,
    circle,
    floors,
    foreign_private_names,
    imports_of,
    project_sources,
)
from tests.support.workplace import PROJECT

# They hold argparse and printing alone, may import every room, and nobody imports them. Every `__main__.py` is one.
COMMANDS = {
    "tune.py": ("tune.py",),
    "tuner/best.py": ("-m", "tuner.best"),
    "tuner/steer.py": ("-m", "tuner.steer"),
    "tuner/train.py": ("-m", "tuner.train"),
    "tuner/evaluate.py": ("-m", "tuner.evaluate"),
    "tuner/predict.py": ("-m", "tuner.predict"),
    "tuner/embed.py": ("-m", "tuner.embed"),
    "data/inspect/__main__.py": ("-m", "data.inspect"),
    "data/cache/__main__.py": ("-m", "data.cache"),
    "data/sample/__main__.py": ("-m", "data.sample"),
}

# What each room may import beside itself: rooms or single files. Every room has an entry.
MAY_IMPORT: dict[str, set[str]] = {
    "data": set(),
    "models": {"data/ranges.py", "data/schema.py"},
    "tuner": set(),  # tuner/__init__.py
    "tuner.errors": {"data"},
    "tuner.imports": set(),
    "tuner.redact": {"data", "tuner.errors", "tuner.imports"},
    "tuner.background": {"data", "tuner.errors", "tuner.imports", "tuner.redact"},
}


def _above(below: str, *rooms: str) -> None:
    """Let the first room import `below` and all that it may import, and each further room the one before as well."""
    for room in rooms:
        MAY_IMPORT[room] = MAY_IMPORT[below] | {below}
        below = room


_above("tuner.background", "tuner.storage")
_above("tuner.background", "tuner.cli")
for room in ("tuner.tracking", "tuner.console", "tuner.project"):
    _above("tuner.storage", room)
_above("tuner.storage", "tuner.training")
MAY_IMPORT["tuner.training"].add("models")
_above("tuner.training", "tuner.config")
_above("tuner.config", "tuner.export", "tuner.inference")
_above("tuner.config", "tuner.cluster", "tuner.workers")
MAY_IMPORT["tuner.search"] = MAY_IMPORT.keys() - {"tuner.cli"}
MAY_IMPORT["commands"] = MAY_IMPORT.keys() - {"tuner"}
# Benchmarks may import everything but commands. Tests are free: a test of a command calls it.
MAY_IMPORT["benchmarks"] = MAY_IMPORT.keys() - {"commands"} | {"tests"}

# The only rooms of the product that may import a framework.
MAY_KNOW = {
    "ray": {"tuner.cluster", "tuner.workers", "tuner.search"},
    "optuna": {"tuner.search"},
    "mlflow": {"tuner.tracking"},
    "pydantic": {"tuner.config"},
    "yaml": {"tuner.config"},
}
MODELS_OPEN_NO_FILE = {"pathlib", "os", "io", "json", "fsspec", "tfrecord", "safetensors"}

# Only these files may use private names of Ray and Optuna.
INTERNALS = {"tuner/workers/ray_internals.py", "tuner/search/sampling/optuna_internals.py"}
PUBLIC_IN_SPITE_OF_THEIR_NAME = {"_exit", "_replace"}  # of os, and of named tuples

MOST_FLOORS = 10  # in tuner/: a room stands one floor above the highest room that it imports
MOST_FILES = 16  # .py files of a folder
MOST_LINES = 400  # of a file
# Longer files, each with the reason that it is one idea.
LONGER: dict[str, str] = {}

PRODUCT = ("tune.py", "tuner", "models", "data")


@cache
def room_of(file: str) -> str:
    """Return the room in which a file of the project lies."""
    parts = PurePath(file).with_suffix("").parts
    if file in COMMANDS or parts[-1] == "__main__":
        return "commands"
    return ".".join(parts[:2]) if parts[0] == "tuner" and parts[1] != "__init__" else parts[0]


def product(sources: Sources, *roots: str) -> dict[str, str]:
    """Select the files below these folders, or those of the product where none is given."""
    return {file: text for file, text in sources.items() if file.split("/")[0] in (roots or PRODUCT)}


def against_the_order(sources: Sources) -> list[Import]:
    """Return the imports that the tables do not allow."""
    return [one for one in imports_of(sources) if not _is_allowed(one)]


def _is_allowed(one: Import) -> bool:
    if (room := room_of(one.file)) == "tests":
        return True
    if one.target is None:
        if room == "models" and one.top in MODELS_OPEN_NO_FILE:
            return False
        return one.top not in MAY_KNOW or room in MAY_KNOW[one.top] or room == "benchmarks"
    other = room_of(one.target)
    if other == room:
        return room != "commands" or one.file == one.target
    return bool({other, one.target} & MAY_IMPORT.get(room, set()))


def private_names(sources: Sources) -> Iterator[tuple[str, int, str]]:
    """Yield file, line and name of each private name of a library that is used outside INTERNALS."""
    for file, line, name in foreign_private_names(product(sources)):
        if file.startswith("tune") and file not in INTERNALS and name not in PUBLIC_IN_SPITE_OF_THEIR_NAME:
            yield file, line, name


def room_edges(sources: Sources) -> Iterator[tuple[str, str]]:
    """Yield (importer, imported) of the rooms in tuner/ and tune.py, by the imports that the order allows."""
    for one in imports_of(product(sources, "tuner", "tune.py")):
        if one.target and _is_allowed(one) and room_of(one.file) != room_of(one.target):
            yield room_of(one.file), room_of(one.target)


# --- the rules --------------------------------------------------------------------------------------------------------


def test_every_import_is_allowed_by_the_order() -> None:
    breaches = against_the_order(project_sources())
    assert not breaches, "\n".join(map(str, breaches))


def test_every_room_has_its_line_in_the_table() -> None:
    rooms = {room_of(file) for file in project_sources()} - {"tests"}
    assert rooms <= MAY_IMPORT.keys(), "the order of the design says where a new room stands"


def test_no_files_import_each_other_in_a_circle() -> None:
    found = circle(imports_of(project_sources()))
    assert not found, "a circle:\n" + "\n".join(map(str, found))


def test_only_two_files_use_private_names_of_ray_and_optuna() -> None:
    breaches = [f"{file}:{line}: uses {name}" for file, line, name in private_names(project_sources())]
    assert not breaches, "\n".join(breaches)


def test_tuner_has_few_floors() -> None:
    found = floors(room_edges(project_sources()))
    assert max(found.values()) <= MOST_FLOORS, sorted(found.items(), key=lambda item: item[1])


def test_no_folder_holds_too_many_files() -> None:
    count = Counter(str(PurePath(file).parent) for file in product(project_sources()))
    assert {folder: files for folder, files in count.items() if files > MOST_FILES} == {}


def test_no_file_is_long_without_a_reason() -> None:
    lines = {file: len(text.splitlines()) for file, text in product(project_sources()).items()}
    longer = {file: count for file, count in lines.items() if count > MOST_LINES}
    assert longer.keys() == LONGER.keys(), f"split them, or say in LONGER why each is one idea: {longer}"


# --- the rules find a breach ------------------------------------------------------------------------------------------


def with_line(file: str, line: str) -> tuple[dict[str, str], int]:
    """Return the project's sources with a line added at the end of a file, and the number of that line."""
    text = project_sources()[file]
    return project_sources() | {file: f"{text}{line}\n"}, len(text.splitlines()) + 1


def breaches_of(sources: Sources) -> list[str]:
    return [str(one) for one in against_the_order(sources)]


@cache
def a_file_of(room: str) -> str:
    return min(file for file in project_sources() if room_of(file) == room)


def present() -> list[str]:
    """Return the rooms that exist: each has its test."""
    return sorted({room_of(file) for file in project_sources()} & MAY_IMPORT.keys() - {"tuner"})


@pytest.mark.parametrize("room", present())
def test_one_import_against_the_order_is_found_in_every_room(room: str) -> None:
    """No room may import a command: not at the top of a file, not relatively, and not in a function."""
    file, target = a_file_of(room), "tuner/predict.py" if room == "commands" else "tuner/best.py"
    module = target.removesuffix(".py").replace("/", ".")
    lines = [f"import {module}", f"from {module} import run", f"def late(): from tuner import {PurePath(target).stem}"]
    if file.startswith("tuner/"):
        up = "." * file.count("/")
        lines += [f"from {up} import {PurePath(target).stem}", f"from {up}{PurePath(target).stem} import run"]
    for line in lines:
        sources, number = with_line(file, line)
        assert breaches_of(sources) == [f"{file}:{number}: imports {target}"], line


@pytest.mark.parametrize("lower", present())
def test_an_import_of_any_room_that_is_not_below_is_found(lower: str) -> None:
    for upper in set(present()) - MAY_IMPORT[lower] - {lower, "data" if lower == "models" else ""}:
        target = a_file_of(upper)
        name = target.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        sources, number = with_line(a_file_of(lower), f"import {name}")
        assert breaches_of(sources) == [f"{a_file_of(lower)}:{number}: imports {target}"]


@pytest.mark.parametrize("framework", MAY_KNOW)
def test_a_framework_in_the_wrong_room_is_found(framework: str) -> None:
    for room in {room_of(file) for file in product(project_sources())} - MAY_KNOW[framework]:
        sources, number = with_line(a_file_of(room), f"from {framework}.util import thing")
        assert breaches_of(sources) == [f"{a_file_of(room)}:{number}: imports {framework}.util.thing"]


def test_a_circle_is_named_with_its_lines() -> None:
    """Of three files, one import relative, one in a function, one for type checkers alone."""
    files = {
        "tuner/a.py": "import os\nfrom tuner import b\n",
        "tuner/b.py": "def late():\n    from .c import thing\n",
        "tuner/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tuner.a\n",
        "tuner/d.py": "import tuner.a\n",
    }
    assert sorted(map(str, circle(imports_of(files)))) == [
        "tuner/a.py:2: imports tuner/b.py",
        "tuner/b.py:2: imports tuner/c.py",
        "tuner/c.py:3: imports tuner/a.py",
    ]
    assert circle(imports_of(files | {"tuner/c.py": ""})) == []


def test_floors_count_the_longest_way_down() -> None:
    assert floors(iter([("c", "a"), ("c", "b"), ("b", "a"), ("d", "a")])) == {"a": 1, "b": 2, "c": 3, "d": 2}


@pytest.mark.parametrize(
    "line", ["import ray._private.state", "from optuna.study import _tell", "print(open._study_id)"]
)
def test_a_private_name_of_a_library_is_found(line: str) -> None:
    sources, number = with_line("tuner/storage/place.py", line)
    found = set(private_names(sources)) - set(private_names(project_sources()))
    assert [one[:2] for one in found] == [("tuner/storage/place.py", number)]


# --- what is loaded ---------------------------------------------------------------------------------------------------


def test_a_trial_trains_where_ray_mlflow_optuna_pydantic_and_yaml_are_missing() -> None:
    program = (
        "import importlib, pkgutil, sys\n"
        f"for name in {tuple(MAY_KNOW)}: sys.modules[name] = None\n"
        "import data, models, tuner.training\n"
        "for package in (data, models, tuner.training):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name) if not module.name.endswith('__main__') else None\n"
        "import tuner.train, tuner.evaluate\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_printed_without_the_heavy_imports(command: str) -> None:
    arguments = ("-X", "importtime", *COMMANDS[command], "--help")
    ran = subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in ran.stderr.splitlines() if "|" in line}
    heavy = loaded & {"torch", "ray", "mlflow", "optuna"}
    assert "argparse" in loaded and not heavy


# --- what is written --------------------------------------------------------------------------------------------------


def test_no_file_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git repository")
    # Written in pieces, so that this file does not name them.
    roots = "|".join(["home", "root", "Users", "work", "opt", "mnt", "tmp", "srv"])
    path = re.compile(rf"(?<![\w.}}$*<>)~-])/({roots})/\w")
    assert path.search(f"open('/{'tmp'}/x')") and not path.search(f"https://host/{'opt'}/x a/{'work'}/b $X/{'home'}/y")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        try:
            text = (PROJECT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        found += [f"{name}: {line.strip()}" for line in text.splitlines() if path.search(line) or str(PROJECT) in line]
    assert found == []


def without_encoding(sources: Sources) -> list[str]:
    """Return the places that read or write a text file in the encoding of the user's locale."""
    found = []
    for file, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                texts = node.func.attr in ("read_text", "write_text")
                if texts and not any(keyword.arg == "encoding" for keyword in node.keywords):
                    found.append(f"{file}:{node.lineno}")
    return found


def test_text_files_are_read_and_written_as_utf_8() -> None:
    assert without_encoding({"a.py": "path.read_text()"}) == ["a.py:1"]
    assert not without_encoding(product(project_sources()))
