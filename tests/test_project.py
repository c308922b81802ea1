"""The defaults of the commands: the experiments' file, the storage, the programs of this environment."""

import os
import sys
from pathlib import Path

import pytest

from tuner.project import PROJECT, experiments_file, program, storage_place


def test_storage_is_as_given_then_the_variable_then_beside_the_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "experiments.yaml"
    assert storage_place(None, file) == tmp_path / "storage"
    monkeypatch.setenv("TUNER_STORAGE", str(tmp_path / "shared"))
    assert storage_place(None, file) == tmp_path / "shared"
    assert storage_place(str(tmp_path / "mine"), file) == tmp_path / "mine"
    assert storage_place(f"file://{tmp_path}", file) == tmp_path


def test_the_yaml_is_the_one_given_then_the_one_here_then_the_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert experiments_file(None) == PROJECT / "experiments.yaml"
    (tmp_path / "experiments.yaml").touch()
    assert experiments_file(None) == tmp_path / "experiments.yaml"
    assert experiments_file(Path("other.yaml")) == Path("other.yaml")


def test_a_printed_command_works_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "bin" / "python"
    own.parent.mkdir()
    own.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(own))
    monkeypatch.setenv("PATH", os.defpath)
    assert program("python") == str(own)
    monkeypatch.chdir(tmp_path)
    assert program("python") == "bin/python"
    monkeypatch.setenv("PATH", str(own.parent))
    assert program("python") == "python"
