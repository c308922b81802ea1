"""A folder for the temporary files of a worker process, which a killed one leaves behind and the next one removes."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "tuner-worker-"
LOCK = ".lock"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder in the temporary folder, remove those of processes that were killed, and remove it in the end.

    Each folder has a lock beside it, which its process holds before there is a folder; the system releases it when the
    process ends, however it ends.
    """
    remove_leftovers()
    folder = Path(tempfile.gettempdir()) / f"{PREFIX}{uuid.uuid4().hex}"
    lock = folder.with_suffix(LOCK)
    try:
        with FileLock(lock):
            folder.mkdir(mode=0o700)
            yield folder
    finally:
        _remove(folder, lock)


def remove_leftovers() -> None:
    """Remove the folders of worker processes on this machine that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        if folder.suffix == LOCK:
            continue
        lock = folder.with_suffix(LOCK)
        try:
            with FileLock(lock, timeout=0):
                _remove(folder, lock)
        except (Timeout, OSError):
            continue  # its process lives, or it is another user's


def _remove(folder: Path, lock: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.unlink(missing_ok=True)
