"""The rules of the design as tables, held against the code: a breach names file and line.

A *room* is a package of `tuner/` with all that is in it, a module that lies in `tuner/` itself, `data`, `models`, the
commands, or the benchmarks. What counts as an import: tests/support/imports.py.
"""

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

# Argparse and printing: they may import every room, and nobody imports them. So are all `__main__.py`.
COMMANDS = {
    "tune.py": ("tune.py",),
    "tuner/best.py": ("-m", "tuner.best"),
    "tuner/train.py": ("-m", "tuner.train"),
    "tuner/evaluate.py": ("-m", "tuner.evaluate"),
    "tuner/predict.py": ("-m", "tuner.predict"),
    "tuner/embed.py": ("-m", "tuner.embed"),
    "data/inspect.py": ("-m", "data.inspect"),
    "data/cache/__main__.py": ("-m", "data.cache"),
    "data/sample/__main__.py": ("-m", "data.sample"),
}

# Who may import whom, itself apart: rooms, or single files. A room that is not named here may not be.
MAY_IMPORT: dict[str, set[str]] = {
    "data": set(),
    "models": {"data/schema.py"},
    "tuner": set(),  # tuner/__init__.py
    "tuner.errors": {"data"},
    "tuner.redact": {"data", "tuner.errors"},
}


def _above(below: str, *rooms: str) -> None:
    """Put rooms, one on the other, on all that `below` stands on."""
    for room in rooms:
        MAY_IMPORT[room] = MAY_IMPORT[below] | {below}
        below = room


_above("tuner.redact", "tuner.storage")
_above("tuner.redact", "tuner.cli")
for room in ("tuner.tracking", "tuner.console", "tuner.project"):
    _above("tuner.storage", room)
_above("tuner.storage", "tuner.training")
MAY_IMPORT["tuner.training"].add("models")
_above("tuner.training", "tuner.config")
_above("tuner.config", "tuner.export", "tuner.inference")
_above("tuner.config", "tuner.cluster", "tuner.workers")
MAY_IMPORT["tuner.search"] = MAY_IMPORT.keys() - {"tuner.cli"}
MAY_IMPORT["commands"] = MAY_IMPORT.keys() - {"tuner"}
# Benchmarks and tests may import all, commands apart; a test of a command calls it as its user's shell would.
MAY_IMPORT["benchmarks"] = MAY_IMPORT.keys() - {"commands"} | {"tests"}

# Which rooms may know a framework. What stands in no line is free.
MAY_KNOW = {
    "ray": {"tuner.cluster", "tuner.workers", "tuner.search"},
    "optuna": {"tuner.search"},
    "mlflow": {"tuner.tracking"},
    "pydantic": {"tuner.config"},
    "yaml": {"tuner.config"},
}
MODELS_OPEN_NO_FILE = {"pathlib", "os", "io", "json", "fsspec", "tfrecord", "safetensors"}

# What Ray and Optuna do not publish is used in these two files alone.
INTERNALS = {"tuner/workers/ray_internals.py", "tuner/search/optuna_internals.py"}
PUBLIC_ALL_THE_SAME = {"_exit", "_replace"}  # of os, and of every named tuple

MOST_FLOORS = 10  # of rooms in tuner/, each standing on all that it imports
MOST_FILES = 16  # .py files of a folder
MOST_LINES = 400  # of a file
# Longer files, each with the reason that it is one idea.
LONGER: dict[str, str] = {}

PRODUCT = ("tune.py", "tuner", "models", "data")

# To be emptied: breaches that are still there. File -> what it imports, or names, or is.
STILL: set[tuple[str, str]] = {
    ("benchmarks/compare.py", "tuner/train.py"),
    ("benchmarks/ensemble.py", "tuner/train.py"),
    ("benchmarks/few_labels.py", "tuner/train.py"),
    ("tuner/config/experiment.py", "lines"),
    ("tuner/train.py", "help"),
    ("tuner/training/contrastive/linear.py", "tuner/evaluate.py"),
    ("tuner/training/contrastive/ridge.py", "tuner/evaluate.py"),
    ("tuner/training/contrastive/trial.py", "tuner/evaluate.py"),
    ("tuner/training/objective.py", "tuner/training/supervised.py"),
    ("tuner/training/supervised.py", "tuner/evaluate.py"),
    ("tuner/workers/worker.py", "tuner/train.py"),
}


@cache
def room_of(file: str) -> str:
    """The room in which a file of the project lies."""
    parts = PurePath(file).with_suffix("").parts
    if file in COMMANDS or parts[-1] == "__main__":
        return "commands"
    return ".".join(parts[:2]) if parts[0] == "tuner" and parts[1] != "__init__" else parts[0]


def product(sources: Sources, *roots: str) -> dict[str, str]:
    """The files below these folders; without any, those of the product."""
    return {file: text for file, text in sources.items() if file.split("/")[0] in (roots or PRODUCT)}


def against_the_order(sources: Sources) -> list[Import]:
    """Imports of a room, or of a framework, that the tables do not allow."""
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
    """File, line and name of what is used in tuner/ though its library does not publish it."""
    for file, line, name in foreign_private_names(product(sources)):
        if file.startswith("tune") and file not in INTERNALS and name not in PUBLIC_ALL_THE_SAME:
            yield file, line, name


def room_edges(sources: Sources) -> Iterator[tuple[str, str]]:
    """(importer, imported) of the rooms in tuner/, tune.py beside them, by the imports that the order allows."""
    for one in imports_of(product(sources, "tuner", "tune.py")):
        if one.target and _is_allowed(one) and room_of(one.file) != room_of(one.target):
            yield room_of(one.file), room_of(one.target)


# --- the rules --------------------------------------------------------------------------------------------------------


def test_every_import_is_allowed_by_the_order() -> None:
    breaches = [
        str(one) for one in against_the_order(project_sources()) if (one.file, one.target or one.top) not in STILL
    ]
    assert not breaches, "\n".join(breaches)


def test_every_room_has_its_line_in_the_table() -> None:
    rooms = {room_of(file) for file in project_sources()} - {"tests"}
    assert rooms <= MAY_IMPORT.keys(), "the order of the design says where a new room stands"


def test_no_files_import_each_other_in_a_circle() -> None:
    imports = [one for one in imports_of(project_sources()) if (one.file, one.target) not in STILL]
    assert not circle(imports), "a circle:\n" + "\n".join(map(str, circle(imports)))


def test_what_ray_and_optuna_do_not_publish_is_used_in_two_files_alone() -> None:
    breaches = [one for one in private_names(project_sources()) if (one[0], one[2]) not in STILL]
    assert not breaches, "\n".join(f"{file}:{line}: uses {name}" for file, line, name in breaches)


def test_tuner_has_few_floors() -> None:
    found = floors(room_edges(project_sources()))
    assert max(found.values()) <= MOST_FLOORS, sorted(found.items(), key=lambda item: item[1])


def test_no_folder_holds_too_many_files() -> None:
    count = Counter(str(PurePath(file).parent) for file in product(project_sources()))
    assert {
        folder: files for folder, files in count.items() if files > MOST_FILES and (folder, "files") not in STILL
    } == {}


def test_no_file_is_long_without_a_reason() -> None:
    lines = {file: len(text.splitlines()) for file, text in product(project_sources()).items()}
    longer = {file: count for file, count in lines.items() if count > MOST_LINES and (file, "lines") not in STILL}
    assert longer.keys() == LONGER.keys(), f"split them, or say in LONGER why each is one idea: {longer}"


# --- that the rules hold anything -------------------------------------------------------------------------------------


def with_line(file: str, line: str) -> tuple[dict[str, str], int]:
    """The project with one more line at the end of a file, and that line's number."""
    text = project_sources()[file]
    return project_sources() | {file: f"{text}{line}\n"}, len(text.splitlines()) + 1


def added(sources: Sources) -> list[str]:
    """The breaches of the order that the project itself does not have."""
    return [str(one) for one in against_the_order(sources) if str(one) not in there_already()]


@cache
def there_already() -> frozenset[str]:
    return frozenset(map(str, against_the_order(project_sources())))


@cache
def a_file_of(room: str) -> str:
    return min(file for file in project_sources() if room_of(file) == room)


def present() -> list[str]:
    """The rooms that there are: each has its test."""
    return sorted({room_of(file) for file in project_sources()} & MAY_IMPORT.keys() - {"tuner"})


@pytest.mark.parametrize("room", present())
def test_one_import_against_the_order_is_found_in_every_room(room: str) -> None:
    """An import at the top of a file, a relative one, and one in a function: of a command, which no room may import."""
    file, target = a_file_of(room), "tuner/predict.py" if room == "commands" else "tuner/best.py"
    module = target.removesuffix(".py").replace("/", ".")
    lines = [f"import {module}", f"from {module} import run", f"def late(): from tuner import {PurePath(target).stem}"]
    if file.startswith("tuner/"):
        up = "." * file.count("/")
        lines += [f"from {up} import {PurePath(target).stem}", f"from {up}{PurePath(target).stem} import run"]
    for line in lines:
        sources, number = with_line(file, line)
        assert added(sources) == [f"{file}:{number}: imports {target}"], line


@pytest.mark.parametrize("lower", present())
def test_an_import_of_any_room_that_is_not_below_is_found(lower: str) -> None:
    for upper in set(present()) - MAY_IMPORT[lower] - {lower, "data" if lower == "models" else ""}:
        target = a_file_of(upper)
        name = target.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        sources, number = with_line(a_file_of(lower), f"import {name}")
        assert added(sources) == [f"{a_file_of(lower)}:{number}: imports {target}"]


@pytest.mark.parametrize("framework", MAY_KNOW)
def test_a_framework_in_the_wrong_room_is_found(framework: str) -> None:
    for room in {room_of(file) for file in product(project_sources())} - MAY_KNOW[framework]:
        sources, number = with_line(a_file_of(room), f"from {framework}.util import thing")
        assert added(sources) == [f"{a_file_of(room)}:{number}: imports {framework}.util.thing"]


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
    assert "argparse" in loaded and (not heavy or (command, "help") in STILL)


# --- what is written --------------------------------------------------------------------------------------------------


def test_no_file_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git repository")
    # In pieces, so that this file does not name them either.
    roots = "|".join(["home", "root", "Users", "work", "opt", "mnt", "tmp", "srv"])
    path = re.compile(rf"(?<![\w.}}$*<>)~-])/({roots})/\w")
    assert path.search(f"open('/{'tmp'}/x')") and not path.search("https://host/opt/x a/work/b $X/home/y")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        try:
            text = (PROJECT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        found += [f"{name}: {line.strip()}" for line in text.splitlines() if path.search(line) or str(PROJECT) in line]
    assert found == []
