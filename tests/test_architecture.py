"""The rules of the design, read from the code: who may import whom, and what stays off the fast path."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from functools import cache

import pytest

from tests.support.workplace import PROJECT

PACKAGES = ("data", "models", "tuner")
# What only `tuner` may know, and there only these files.
FRAMEWORKS = {
    "ray": {
        *(f"tuner/workers/{name}.py" for name in ("trial", "relay", "worker", "reports")),
        *(f"tuner/search/{name}.py" for name in ("driver", "schedulers", "searcher", "recorder", "stopper")),
        *(f"tuner/cluster/{name}.py" for name in ("connection", "placement", "shared_storage")),
    },
    "optuna": {"tuner/search/searcher.py", "tuner/search/tpe.py", "tuner/search/dry_run.py"},
    "mlflow": {"tuner/tracking/tracker.py"},
    "pydantic": {"tuner/config/reading.py", "tuner/config/search.py"},
    "yaml": {"tuner/config/yaml_tree.py"},
    "pyarrow": {"tuner/embed.py", "tuner/workers/trial.py", "tuner/workers/reports.py"},
}
# Distributions that nothing here imports: Optuna does, for the samplers that are named in their comments.
FOR_OPTUNA = {"cmaes", "scipy"}


@cache
def sources() -> dict[str, str]:
    """Text of every Python file of ours, by its path in the project."""
    files = [PROJECT / "tune.py"]
    files += [path for name in (*PACKAGES, "tests", "benchmarks") for path in (PROJECT / name).rglob("*.py")]
    return {path.relative_to(PROJECT).as_posix(): path.read_text() for path in files}


@cache
def imports(file: str) -> frozenset[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    package = file.split("/")[:-1]
    for node in ast.walk(ast.parse(sources()[file])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            found.add(".".join([*above, *([node.module] if node.module else [])]))
    return frozenset(found)


def importers_of(module: str, within: tuple[str, ...] = ("tune.py", *PACKAGES)) -> set[str]:
    """The files that import `module` or something in it."""
    return {
        file
        for file in sources()
        if file.split("/")[0] in within and any(name.split(".")[0] == module for name in imports(file))
    }


def loaded_by(*arguments: str) -> set[str]:
    """Top-level modules that a Python process has loaded when it is done."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in ran.stderr.splitlines() if "|" in line}


@pytest.mark.parametrize("package", ["data", "models"])
def test_data_and_models_import_nothing_of_ours_but_themselves(package: str) -> None:
    for other in {"data", "models", "tuner", "tune", "tests", "benchmarks"} - {package}:
        assert importers_of(other, (package,)) == set()


def test_nothing_imports_the_entry_point_or_the_tests() -> None:
    for name in ("tune", "tests", "benchmarks"):
        assert importers_of(name) == set()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_only_these_files_know_the_frameworks(framework: str) -> None:
    assert importers_of(framework) <= FRAMEWORKS[framework]


def test_the_files_that_may_know_a_framework_do() -> None:
    for framework, files in FRAMEWORKS.items():
        assert files <= importers_of(framework), framework


def test_models_open_no_files() -> None:
    for module in ("pathlib", "os", "io", "json", "fsspec", "tfrecord"):
        assert importers_of(module, ("models",)) == set()


def test_a_trial_trains_where_ray_mlflow_optuna_pydantic_and_yaml_are_missing() -> None:
    program = (
        "import sys\n"
        f"for name in {tuple(FRAMEWORKS)}: sys.modules[name] = None\n"
        "import tuner.train, tuner.evaluate, tuner.training.dataset, tuner.training.checkpoint\n"
        "import data.cache.store, data.batches\n"
        "assert callable(tuner.train.train)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True)


COMMANDS = {
    "tune.py": ("tune.py", "--help"),
    "tuner.best": ("-m", "tuner.best", "--help"),
    "tuner.predict": ("-m", "tuner.predict", "--help"),
    "tuner.embed": ("-m", "tuner.embed", "--help"),
    "tuner.evaluate": ("-m", "tuner.evaluate", "--help"),
    "data.cache": ("-m", "data.cache", "--help"),
    "data.inspect": ("-m", "data.inspect", "--help"),
    "data.sample": ("-m", "data.sample", "--help"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_told_without_the_heavy_imports(command: str) -> None:
    assert not loaded_by(*COMMANDS[command]) & {"torch", "ray", "mlflow", "optuna"}


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


def dependencies() -> list[tuple[str, str]]:
    """(distribution, comment) of every dependency that is installed with the project."""
    text = (PROJECT / "pyproject.toml").read_text()
    block = text[text.index("\ndependencies = [") :]
    lines = re.findall(r'^  "([A-Za-z0-9_-]+)[^"]*",[ ]*(?:# (.*))?$', block[: block.index("\n]")], re.M)
    assert len(lines) == len(tomllib.loads(text)["project"]["dependencies"])
    return lines


@pytest.mark.parametrize("distribution, comment", dependencies())
def test_a_dependency_says_which_files_need_it(distribution: str, comment: str) -> None:
    if distribution in FOR_OPTUNA:
        assert "optuna" in comment
        return
    provided = {
        module
        for module, names in importlib.metadata.packages_distributions().items()
        if distribution in map(str.lower, names)
    }
    importers = set().union(*(importers_of(module) for module in provided))
    named = re.findall(r"(?:data|models|tuner)/(?:[\w/]+\.py)?", comment)
    assert named, f"{distribution}: the comment names no file"
    for file in named:
        assert file in importers or (file.endswith("/") and any(one.startswith(file) for one in importers)), (
            f"{distribution}: {file} does not import it; {', '.join(sorted(importers))} do"
        )


def test_every_import_is_a_dependency() -> None:
    known = {distribution for distribution, _ in dependencies()}
    providers = importlib.metadata.packages_distributions()
    for file in sources():
        if file.split("/")[0] not in ("tune.py", *PACKAGES):
            continue
        for module in {name.split(".")[0] for name in imports(file)} - set(PACKAGES) - set(sys.stdlib_module_names):
            assert known & {name.lower() for name in providers[module]}, f"{file} imports {module}"
