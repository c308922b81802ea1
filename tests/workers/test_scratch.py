"""Temporary files of worker processes: a killed one leaves none behind for long."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.workplace import PROJECT
from tuner.workers.scratch import remove_leftovers, scratch_folder

PROGRAM = """
import time
from tuner.workers.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "half a checkpoint").touch()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_the_folder_is_removed_at_the_end(temporary: Path) -> None:
    with scratch_folder() as folder:
        (folder / "file").touch()
        assert folder.parent == temporary
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(temporary: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        remove_leftovers()
        assert [path.name for path in folder.iterdir()] == ["half a checkpoint"]
        process.kill()
    with scratch_folder() as mine:
        assert not folder.exists() and mine.exists()
    assert list(temporary.iterdir()) == []
