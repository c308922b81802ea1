"""The way from an error to an exit code, and the errors themselves."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import ShardError
from tests.support.experiments import ROOT
from tuner import errors
from tuner.cli import main
from tuner.errors import ConfigError


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (None, 0, ""),
        (ConfigError("a: b"), 2, "a: b\n"),
        (errors.TrialDiverged("step 3"), 2, "step 3\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_command_tells_a_mistake_in_one_sentence(
    raised: BaseException | None, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        if raised:
            raise raised

    assert main(command) == code
    assert capsys.readouterr() == ("", told)


def test_a_damaged_shard_is_told_like_a_mistake_and_a_bug_keeps_its_traceback() -> None:
    def damaged() -> None:
        raise ShardError("a.tfrecord", "is cut off", 12, None)

    def bug() -> None:
        raise ZeroDivisionError

    assert main(damaged) == 2
    with pytest.raises(ZeroDivisionError):
        main(bug)


@pytest.mark.parametrize(
    "cls", [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.TunerError)]
)
def test_every_error_crosses_processes(cls: type[Exception]) -> None:
    error = pickle.loads(pickle.dumps(cls("why")))
    assert type(error) is cls and str(error) == "why"


def test_errors_import_nothing_heavy() -> None:
    code = "import sys, tuner.errors; print(sorted({'torch', 'ray', 'numpy', 'pydantic'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"


def test_a_place_that_cannot_be_read_is_told_in_one_sentence_and_a_broken_connection_is_a_bug(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        (tmp_path / "none").read_bytes()

    def refused() -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    assert main(missing) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'none'}: cannot be read or written (No such file")
    with pytest.raises(ConnectionRefusedError):
        main(refused)


def test_a_screen_that_knows_ascii_alone_shows_another_letter() -> None:
    code = "from tuner.cli import main; main(lambda: print('Pok\\xe9mon'))"
    ascii_only = {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, **ascii_only}
    )
    assert done.stdout == b"Pok?mon\n"
