"""The defaults of the commands: the experiments' file, the storage, the programs of this environment."""

import importlib
import os
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from tuner.project import PROJECT, experiments_file, program, storage_place, tune_again


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


def test_the_printed_command_repeats_what_was_typed_and_can_be_typed_as_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed = ["/my code/tune.py", "a b", "--storage", "it's #1", "--file=m [1].yaml", "--set", "x=1", "--trials", "3"]
    monkeypatch.setattr(sys, "argv", typed)
    words = shlex.split(tune_again("a b", "--resume", "id"))[1:]
    assert words == ["/my code/tune.py", "a b", "--resume", "id", "--storage", "it's #1", "--file=m [1].yaml"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/video-tuner", *typed[1:]])
    words = shlex.split(tune_again("a b", "--resume", "id"))
    assert Path(words[0]).name == "video-tuner" and words[1:4] == ["a b", "--resume", "id"]
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert tune_again("mine") == f"{program('python')} tune.py mine"


SCRIPTS = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_console_script_runs_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, function = SCRIPTS[name].split(":")
    assert module == name.replace("video-tuner-", "tuner.").replace("video-tuner", "tune")
    monkeypatch.syspath_prepend(PROJECT)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        getattr(importlib.import_module(module), function)()
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: ")
