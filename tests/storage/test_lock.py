"""One driver at a time for an experiment: a second one is refused, and a killed one does not block the next."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.workplace import PROJECT
from tuner.errors import SearchError
from tuner.storage.lock import only_driver

DRIVER = """
import sys
from pathlib import Path
from tuner.storage.lock import only_driver
with only_driver(Path(sys.argv[1]), "first"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def driver(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A second process that holds the lock of the folder."""
    command = [sys.executable, "-c", DRIVER, str(folder)]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_driver_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    with driver(tmp_path / "tiny") as first:
        told = rf"search first is being run by process {first.pid} on .* since 20.* in .*tiny; .*--storage"
        with pytest.raises(SearchError, match=told), only_driver(tmp_path / "tiny", "second"):
            pytest.fail("two drivers")
        with only_driver(tmp_path / "other", "second"):  # another experiment of the same storage
            pass
        assert first.stdin is not None
        first.stdin.close()  # it ends now
        first.wait()
    with only_driver(tmp_path / "tiny", "second"):
        pass
    assert {path.name for path in (tmp_path / "tiny").iterdir()} <= {"driver.lock"}


def test_a_killed_driver_leaves_the_experiment_free(tmp_path: Path) -> None:
    with driver(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        with only_driver(tmp_path, "second"):
            pass


def test_a_driver_that_is_still_writing_its_lock_file_is_not_named(tmp_path: Path) -> None:
    with driver(tmp_path):
        (tmp_path / "driver.json").write_text('{"search": "fi')
        with pytest.raises(SearchError, match="another driver is running a search in"), only_driver(tmp_path, "second"):
            pytest.fail("two drivers")


def test_a_storage_that_cannot_be_written_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(SearchError, match=r"cannot be written .*; choose another --storage")
    with refused, only_driver(tmp_path / "file" / "tiny", "s"):
        pytest.fail("a folder inside a file")


def test_a_driver_that_is_stopped_keeps_its_lock_and_goes_on_when_it_wakes(tmp_path: Path) -> None:
    with driver(tmp_path) as first:
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(SearchError, match=f"process {first.pid}"), only_driver(tmp_path, "second"):
            pytest.fail("two drivers")
        first.send_signal(signal.SIGCONT)
        assert first.stdin is not None
        first.stdin.close()
        assert first.wait() == 0


def test_a_driver_whose_lock_file_somebody_has_removed_stops_before_it_writes(tmp_path: Path) -> None:
    """The file system gives the lock of a new file of that name to another driver."""
    with only_driver(tmp_path, "first") as still_ours:
        still_ours()
        (tmp_path / "driver.lock").unlink()
        with pytest.raises(SearchError, match=r"driver.lock: the lock of this driver is gone.*; this driver stops$"):
            still_ours()
        with (
            only_driver(tmp_path, "second") as also_ours,
            pytest.raises(SearchError, match="this driver stops"),
        ):
            also_ours()
            still_ours()
