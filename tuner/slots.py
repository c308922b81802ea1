"""Taking turns on one machine's CPUs: more workers may be ready than train, and one that is ready waits here.

A worker needs seconds before its first step: a process, Ray, torch, the data. Where all trials run on the CPUs of one
machine, a worker asks Ray for half of its slot, so that the next trial's worker starts while the last one trains; who
trains is settled by locks on files. They end with their process, however it ends.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# Of the slot's CPUs that a worker asks Ray for, where workers take turns.
SHARE = 0.5
# Seconds between two looks at the slots.
POLL = 0.05


@contextmanager
def turn(search_id: str, slots: int) -> Iterator[None]:
    """Wait for one of the machine's `slots`, and hold it while the block runs."""
    directory = _directory(search_id)
    directory.mkdir(exist_ok=True)
    lock = _acquire_any([FileLock(directory / str(number)) for number in range(slots)])
    try:
        yield
    finally:
        lock.release()


def forget(search_id: str) -> None:
    """Remove the locks' files after a search."""
    shutil.rmtree(_directory(search_id), ignore_errors=True)


def _acquire_any(locks: list[FileLock]) -> FileLock:
    while True:
        for lock in locks:
            try:
                lock.acquire(timeout=0)
                return lock
            except Timeout:
                continue
        time.sleep(POLL)


def _directory(search_id: str) -> Path:
    return Path(tempfile.gettempdir()) / f"tuner-slots-{search_id}"
