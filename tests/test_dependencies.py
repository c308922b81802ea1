"""pyproject.toml lists what the code imports, no more and no less, and says which files need it."""

import importlib.metadata
import re
import sys
import tomllib
from functools import cache

import pytest

from tests.support.imports import OURS, imports_of, project_sources
from tests.support.workplace import PROJECT

# Distributions that nothing here imports: Optuna does, for the samplers that are named in their comments.
FOR_OPTUNA = {"cmaes", "scipy"}
PRODUCT = ("tune.py", "data", "models", "tuner")


@cache
def providers() -> dict[str, set[str]]:
    """The distributions that provide each top-level module, in lower case."""
    installed = importlib.metadata.packages_distributions()
    return {module: {name.lower() for name in names} for module, names in installed.items()}


@cache
def importers() -> dict[str, set[str]]:
    """The files of the product that import each top-level module."""
    found: dict[str, set[str]] = {}
    for one in imports_of(project_sources()):
        if one.file.split("/")[0] in PRODUCT:
            found.setdefault(one.top, set()).add(one.file)
    return found


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
    users = set().union(
        *(files for module, files in importers().items() if distribution in providers().get(module, ()))
    )
    named = re.findall(r"(?:data|models|tuner)/(?:[\w/]+\.py)?", comment)
    assert named, f"{distribution}: the comment names no file"
    for file in named:
        assert file in users or (file.endswith("/") and any(one.startswith(file) for one in users)), (
            f"{distribution}: {file} does not import it; {', '.join(sorted(users))} do"
        )


def test_every_import_is_a_dependency() -> None:
    known = {distribution for distribution, _ in dependencies()}
    for module, files in importers().items():
        if module not in (*OURS, "tune", *sys.stdlib_module_names):
            assert known & providers()[module], f"{', '.join(files)}: import {module}"
