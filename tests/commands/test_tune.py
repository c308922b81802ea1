"""`python tune.py`: which search an option names."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tuner.console
from tests.support.workplace import PROJECT
from tuner.search import driver
from tuner.search.begin import Options

ID = "20260102-030405-0001"


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs tune.py in an empty folder up to the driver; returns the experiment and the options that the driver gets."""

    def run(*arguments: str) -> tuple[str | None, Options]:
        got: list[tuple[str | None, Options]] = []

        def take(file: Path, name: str | None, options: Options, console: Any) -> driver.Outcome:
            got.append((name, options))
            return driver.Outcome(0, tmp_path)

        monkeypatch.setattr(driver, "run", take)
        monkeypatch.setattr(tuner.console, "Console", SimpleNamespace)  # a command never closes its output
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["tune.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(PROJECT / "tune.py"), run_name="__main__")
        assert ended.value.code == 0
        return got[0]

    return run


@pytest.mark.parametrize(
    "arguments, name, resume, extend, search",
    [
        (["mine"], "mine", False, 0, None),
        (["mine", "--resume"], "mine", True, 0, None),
        (["--resume", "mine"], "mine", True, 0, None),
        (["--resume"], None, True, 0, None),
        (["--resume", ID], None, True, 0, ID),
        (["mine", "--resume", ID], "mine", True, 0, ID),
        (["mine", "--extend", "3", "--search", ID], "mine", False, 3, ID),
        (["mine", "--resume", "--search", ID], "mine", True, 0, ID),
        (["mine", "--resume", "no-id"], "mine", True, 0, "no-id"),  # which the driver does not find
    ],
)
def test_the_search_to_continue_is_the_one_that_is_named(
    began: Any, arguments: list[str], name: str | None, resume: bool, extend: int, search: str | None
) -> None:
    got, options = began(*arguments)
    assert (got, options.resume, options.extend, options.search) == (name, resume, extend, search)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["mine", "--search", ID], "--search ID needs --resume, --extend N or --retry-failed"),
        (["mine", "--resume", ID, "--search", "20270102-030405-0001"], "name two searches"),
        (["mine", "--fresh", "--resume", ID], "--fresh starts a new search"),
        (["mine", "--fresh", "--retry-failed"], "--fresh starts a new search"),
        (["mine", "--resume", ID, "--retry-failed"], "leave --resume out"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tune.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROJECT / "tune.py"), run_name="__main__")
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_the_file_and_the_storage_are_said_first(
    began: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The project's file, and the storage beside it, are not taken in silence where the folder has no file."""

    def first_line(*arguments: str) -> str:
        capsys.readouterr()
        began(*arguments)
        return capsys.readouterr().out.splitlines()[0]

    said = first_line()
    assert said.startswith("this folder has no experiments.yaml, so those of the project are used")
    assert said.endswith(f"{PROJECT / 'experiments.yaml'}; searches are kept in {PROJECT / 'storage'}")
    assert first_line("--storage", "mine").endswith("searches are kept in mine")
    (tmp_path / "experiments.yaml").touch()
    own = f"experiments: {tmp_path / 'experiments.yaml'}; searches are kept in {tmp_path / 'storage'}"
    assert first_line() == own
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "my.yaml").touch()
    assert first_line("--file", "other/my.yaml").startswith(f"experiments: {tmp_path / 'other' / 'my.yaml'}; ")
