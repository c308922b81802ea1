"""Folders for temporary files: a process that is killed leaves its folder behind, and the next one removes it."""

import fcntl
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "tuner-"
OLD = ".old"  # the end of the name of a folder that another one is about to replace
# The end of a name: no other program gives such names.
_RANDOM = f"[0-9a-f]{{12}}({re.escape(OLD)})?"


@contextmanager
def scratch_folder(parent: Path | None = None, prefix: str = PREFIX, mode: int = 0o700) -> Iterator[Path]:
    """Make a folder and remove it when the block ends; before and after, remove those of processes that were killed.

    A process holds a lock on each of its folders, which the system releases when the process ends, however it ends.

    Args:
        parent: where the folder is made; None: in the temporary folder.
        prefix: of its name. The folders of killed processes are those with the same prefix.
        mode: its permissions.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_leftovers(parent, prefix)
    lock = None
    while lock is None:
        folder = parent / f"{prefix}{uuid.uuid4().hex[:12]}"
        folder.mkdir(mode=mode)
        lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        remove_leftovers(parent, prefix)  # a process that is killed may live for some seconds


def remove_leftovers(parent: Path, prefix: str = PREFIX) -> None:
    """Remove the folders of killed processes from `parent`."""
    name = re.compile(re.escape(prefix) + _RANDOM)
    for folder in parent.iterdir():
        if not name.fullmatch(folder.name):
            continue
        with suppress(OSError):  # it is another user's, its process lives, or another process has just removed it
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a new folder; None: another process has taken it for a leftover and removed it."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # some network file systems lock no folders; then no other process removes it
        fcntl.flock(lock, fcntl.LOCK_EX)
    if folder.exists():
        return lock
    os.close(lock)
    return None
