"""Temporary folders: a killed process leaves none behind for long."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.workplace import PROJECT
from tuner.storage.scratch import remove_leftovers, scratch_folder
from tuner.storage.stores import at

IN_A_FOLDER = """
import time
from tuner.storage.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "half a checkpoint").touch()
    print(folder, flush=True)
    time.sleep(600)
"""
EXPORTING = """
import sys, time
from pathlib import Path
from tuner.storage.stores import at
with at(Path(sys.argv[1])).publish(last="SHA256SUMS") as staging:
    (staging / "half an export").touch()
    print(staging, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def start(program: str, *arguments: str) -> tuple["subprocess.Popen[str]", Path]:
    """Start a program, and return it with the folder that it prints."""
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def kill(process: "subprocess.Popen[str]") -> None:
    with process:
        process.kill()


def test_the_folder_is_removed_at_the_end(temporary: Path) -> None:
    with scratch_folder() as folder:
        (folder / "file").touch()
        assert folder.parent == temporary and folder.stat().st_mode & 0o777 == 0o700
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(temporary: Path) -> None:
    process, folder = start(IN_A_FOLDER)
    remove_leftovers(temporary)
    assert [path.name for path in folder.iterdir()] == ["half a checkpoint"]
    with scratch_folder():
        kill(process)
    assert list(temporary.iterdir()) == []


def test_a_new_folder_removes_that_of_a_killed_process_at_once(temporary: Path) -> None:
    process, _ = start(IN_A_FOLDER)
    kill(process)
    with scratch_folder() as mine:
        assert list(temporary.iterdir()) == [mine]


def test_folders_of_other_names_and_links_stay(temporary: Path) -> None:
    names = {"tuner-of-a-user", "tuner-0123456789ab-notes", "another-0123456789ab"}
    for name in names:
        (temporary / name).mkdir()
    (temporary / "tuner-0123456789ab").symlink_to(temporary / "tuner-of-a-user")
    remove_leftovers(temporary)
    assert {path.name for path in temporary.iterdir()} == {*names, "tuner-0123456789ab"}


def test_the_next_export_removes_what_a_killed_one_has_written(temporary: Path) -> None:
    export = temporary / "exports" / "best"
    process, half = start(EXPORTING, str(export))
    other, _ = start(EXPORTING, str(temporary / "exports" / "other"))
    assert [path.name for path in half.iterdir()] == ["half an export"]
    kill(process)
    with at(export).publish(last="SHA256SUMS") as staging:
        (staging / "SHA256SUMS").touch()
    assert not half.exists() and [path.name for path in export.iterdir()] == ["SHA256SUMS"]
    assert len(list(export.parent.iterdir())) == 2  # the export that is still being written is untouched
    kill(other)
